"""What a detector does on test prompts, by family, with intervals."""

import numpy as np

from workbench.criteria import statistics
from workbench.criteria.thresholds import tpr_at_fpr
from workbench.errors import CriterionError

Number = float | np.ndarray  # a scalar, of Python or of numpy


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
    flagged = values > threshold
    rows = []
    for measure, side in (("detection_rate", unsafe), ("false_positive_rate", ~unsafe)):
        for name in ("all", *_families(family[side])):
            of = side & _in_family(family, name)
            low, high = statistics.rate_interval(flagged[of].sum(), of.sum())
            rows.append(_row(measure, name, flagged[of].mean(), low, high, of.sum()))
    for name in ("all", *_families(family[unsafe])):
        attack = unsafe & _in_family(family, name)
        rows.append(_area("auroc", name, values, attack, ~unsafe, pairs, bootstrap, seed))
        twins = ~unsafe & (family == name)
        if name != "all" and twins.any():
            rows.append(_area("auroc_matched", name, values, attack, twins, pairs, bootstrap, seed))
    for percent in (1, 5):
        rate = tpr_at_fpr(values[unsafe], values[~unsafe], percent / 100)
        interval = _tpr_interval(values, unsafe, pairs, percent / 100, bootstrap, seed)
        rows.append(_row(f"tpr_at_fpr_{percent}", "all", rate, *interval, len(values)))
    return rows


def _families(family: np.ndarray) -> list[str]:
    return sorted(set(family) - {""})


def _in_family(family: np.ndarray, name: str) -> np.ndarray:
    return np.ones(len(family), dtype=bool) if name == "all" else family == name


def _row(measure: str, family: str, value: Number, low: Number, high: Number, n: Number) -> dict:
    return {
        "measure": measure,
        "family": family,
        "value": float(value),
        "ci_low": float(low),
        "ci_high": float(high),
        "n": int(n),
    }


def _area(
    measure: str,
    family: str,
    values: np.ndarray,
    attack: np.ndarray,
    benign: np.ndarray,
    pairs: np.ndarray,
    bootstrap: int,
    seed: int,
) -> dict:
    of = attack | benign
    area = statistics.auroc(values[of][:, None], attack[of])[0]
    low, high = statistics.auroc_interval(values[of], attack[of], pairs[of], resamples=bootstrap, seed=seed)
    return _row(measure, family, area, low, high, of.sum())


def _tpr_interval(
    values: np.ndarray, unsafe: np.ndarray, pairs: np.ndarray, fpr: float, bootstrap: int, seed: int
) -> tuple[float, float]:
    """Bootstrap interval of `tpr_at_fpr`: each resample sets its own threshold."""
    weights = statistics.bootstrap_weights(unsafe, pairs, resamples=bootstrap, seed=seed)
    largest_first = np.argsort(-values[~unsafe], kind="stable")
    above = np.cumsum(weights[:, ~unsafe][:, largest_first], axis=1)
    allowed = np.floor(fpr * int((~unsafe).sum()) + 1e-9)
    thresholds = values[~unsafe][largest_first][np.argmax(above > allowed, axis=1)]
    caught = weights[:, unsafe] * (values[unsafe] > thresholds[:, None])
    low, high = statistics.percentile_interval(caught.sum(1) / int(unsafe.sum()))
    return float(low), float(high)
