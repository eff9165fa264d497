"""Two of the rules that rank heads, on bare arrays, for the engines that have to choose while they run.

The same rules as `workbench.criteria.rules` has for tables: sensitivity is the mean over unsafe prompts; selectivity
is that minus the mean over safe ones, among heads whose safe mean is under the 80th percentile of all heads (Oh
Defense, Eq. 6 and released code).
"""

import numpy as np

RULES = ("selectivity", "sensitivity")
SAFE_PERCENTILE = 80.0
# Who is under the bound is itself an estimate while heads are screened, so the screen's bound is a little wider.
SCREEN_PERCENTILE = 84.0
GROUPS = 4


def rule_values(
    cells: np.ndarray,
    unsafe: np.ndarray,
    rule: str,
    *,
    percentile: float = SAFE_PERCENTILE,
    estimate: np.ndarray | None = None,
) -> np.ndarray:
    """Value of the rule, `[projection, layer, head]`, from `[prompt, projection, layer, head]`.

    Minus infinity for heads that the rule leaves out, NaN for heads that were not computed on every prompt. Without
    prompts of both classes every rule is the mean over all. A `percentile` of 100 leaves none out. With `estimate`
    (same axes as `cells`) the bound is that of all heads, by estimates where nothing else is known.
    """
    if unsafe.all() or not unsafe.any():
        return cells.mean(0, dtype=np.float64)
    high = cells[unsafe].mean(0, dtype=np.float64)
    if rule == "sensitivity":
        return high
    low = cells[~unsafe].mean(0, dtype=np.float64)
    bound = np.nanpercentile(safe_levels(cells, unsafe, estimate), percentile, axis=(1, 2), keepdims=True)
    keeps = (low < bound) | (percentile >= 100) | np.isnan(low)
    return np.where(keeps, high - low, -np.inf)


def safe_levels(cells: np.ndarray, unsafe: np.ndarray, estimate: np.ndarray | None = None) -> np.ndarray:
    """What is known of each head's mean over safe prompts, `[projection, layer, head]`; NaN where nothing is.

    Of a head that was computed on some prompts, the mean over those; of one that was not computed, that of its
    `estimate`, calibrated.
    """
    levels = _mean(cells[~unsafe])
    if estimate is None:
        return levels
    return np.where(np.isnan(levels), calibration(cells, estimate) * _mean(estimate[~unsafe]), levels)


def calibration(exact: np.ndarray, estimate: np.ndarray) -> np.ndarray:
    """What to multiply estimates with to bring them to the exact ones' scale, `[projection, layer, head]`.

    Estimates of large changes are too small (they are linear); how much so is read off the cells known both ways, in a
    few groups of like size, and is nothing for a change of nothing.
    """
    one, other = _mean(exact), _mean(np.where(np.isnan(exact), np.nan, estimate))
    factor = np.ones(exact.shape[1:])
    for number, sizes_here in enumerate(_mean(estimate)):
        known = other[number] > 0
        by_size = np.argsort(other[number][known])
        groups = [group for group in np.array_split(by_size, GROUPS) if len(group)]
        sizes = [float(np.median(other[number][known][group])) for group in groups]
        factors = [float(np.median((one[number] / other[number])[known][group])) for group in groups]
        factor[number] = np.interp(sizes_here, [0.0, *sizes], [1.0, *factors])
    return factor


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over the prompts that have a value; NaN without any."""
    count = (~np.isnan(values)).sum(0)
    return np.where(count == 0, np.nan, np.nansum(values, 0, dtype=np.float64) / np.maximum(count, 1))


def best_cells(values: np.ndarray, k: int) -> list[tuple[int, int]]:
    """The k (layer, head) with the largest values, best first; ties go to the lower layer, then the lower head."""
    flat = np.where(np.isfinite(values), values, -np.inf).ravel()
    order = np.argsort(-flat, kind="stable")[:k]
    return [(int(i) // values.shape[1], int(i) % values.shape[1]) for i in order if np.isfinite(flat[i])]
