"""`ProbedStateDetector`: one logistic regression on the last layer's state, or on the logits of the first token."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
import xarray as xr

from workbench.checking import OneOf, checked
from workbench.criteria.logistic import fit_logistic
from workbench.detectors.detector import Detector
from workbench.detectors.looks import Reader, Wants, final_state, first_logits
from workbench.detectors.record import DetectorRecord
from workbench.detectors.stored import finite_number, finite_vector
from workbench.errors import DetectorError
from workbench.models.hooked import HookedLVLM

SITES: Mapping[str, Reader] = {"state": final_state, "logits": first_logits}


class ProbedStateDetector(Detector):
    """Detects unsafe prompts by a linear probe where the model is about to answer; no heads, one pass.

    Args:
        site: `"state"`: the final state at the last prompt position, after the final norm. `"logits"`: the logits of
            the first token of the reply, all of them.
        C: Inverse strength of the L2 penalty, as in scikit-learn, whose defaults these are; features as they are.
        threshold: Log-odds above which a prompt is unsafe (0.0: the regression's own decision), or `"kde"`.
        seed: Of a split that has to be made.

    Attributes:
        coef: Of the regression, [d_model] or [vocab].
        intercept: Of the regression.

    Source:
        `"logits"`: LVLM-LP, "The First to Know" (arXiv 2403.09037) and its released code. `"state"`: the usual probe of
        hidden states, a baseline.
    """

    name: ClassVar[str] = "last-layer"
    learned: ClassVar[Mapping[str, Callable[[Any], Any]]] = {"coef": finite_vector, "intercept": finite_number}

    @checked
    def __init__(
        self,
        *,
        site: Annotated[str, OneOf(SITES)] = "state",
        C: float = 1.0,
        threshold: str | float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(threshold, seed)
        if not C > 0:
            raise DetectorError(f"C, the inverse strength of the penalty, must be over 0; got {C!r}.")
        self.site, self.C = site, float(C)
        self.coef, self.intercept = np.empty(0), float("nan")

    def __repr__(self) -> str:
        return f"ProbedStateDetector({self.site}, threshold {self.threshold:.4g})"

    def wants(self, model: HookedLVLM, *, choosing: bool) -> Wants:
        return Wants(reads={self.site: SITES[self.site]})

    def choose(self, seen: xr.Dataset, unsafe: np.ndarray) -> None:
        self.coef, self.intercept = fit_wide(seen[self.site].values, unsafe, C=self.C)

    def values(self, seen: xr.Dataset) -> np.ndarray:
        return seen[self.site].values.astype(np.float64) @ self.coef + self.intercept

    def _fits(self, model: HookedLVLM) -> bool:
        return len(self.coef) == (model.d_model if self.site == "state" else model.d_vocab)


def fit_wide(features: np.ndarray, unsafe: np.ndarray, *, C: float) -> tuple[np.ndarray, float]:
    """`fit_logistic` for many more features than prompts: the same optimum, found in the span of the prompts.

    The penalty does not change when features are rotated, so the regression is fitted on coordinates in an orthonormal
    basis of the prompts' features, and its coefficients are turned back.
    """
    features = features.astype(np.float64)
    left, size, basis = np.linalg.svd(features, full_matrices=False)
    kept = size > size[0] * max(features.shape) * np.finfo(np.float64).eps
    if not kept.any():
        raise DetectorError("All features are zero, so there is nothing to learn from them.")
    coef, intercept = fit_logistic((left * size)[:, kept], unsafe, C=C)
    return coef @ basis[kept], float(intercept)


_NEEDS = "labelled prompts, unsafe and safe"
DETECTORS = (
    DetectorRecord(
        "first-token",
        ProbedStateDetector,
        options={"site": "logits"},
        needs=_NEEDS,
        says="log-odds of one logistic regression on the logits of the reply's first token",
        source="LVLM-LP, 'The First to Know' (arXiv 2403.09037)",
    ),
    DetectorRecord(
        "last-layer",
        ProbedStateDetector,
        needs=_NEEDS,
        says="log-odds of one logistic regression on the final state",
        source="a usual baseline; this project",
    ),
)
