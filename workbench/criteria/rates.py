"""What a detector does on test prompts, by family, with intervals."""

import numpy as np

from workbench.criteria import statistics
from workbench.criteria.thresholds import tpr_at_fpr
from workbench.errors import CriterionError


def measures_on(
    values: np.ndarray,
    unsafe: np.ndarray,
    *,
    family: np.ndarray,
    pairs: np.ndarray,
    threshold: float,
    bootstrap: int = 1000,
    seed: int = 0,
) -> list[dict]:
    """Detection and false-positive rates, AUROC and TPR at fixed FPR of any detector, as rows for a table.

    Args:
        values: [prompt], larger = more unsafe; a prompt is flagged where its value exceeds the threshold.
        unsafe: [prompt].
        family: [prompt], strings; empty where there is none.
        pairs: [prompt], pair ids, empty where a prompt has no twin; the bootstrap keeps pairs together.
        threshold: In the values' unit.
        bootstrap: Resamples behind the intervals of AUROC and TPR.
        seed: Theirs.

    Returns:
        Dicts of measure, family, value, ci_low, ci_high, n; the measures are explained at `detection_table`.

    Raises:
        CriterionError: If there are no safe or no unsafe prompts, or a value is NaN.
    """
    if not unsafe.any() or unsafe.all() or np.isnan(values).any():
        raise CriterionError(
            f"Measuring detection takes safe and unsafe prompts with values; got {int(unsafe.sum())} unsafe, "
            f"{int((~unsafe).sum())} safe, and {int(np.isnan(values).sum())} without a value."
        )
    rows: list[tuple] = []
    interval: tuple
    for measure, side in (("detection_rate", unsafe), ("false_positive_rate", ~unsafe)):
        for name in ("all", *sorted(set(family[side]) - {""})):
            flagged = values[side & ((family == name) | (name == "all"))] > threshold
            interval = statistics.rate_interval(flagged.sum(), len(flagged))
            rows.append((measure, name, flagged.mean(), *interval, len(flagged)))
    for name in ("all", *sorted(set(family[unsafe]) - {""})):
        attack, twins = unsafe & ((family == name) | (name == "all")), ~unsafe & (family == name)
        benign = {"auroc": ~unsafe} | ({"auroc_matched": twins} if name != "all" and twins.any() else {})
        for measure, against in benign.items():
            of = attack | against
            area = statistics.auroc(values[of][:, None], attack[of])[0]
            interval = statistics.auroc_interval(values[of], attack[of], pairs[of], resamples=bootstrap, seed=seed)
            rows.append((measure, name, area, *interval, of.sum()))
    for percent in (1, 5):
        rate = tpr_at_fpr(values[unsafe], values[~unsafe], percent / 100)
        interval = _tpr_interval(values, unsafe, pairs, percent / 100, bootstrap, seed)
        rows.append((f"tpr_at_fpr_{percent}", "all", rate, *interval, len(values)))
    return [
        {"measure": m, "family": name, "value": float(v), "ci_low": float(low), "ci_high": float(high), "n": int(n)}
        for m, name, v, low, high, n in rows
    ]


def resampled_thresholds(safe: np.ndarray, weights: np.ndarray, fpr: float) -> np.ndarray:
    """`fpr_threshold` of the safe values that each resample draws, [resample]; `weights` are [resample, prompt]."""
    largest_first = np.argsort(-safe, kind="stable")
    above = np.cumsum(weights[:, largest_first], axis=1)
    allowed = np.floor(fpr * len(safe) + 1e-9)
    return np.asarray(safe[largest_first][np.argmax(above > allowed, axis=1)])


def _tpr_interval(
    values: np.ndarray, unsafe: np.ndarray, pairs: np.ndarray, fpr: float, bootstrap: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Bootstrap interval of `tpr_at_fpr`: each resample sets its own threshold."""
    weights = statistics.bootstrap_weights(unsafe, pairs, resamples=bootstrap, seed=seed)
    thresholds = resampled_thresholds(values[~unsafe], weights[:, ~unsafe], fpr)
    caught = weights[:, unsafe] * (values[unsafe] > thresholds[:, None])
    return statistics.percentile_interval(caught.sum(1) / int(unsafe.sum()))
