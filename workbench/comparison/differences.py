"""Is one detector better than another, or than chance? Paired, on the same test prompts, corrected for all comparisons.

Decisions at the detectors' own thresholds are compared by McNemar's exact test on the prompts that one decides rightly
and the other wrongly; AUROC, against all safe prompts and against those of the same family, by the bootstrap that both
share (normal approximation); and AUROC against chance by shuffling labels, pairs kept together. p-values are corrected
by Holm's method, all comparisons of a measure together.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from workbench.comparison.entrants import Entrant
from workbench.comparison.measures import Field
from workbench.criteria import statistics

COLUMNS = ("detector", "other", "measure", "difference", "ci_low", "ci_high", "p_value", "p_corrected", "comparisons")
CHANCE = "chance"
PERMUTATIONS = 2000


def difference_table(
    entered: Sequence[Entrant], field: Field, pairs: Sequence[tuple[str, Entrant, Entrant]] | None = None
) -> pd.DataFrame:
    """Every detector against chance and against every other one, on all test prompts.

    Detectors that draw for every prompt are compared by their first draw.

    Args:
        entered: The detectors, with their values.
        field: The test prompts.
        pairs: The ingredient that two detectors differ in, and the two; in place of all pairs.

    Returns:
        One row a pair × measure: with `pairs`, `ingredient`; detector, other (`chance`, or a detector), measure,
        `difference` (detector − other; AUROC − 0.5 against chance; `accuracy_kde` is the share of prompts decided
        rightly) with its 95 % interval, p_value, p_corrected (Holm), and how many `comparisons` it was corrected for.
    """
    unsafe = field.unsafe
    drawn = {e.key: field.areas(e.values[0]) for e in entered}
    rows: list[dict] = []
    ranks = np.array([_ranks(e.values[0]) for e in entered]).T
    shuffles = statistics.shuffled_labels(
        unsafe, field.pairs, permutations=PERMUTATIONS, seed=field.seed, contents=field.contents
    )
    chance = statistics.permutation_p(ranks, unsafe, shuffles)
    for entrant, p in zip(entered, chance, strict=True):
        area, samples = drawn[entrant.key][0, 0], drawn[entrant.key][0, 1:]
        rows.append(_row(entrant.key, CHANCE, "auroc", area - 0.5, statistics.percentile_interval(samples - 0.5), p))
    asked = [("", a, b) for a, b in combinations(entered, 2)] if pairs is None else pairs
    for ingredient, a, b in asked:
        about = {} if pairs is None else {"ingredient": ingredient}
        for measure, samples in zip(("auroc", "auroc_matched"), drawn[a.key] - drawn[b.key], strict=True):
            if np.isnan(samples[0]):
                continue  # no family holds both labels
            difference, samples = samples[0], samples[1:][np.isfinite(samples[1:])]
            interval = statistics.percentile_interval(samples)
            rows.append(about | _row(a.key, b.key, measure, difference, interval, _normal_p(difference, samples)))
        one, two = ((e.flagged[0] == unsafe).astype(float) for e in (a, b))
        interval = statistics.percentile_interval((field.weights * (one - two)).mean(1))
        rows.append(about | _row(a.key, b.key, "accuracy_kde", (one - two).mean(), interval, mcnemar(one, two)))
    table = pd.DataFrame(rows, columns=list(COLUMNS) if pairs is None else ["ingredient", *COLUMNS])
    for _, of in table.groupby([table["measure"], table["other"] == CHANCE]):
        table.loc[of.index, "p_corrected"] = holm(of["p_value"].to_numpy())
        table.loc[of.index, "comparisons"] = int(of["p_value"].notna().sum())
    return table.astype({"comparisons": int})


def differences_of(table: pd.DataFrame) -> pd.DataFrame:
    """The differences that `arena` found, as `difference_table` gives them."""
    found = table.attrs.get("differences", [])
    return pd.DataFrame(found) if found else pd.DataFrame(columns=list(COLUMNS))


def _row(detector: str, other: str, measure: str, difference: float, interval: Sequence, p: float) -> dict:
    low, high = (float(end) for end in interval)
    found = {"detector": detector, "other": other, "measure": measure, "difference": float(difference)}
    return {**found, "ci_low": low, "ci_high": high, "p_value": float(p)}


def _ranks(values: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata

    return np.asarray(rankdata(values))


def _normal_p(difference: float, samples: np.ndarray) -> float:
    """Two-sided p-value of a difference from its resamples; NaN without any, 1 where nothing differs."""
    from scipy.stats import norm

    if not len(samples):
        return float("nan")
    spread = float(samples.std())
    if spread == 0:
        return 1.0 if difference == 0 else 0.0
    return float(2 * norm.sf(abs(difference) / spread))


def mcnemar(one: np.ndarray, two: np.ndarray) -> float:
    """Two-sided exact p-value that two decisions on the same prompts are made as often; 1 where none differs."""
    from scipy.stats import binomtest

    more, differ = int(((one == 1) & (two == 0)).sum()), int((one != two).sum())
    return float(binomtest(more, differ).pvalue) if differ else 1.0


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's step-down correction of p-values for having looked at all of them; NaN stays, and does not count."""
    corrected, tested = np.full(p.shape, np.nan), np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    steps = np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1))
    corrected[order] = np.minimum(steps, 1)
    return corrected


def tested(rows: Sequence[Mapping[str, Any] | Sequence] | pd.DataFrame) -> pd.DataFrame:
    """Tests (`test`, `p_value`) with `p_corrected`, by Holm's method over all of them; NaN does not count."""
    table = pd.DataFrame(rows, columns=["test", "p_value"])
    return table.assign(p_corrected=holm(table["p_value"].to_numpy(dtype=np.float64)))
