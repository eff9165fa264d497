"""What every picture of a trace draws, in numbers: means over pairs with intervals, and maps with their scales.

The matplotlib figures, the tables beside them and the explorer's panel only draw what these return.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from workbench.criteria.statistics import bootstrap_weights, percentile_interval
from workbench.errors import FigureError
from workbench.tracing.records import ALL, COMPONENTS, DIRECTIONS, HEADS
from workbench.views import theme
from workbench.views.charts import Scale, scale

RESAMPLES = 1000
CELLS_AT_ONCE = 4096  # of which all redraws are held: 32 MB
WORDS = {
    "recovered": "share of the way to the twin's final state",
    "deflection": "angle by which the final state turns (degrees)",
    "kl": "KL(before || after) (nats)",
    "refusal_change": "refusal log-odds, after − before",
    "top1_change": "first token of the reply changes (share of pairs)",
    "left": "distance to the twin's final state (state units)",
}
TITLES = {"residual": "residual stream", "attention": "attention", "mlp": "MLP", HEADS: "single heads (z)"}
DIRECTION_WORDS = {"noise": "unsafe prompt, patched from safe", "denoise": "safe prompt, patched from unsafe"}


def means(trace: xr.Dataset, name: str, *, resamples: int = RESAMPLES, seed: int = 0) -> pd.DataFrame:
    """A variable's mean over the pairs that have it, tidy: its other dimensions, and `value`, `ci_low`, `ci_high`, `n`.

    Args:
        trace: From `wb.trace`.
        name: Of a variable with numbers for every pair.
        resamples: Redraws of the pairs, for the 95 % interval; 0 for none.
        seed: Of them.
    """
    if name not in trace.data_vars or trace[name].dtype.kind != "f" or trace[name].dims[0] != "pair":
        have = ", ".join(n for n in map(str, trace.data_vars) if trace[n].dtype.kind == "f")
        raise FigureError(f"The trace has no {name!r}; it has {have}. Trace again with the components that are wanted.")
    array = trace[name]
    values = array.values.reshape(array.sizes["pair"], -1).astype(np.float64)
    known = np.isfinite(values)
    filled, n = np.where(known, values, 0.0), known.sum(0)
    everyone = np.ones(len(values), dtype=bool)
    alone = np.full(len(values), "", dtype=object)
    weights = bootstrap_weights(everyone, alone, resamples=resamples, seed=seed)
    ends = np.full((2, len(n)), np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = np.where(n > 0, filled.sum(0) / n, np.nan)
        for some in np.array_split(np.arange(len(n)), -(-len(n) // CELLS_AT_ONCE)) if resamples else ():
            drawn = (weights @ filled[:, some]) / (weights @ known[:, some])
            whole = np.isfinite(drawn).all(0)  # where few pairs have the group, some redraws have none of them
            ends[:, some[whole]] = percentile_interval(drawn[:, whole])
    others = array.dims[1:]
    index = pd.MultiIndex.from_product(
        [array.coords[d].values if d in array.coords else range(array.sizes[d]) for d in others]
    )
    table = index.to_frame(index=False, name=list(others))
    return table.assign(value=value, ci_low=ends[0], ci_high=ends[1], n=n)


@dataclass(frozen=True)
class Map:
    """One map of a trace.

    Attributes:
        cells: `[layer, column]`, NaN where nothing was computed.
        columns: Names of the columns: token groups, or heads.
        across: What they are.
        scale: Of the colours.
        title: What is patched.
        unit: What is shown.
    """

    cells: np.ndarray
    columns: tuple[str, ...]
    across: str
    scale: Scale
    title: str
    unit: str


def flow_map(
    trace: xr.Dataset, component: str, *, value: str = "recovered", direction: str = "noise", group: str = ALL
) -> Map:
    """Layers × token groups of a component, or layers × heads for single heads at one group of tokens.

    Args:
        trace: From `wb.trace`.
        component: "residual", "attention", "mlp" or "heads".
        value: Of the measures: "recovered", "deflection", "kl", "refusal_change", "top1_change" or "left".
        direction: "noise" or "denoise".
        group: For "heads", the tokens at which they are patched.

    Raises:
        FigureError: For what the trace does not have.
    """
    for words, given, known in (
        ("component", component, (*COMPONENTS, HEADS)),
        ("value", value, tuple(WORDS)),
        ("direction", direction, DIRECTIONS),
        ("group", group, tuple(trace["token_group"].values) if "token_group" in trace.coords else ()),
    ):
        if given not in known:
            raise FigureError(f"The {words} of a trace's map is one of {', '.join(map(str, known))}; got {given!r}.")
    of_heads = component == HEADS
    name = f"{'head' if of_heads else 'patch'}_{value}"
    if name not in trace or (not of_heads and component not in trace["component"].values):
        raise FigureError(
            f"The trace has no {component}: it was not asked for. Trace again with components={component!r}."
        )
    table = means(trace, name, resamples=0)
    table = table[table["direction"] == direction]
    table = table[table["token_group"] == group] if of_heads else table[table["component"] == component]
    across = "head" if of_heads else "token_group"
    cells = table.pivot(index="layer", columns=across, values="value")
    columns = trace[across].values.tolist()
    cells = cells.reindex(columns=columns)
    if not of_heads:
        cells = cells[[c for c in columns if cells[c].notna().any()]]
    return Map(
        cells.to_numpy(float),
        tuple(map(str, cells.columns)),
        "head" if of_heads else "tokens patched",
        scale_of(cells.to_numpy(float), value),
        TITLES[component],
        WORDS[value],
    )


def scale_of(cells: np.ndarray, value: str) -> Scale:
    """Shares from nothing to all, wider only where they go beyond; other measures over their own range."""
    seen = cells[np.isfinite(cells)]
    if value not in ("recovered", "top1_change") or not seen.size:
        return scale(cells, column="difference" if value == "refusal_change" else "unsafe")
    high = max(1.0, float(seen.max()))
    if seen.min() < -0.1:
        high = max(high, float(-seen.min()))
        return Scale(-high, high, theme.DIVERGING)
    return Scale(0.0, high, theme.SEQUENTIAL)


def cut_lines(trace: xr.Dataset, *, value: str = "refusal_change", side: str = "unsafe") -> pd.DataFrame:
    """What cutting each flow does, window by window: `flow`, `window` (its first layer), and means over pairs."""
    table = means(trace, f"cut_{value}")
    return table[(table["side"] == side) & (table["n"] > 0)].reset_index(drop=True)


def lens_lines(trace: xr.Dataset, *, value: str = "refusal") -> pd.DataFrame:
    """What the residual stream says after each layer: `side`, `layer`, and means over pairs."""
    table = means(trace, f"lens_{value}")
    return table[table["n"] > 0].reset_index(drop=True)


def first_cells(trace: xr.Dataset, k: int = 10) -> pd.DataFrame:
    """The patches that bring the final state nearest to the twin's, whole streams left out, for a page or a terminal.

    Returns:
        component, layer, head (−1 where there is none), token_group, direction, value, ci_low, ci_high, n.
    """
    parts: list[Any] = []
    if "patch_recovered" in trace:
        table = means(trace, "patch_recovered")
        parts.append(table[table["component"] != "residual"].assign(head=-1))
    if "head_recovered" in trace:
        parts.append(means(trace, "head_recovered").assign(component=HEADS))
    if not parts:
        parts.append(means(trace, "patch_recovered").assign(head=-1))
    table = pd.concat(parts, ignore_index=True)
    table = table[(table["token_group"] != ALL) & (table["value"] > 0)]
    order = ["component", "layer", "head", "token_group", "direction", "value", "ci_low", "ci_high", "n"]
    return table.sort_values("value", ascending=False, kind="stable").head(k)[order].reset_index(drop=True)
