"""Two of the rules that rank heads, on bare arrays, for the engines that have to choose while they run.

The same rules as `workbench.criteria.rules` has for tables: sensitivity is the mean over unsafe prompts; selectivity
is that minus the mean over safe ones, among heads whose safe mean is under the 80th percentile of all heads (Oh
Defense, Eq. 6 and released code).
"""

import numpy as np
import pandas as pd
import xarray as xr

from workbench.errors import RunError

RULES = ("selectivity", "sensitivity")
SAFE_PERCENTILE = 80.0
# Who is under the bound is itself an estimate while heads are screened, so the screen's bound is a little wider.
SCREEN_PERCENTILE = 84.0


def rule_values(cells: np.ndarray, unsafe: np.ndarray, rule: str, *, percentile: float = SAFE_PERCENTILE) -> np.ndarray:
    """Value of the rule, `[projection, layer, head]`, from `[prompt, projection, layer, head]`.

    Minus infinity for heads that the rule leaves out, NaN for heads that were not computed. Without prompts of both
    classes every rule is the mean over all. A `percentile` of 100 leaves none out.
    """
    if unsafe.all() or not unsafe.any():
        return cells.mean(0, dtype=np.float64)
    high = cells[unsafe].mean(0, dtype=np.float64)
    if rule == "sensitivity":
        return high
    low = cells[~unsafe].mean(0, dtype=np.float64)
    bound = np.nanpercentile(low, percentile, axis=(1, 2), keepdims=True)
    keeps = (low < bound) | (percentile >= 100) | np.isnan(low)
    return np.where(keeps, high - low, -np.inf)


def completed(exact: np.ndarray, estimate: np.ndarray) -> np.ndarray:
    """Exact cells where there are any, estimates elsewhere, brought to the exact ones' scale head by head.

    Estimates of large changes are too small (they are linear); how much so is read off the heads known both ways, in
    a few groups of like size, and is nothing for a change of nothing. `[prompt, projection, layer, head]`.
    """
    known = ~np.isnan(exact).any(0)
    filled = np.where(known, exact, estimate).astype(np.float64)
    for number in range(exact.shape[1]):
        at = known[number]
        one, other = exact[:, number, at].mean(0, dtype=float), estimate[:, number, at].mean(0, dtype=float)
        order = np.argsort(other)
        groups = [g for g in np.array_split(order[other[order] > 0], 4) if len(g)]
        sizes = [0.0, *(float(np.median(other[g])) for g in groups)]
        factors = [1.0, *(float(np.median(one[g] / other[g])) for g in groups)]
        factor = np.interp(estimate[:, number].mean(0), sizes, factors)
        filled[:, number, ~at] = (factor * estimate[:, number])[:, ~at]
    return filled


def best_cells(values: np.ndarray, k: int) -> list[tuple[int, int]]:
    """The k (layer, head) with the largest values, best first; ties go to the lower layer, then the lower head."""
    flat = np.where(np.isfinite(values), values, -np.inf).ravel()
    order = np.argsort(-flat, kind="stable")[:k]
    return [(int(i) // values.shape[1], int(i) % values.shape[1]) for i in order if np.isfinite(flat[i])]


def sketched_top(
    run: xr.Dataset, projection: str, k: int = 5, *, by: str = "deflection", rule: str = "selectivity"
) -> pd.DataFrame:
    """The k best heads of a sketched run: ranked by exact values, the safe bound taken from estimates where need be.

    Returns: columns layer, head, value (exact), estimate; best first.
    Raises: RunError if the run has no estimates.
    """
    if f"{by}_estimate" not in run:
        raise RunError(f"This run has no {by}_estimate; sweep with engine='sketch' first.")
    unsafe = run.label.values.astype(str) == "unsafe"
    estimate = run[f"{by}_estimate"].sel(projection=[projection]).values
    exact = run[by].sel(projection=[projection]).values
    known = ~np.isnan(exact[0, 0])
    value = rule_values(completed(exact, estimate), unsafe, rule)[0]
    rows = best_cells(np.where(known, value, -np.inf), k)
    guess = rule_values(estimate, unsafe, rule, percentile=100)[0]
    columns = [(layer, head, value[layer, head], guess[layer, head]) for layer, head in rows]
    return pd.DataFrame(columns, columns=["layer", "head", "value", "estimate"])
