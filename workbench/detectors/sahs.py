"""`SAHsDetector`: the heads whose outputs tell unsafe from safe best, and one logistic regression on all of them."""

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
import xarray as xr

from workbench.criteria import score, top_heads
from workbench.criteria.logistic import fit_logistic
from workbench.detectors.calibration import calibration_parts, unsafe_array
from workbench.detectors.detector import Detector, as_prompts, check_finite, check_is_model, observe
from workbench.errors import DetectorError
from workbench.models.hooked import HookedLVLM
from workbench.prompts.prompt import Prompt

Head = tuple[int, int]


class SAHsDetector(Detector):
    """Detects unsafe prompts by what the best probed heads put out at the last prompt position.

    One logistic regression a head on z chooses the heads by held-out accuracy; their z are concatenated, and a final
    logistic regression on them is the score, in log-odds.

    Args:
        k: How many heads (published: 16 to 32 of a 7B model's). Ignored when `accuracy` is given.
        accuracy: Keep every head whose held-out accuracy is at least this, 0 to 1 (the paper's threshold on accuracy).
        C: Inverse strength of the final regression's L2 penalty, as in scikit-learn.
        threshold: Log-odds above which a prompt is unsafe (0.0: the regression's own decision), or `"kde"`.
        seed: Of the folds, and of a split that has to be made.

    Attributes:
        heads: The heads in use, best first; empty before `fit`.
        coef: Of the final regression, [head * d_head].
        intercept: Of the final regression.

    Cost:
        One unmasked pass.

    Source:
        SAHs, "Spot Risks Before Speaking" (arXiv 2501.02029); its code was not available. That the probed tensor is z
        before W_O, and that probes are scikit-learn's default, is our reading.
    """

    kind: ClassVar[str] = "sahs"

    def __init__(
        self, *, k: int = 16, accuracy: float | None = None, C: float = 1.0, threshold: str | float = 0.0, seed: int = 0
    ) -> None:
        super().__init__(threshold)
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise DetectorError(f"k is the number of heads, 1 or more; got {k!r}.")
        if accuracy is not None and not 0 < accuracy <= 1:
            raise DetectorError(f"accuracy is a share of prompts, over 0 and at most 1; got {accuracy!r}.")
        if not C > 0:
            raise DetectorError(f"C, the inverse strength of the penalty, must be over 0; got {C!r}.")
        self.k, self.accuracy, self.C, self.seed = k, accuracy, float(C), seed
        self.heads: list[Head] = []
        self.coef, self.intercept = np.empty(0), float("nan")

    def __repr__(self) -> str:
        return f"SAHsDetector({len(self.heads)} heads, threshold {self.threshold:.4g})"

    def fit(self, model: HookedLVLM, prompts: Sequence[Prompt]) -> Self:
        """Choose the heads and train the regression on the selection part; the threshold part sets the threshold."""
        check_is_model(model)
        parts = calibration_parts(as_prompts(prompts), seed=self.seed)
        run = observe(model, parts.selection)
        self.heads = self._choose(run)
        coef, intercept = fit_logistic(features(run, self.heads), unsafe_array(parts.selection), C=self.C)
        self.coef, self.intercept = coef, float(intercept)
        self.calibration = parts.record()
        self._set_threshold(self._score(model, parts.threshold), unsafe_array(parts.threshold))
        self._fitted_on(model.name, model.weight_hash)
        return self

    def decision_function(self, model: HookedLVLM, prompts: Sequence[Prompt]) -> np.ndarray:
        """Log-odds of the final regression, shape [prompt]; higher = more unsafe."""
        self._check_model(model, prompts)
        return self._score(model, as_prompts(prompts))

    def _choose(self, run: xr.Dataset) -> list[Head]:
        scores = score(run.drop_vars("split"), ("probe",), bootstrap=0, permutations=0, seed=self.seed)
        k = self.k
        if self.accuracy is not None:
            k = int((scores["unsafe"] >= self.accuracy).sum())
            if not k:
                raise DetectorError(
                    f"No head's probe reaches an accuracy of {self.accuracy:.3g}; the best reaches "
                    f"{scores['unsafe'].max():.3g}. Ask for less, or give k instead."
                )
        kept = top_heads(scores, criterion="probe", rule="sensitivity", k=min(k, int(scores["unsafe"].notna().sum())))
        return [(int(layer), int(head)) for layer, head in zip(kept["layer"], kept["head"], strict=True)]

    def _score(self, model: HookedLVLM, prompts: Sequence[Prompt]) -> np.ndarray:
        scores = features(observe(model, prompts), self.heads) @ self.coef + self.intercept
        return check_finite(scores, prompts, "The regression on the heads' outputs")

    def _settings(self) -> dict[str, Any]:
        return {"k": self.k, "accuracy": self.accuracy, "C": self.C, "seed": self.seed}

    def _arrays(self) -> dict[str, np.ndarray]:
        return {
            "heads": np.array(self.heads, dtype=np.int64),
            "coef": self.coef,
            "intercept": np.array([self.intercept]),
        }

    @classmethod
    def _restore(cls, settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> Self:
        detector = cls(**settings)
        detector.heads = [(int(layer), int(head)) for layer, head in arrays["heads"]]
        detector.coef, detector.intercept = arrays["coef"], float(arrays["intercept"][0])
        return detector


def features(run: xr.Dataset, heads: Sequence[Head]) -> np.ndarray:
    """z of the heads side by side, float64: [prompt, head * d_head]."""
    z = run["head_output"].transpose("prompt", "layer", "head", "d_head")
    return np.concatenate([z.sel(layer=layer, head=head).values for layer, head in heads], axis=1).astype(np.float64)
