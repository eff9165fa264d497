"""`SAHsDetector`: the heads whose outputs tell unsafe from safe best, and one logistic regression on all of them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import xarray as xr

from workbench.axes import Head, as_heads, head_pairs
from workbench.checking import Whole, check_each, plainly
from workbench.criteria import get_criterion, top_heads
from workbench.criteria.logistic import fit_logistic
from workbench.criteria.probes import few_shot_masks
from workbench.detectors.calibration import Origin, origin_of
from workbench.detectors.detector import Detector
from workbench.detectors.looks import Wants, scores_of
from workbench.detectors.masked_heads import has_heads
from workbench.detectors.record import DetectorRecord
from workbench.detectors.stored import finite_number, finite_vector
from workbench.errors import DetectorError
from workbench.models.hooked import HookedLVLM
from workbench.runs.reading import RunLike, as_checked_run, check_run, prompt_coord


class SAHsDetector(Detector):
    """Detects unsafe prompts by what the best probed heads put out at the last prompt position.

    One logistic regression a head on z chooses the heads by held-out accuracy; their z are concatenated, and a final
    logistic regression on them is the score, in log-odds.

    Args:
        k: How many heads (published: 16 to 32 of a 7B model's). Ignored when `accuracy` is given.
        accuracy: Keep every head whose held-out accuracy is at least this, 0 to 1 (the paper's threshold on accuracy).
        rule: How heads are ranked by their probes: `"sensitivity"` (published: by held-out accuracy), or another rule
            that has a meaning for them; see `workbench.criteria.rules`.
        shots: Learn from this many prompts of each category (family where there is none) of either label, drawn with
            `seed` (published: 1 or 2); None learns from all.
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

    name: ClassVar[str] = "sahs"
    learned: ClassVar[Mapping[str, Callable[[Any], Any]]] = {
        "heads": as_heads,
        "coef": finite_vector,
        "intercept": finite_number,
    }

    def __init__(
        self,
        *,
        k: int = 16,
        accuracy: float | None = None,
        rule: str = "sensitivity",
        shots: int | None = None,
        C: float = 1.0,
        threshold: str | float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(threshold, seed)
        check_each({"k": k, "shots": shots or 1}, {"k": Whole(1), "shots": Whole(1)})
        if accuracy is not None and not 0 < accuracy <= 1:
            raise DetectorError(f"accuracy is a share of prompts, over 0 and at most 1; got {accuracy!r}.")
        if not C > 0:
            raise DetectorError(f"C, the inverse strength of the penalty, must be over 0; got {C!r}.")
        if rule not in (known := get_criterion("probe").rules):
            raise DetectorError(f"Rule {plainly(rule)} has no meaning for probes; those that have: {', '.join(known)}.")
        self.k, self.accuracy, self.rule, self.shots, self.C = k, accuracy, rule, shots, float(C)
        self.heads: list[Head] = []
        self.coef, self.intercept = np.empty(0), float("nan")

    def __repr__(self) -> str:
        return f"SAHsDetector({len(self.heads)} heads, threshold {self.threshold:.4g})"

    def wants(self, model: HookedLVLM, *, choosing: bool) -> Wants:
        return Wants(outputs=True)

    def choose(self, seen: xr.Dataset, unsafe: np.ndarray) -> None:
        if self.shots is not None:
            named = prompt_coord(seen, "category")
            category = prompt_coord(seen, "family") if set(named) == {""} else named
            taken = few_shot_masks(unsafe, category, shots=self.shots, repeats=1, seed=self.seed)[0]
            seen, unsafe = seen.isel(prompt=np.flatnonzero(taken)), unsafe[taken]
        scores = scores_of(seen, "probe", self.seed)
        k = min(self.k, int(scores["unsafe"].notna().sum()))
        if self.accuracy is not None:
            k = int((scores["unsafe"] >= self.accuracy).sum())
            if not k:
                raise DetectorError(
                    f"No head's probe reaches an accuracy of {self.accuracy:.3g}; the best reaches "
                    f"{scores['unsafe'].max():.3g}. Ask for less, or give k instead."
                )
        self.heads = head_pairs(top_heads(scores, criterion="probe", rule=self.rule, k=k, seed=self.seed))
        self.coef, intercept = fit_logistic(features(seen, self.heads), unsafe, C=self.C)
        self.intercept = float(intercept)

    def _chosen(self) -> set[Any]:
        return set(self.heads)

    def heads_in_use(self) -> tuple[Head, ...]:
        return tuple(self.heads)

    def _readable(self, run: RunLike) -> tuple[xr.Dataset, Origin]:
        run = as_checked_run(run)
        check_run(run, ("head_output",), wanted_by=self.name)
        return run, origin_of(run)

    def values(self, seen: xr.Dataset) -> np.ndarray:
        return features(seen, self.heads) @ self.coef + self.intercept

    def _fits(self, model: HookedLVLM) -> bool:
        return has_heads(model, self.heads) and len(self.coef) == len(self.heads) * model.d_head > 0


def features(run: xr.Dataset, heads: Sequence[Head]) -> np.ndarray:
    """z of the heads side by side, float64: [prompt, head * d_head]."""
    z = run["head_output"].transpose("prompt", "layer", "head", "d_head")
    return np.concatenate([z.sel(layer=layer, head=head).values for layer, head in heads], axis=1).astype(np.float64)


DETECTORS = (
    DetectorRecord(
        "sahs",
        SAHsDetector,
        needs="labelled prompts, unsafe and safe",
        says="log-odds of one logistic regression on the outputs z of the best probed heads",
        source="SAHs, 'Spot Risks Before Speaking' (arXiv 2501.02029)",
    ),
    DetectorRecord(
        "sahs-few-shot",
        SAHsDetector,
        options={"shots": 2},
        needs="a few labelled prompts of each category, unsafe and safe",
        says="the same, learned from `shots` prompts of each category of either label",
        source="SAHs, 'Spot Risks Before Speaking' (arXiv 2501.02029): 1 or 2 shots a category",
    ),
)
