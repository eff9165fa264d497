"""A detector on prompts it has not seen: rates, AUROC and graded scores, by family and category, with intervals."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from workbench.criteria.rates import measures_on
from workbench.criteria.statistics import rate_interval
from workbench.detectors.calibration import check_labels, unsafe_array
from workbench.detectors.detector import Detector
from workbench.errors import DetectorError
from workbench.models.hooked import HookedLVLM
from workbench.prompts.prompt import Prompt, as_prompts
from workbench.prompts.ties import tie_names

GRADED_COLUMNS = ["label", "family", "category", "n", "flagged", "low", "high", "score_25", "score_50", "score_75"]


def evaluate(
    detector: Detector, model: HookedLVLM, prompts: Sequence[Prompt], *, bootstrap: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Detection and false-positive rates, AUROC (pooled and matched) and TPR at 1 % and 5 % FPR, by family.

    Returns:
        One row a measure × family: measure, family, value, ci_low, ci_high, n, as in
        `workbench.criteria.detection.detection_table`.

    Raises:
        DetectorError: If the detector was calibrated on one of the prompts, or a label has fewer than three.
    """
    prompts = unseen(detector, prompts)
    scores = detector.decision_function(model, prompts)
    return score_measures(scores, prompts, detector.threshold, bootstrap=bootstrap, seed=seed)


def score_measures(
    scores: np.ndarray, prompts: Sequence[Prompt], threshold: float, *, bootstrap: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """`evaluate` for scores that are known already, [prompt]."""
    rows = measures_on(
        scores,
        unsafe_array(prompts),
        family=np.array([p.family for p in prompts], dtype=object),
        pairs=tie_names([p.pair_id for p in prompts], [p.content_key() for p in prompts]),
        threshold=threshold,
        bootstrap=bootstrap,
        seed=seed,
    )
    return pd.DataFrame(rows)


def measure_row(measure: str, family: str, value: float, interval: Sequence[float] | tuple, n: int) -> dict:
    """One row of a table of measures, as `evaluate` has them."""
    low, high = (float(end) for end in interval)
    return {"measure": measure, "family": family, "value": float(value), "ci_low": low, "ci_high": high, "n": int(n)}


def graded_scores(scores: np.ndarray, prompts: Sequence[Prompt], threshold: float) -> pd.DataFrame:
    """How high each family and category scores, and how much of it is flagged.

    Returns:
        One row a label × family × category: label, family, category, n, `flagged` (share over the threshold, 0 to 1)
        with its exact 95 % interval `low` and `high`, and the quartiles of the scores (`score_25`, `score_50`,
        `score_75`) in the detector's unit. Unsafe first, then by median score.
    """
    table = pd.DataFrame([(p.label, p.family, p.category) for p in prompts], columns=["label", "family", "category"])
    table = table.assign(score=scores, flagged=scores > threshold)
    rows = []
    for key, part in table.groupby(["label", "family", "category"], sort=False):
        low, high = rate_interval(int(part["flagged"].sum()), len(part))
        quartiles = np.quantile(part["score"], [0.25, 0.5, 0.75]).tolist()
        rows.append([*key, len(part), float(part["flagged"].mean()), float(low), float(high), *quartiles])
    found = pd.DataFrame(rows, columns=GRADED_COLUMNS)
    return found.sort_values(["label", "score_50"], ascending=[False, False], ignore_index=True)


def unseen(detector: Detector, prompts: Sequence[Prompt]) -> Sequence[Prompt]:
    """The prompts, if they can test the detector."""
    prompts = as_prompts(prompts)
    check_labels(prompts, "A test set")
    used = {id_ for part in ("selection_prompts", "threshold_prompts") for id_ in detector.calibration.get(part, ())}
    if seen := [p.id for p in prompts if p.id in used]:
        raise DetectorError(
            f"The detector was calibrated on {len(seen)} of these {len(prompts)} prompts (first: {seen[0]!r}), so it "
            "cannot be tested on them. Test on other prompts: prompts.where(split='test')."
        )
    return prompts
