"""What every picture draws, in numbers: matrices with scales and ticks, densities, bounds, the heads that rules choose.

Each back end (matplotlib for files, plotly for notebooks, the browser in the explorer) only draws what these return.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from workbench.axes import Head, as_heads, head_name, head_pairs
from workbench.checking import plainly
from workbench.criteria import get_criterion
from workbench.criteria.ranking import ranked, scored_rows
from workbench.criteria.registry import TRAINED
from workbench.criteria.rules import SAFE_PERCENTILE
from workbench.errors import FigureError
from workbench.views import theme


def usual_criteria(run: xr.Dataset) -> tuple[str, ...]:
    """Of deflection, ships and the probe: those that the run has values for; the probe where torch can train it."""
    there = [get_criterion(name) for name in ("deflection", "ships", "probe")]
    torch = find_spec("torch") is not None
    return tuple(c.name for c in there if set(c.needs) <= set(run.data_vars) and (torch or c.kind != TRAINED))


def grid(scores: pd.DataFrame, *, criterion: str, projection: str, column: str) -> np.ndarray:
    """One column of a score table as [layer, head]; a head without a row is NaN, which means not computed."""
    chosen = scores[(scores["criterion"] == criterion) & (scores["projection"] == projection)]
    cells = np.full((int(scores["layer"].max()) + 1, int(scores["head"].max()) + 1), np.nan)
    cells[chosen["layer"].to_numpy(int), chosen["head"].to_numpy(int)] = chosen[column].to_numpy(float)
    return cells


def projection_of(scores: pd.DataFrame, criterion: str, projection: str, *, strict: bool = True) -> str:
    """The asked projection, or `none` for a criterion that masks no head.

    Raises: FigureError where the table has neither; not `strict`, the first projection that it has is taken.
    """
    have = list(dict.fromkeys(scores.loc[scores["criterion"] == criterion, "projection"]))
    if not have:
        known = ", ".join(dict.fromkeys(scores["criterion"]))
        raise FigureError(
            f"The score table has no criterion {criterion!r}; it has {known}. Add it with wb.score(run, criteria=…)."
        )
    if projection in have:
        return projection
    if have == ["none"] or not strict:
        return have[0]
    raise FigureError(
        f"{criterion} was not computed for the projection {projection!r}; this table has {', '.join(have)}."
    )


# Scales and ticks


class Scale(NamedTuple):
    """The ends of a colour scale and the name of its map; a signed scale has "no difference" in the middle.

    Attributes:
        log: Equal ratios get equal steps: for measures of which a few heads have very much and most have little.
    """

    low: float
    high: float
    colours: str
    log: bool = False

    @property
    def signed(self) -> bool:
        return self.colours == theme.DIVERGING

    def share(self, value: float) -> float:
        """How far along the scale a value lies, 0 to 1."""
        low, high, value = np.log((self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return float((value - low) / (high - low))

    @property
    def ticks(self) -> list[float]:
        """Where a colour bar of this scale has its numbers."""
        return log_ticks(self.low, self.high) if self.log else linear_ticks(self.low, self.high, most=4)


def scale(cells: np.ndarray, *, column: str = "unsafe") -> Scale:
    """Over the data's own range, logarithmic where that is wide; signed data get the same distance either side."""
    seen = cells[np.isfinite(cells)]
    if column == "auroc":
        reach = max(np.abs(seen - 0.5), default=0.5) or 0.5
        return Scale(0.5 - float(reach), 0.5 + float(reach), theme.DIVERGING)
    if seen.size == 0:
        return Scale(0.0, 1.0, theme.SEQUENTIAL)
    low, high = float(seen.min()), float(seen.max())
    if column in ("difference", "effect_size") or low < 0:
        reach = max(-low, high) or 0.5
        return Scale(-reach, reach, theme.DIVERGING)
    if high <= low:
        return Scale(low - 0.5, high + 0.5, theme.SEQUENTIAL)
    return Scale(low, high, theme.SEQUENTIAL, log=wide(seen))


def wide(values: np.ndarray) -> bool:
    """Whether a linear axis would press most of these positive values into its first tenth."""
    seen = values[np.isfinite(values)]
    return bool(seen.size and seen.min() > 0 and seen.max() > 10 * np.median(seen))


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between two positive ends; powers of ten alone where that is more than seven."""
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    fine = [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]
    coarse = [tick for tick in fine if np.isclose(np.log10(tick) % 1, 0) or np.isclose(np.log10(tick) % 1, 1)]
    return fine if len(fine) <= 7 or len(coarse) < 2 else coarse


def linear_ticks(low: float, high: float, *, most: int) -> list[float]:
    """Multiples of 1, 2, 2.5 or 5 times a power of ten between two ends, about `most` of them."""
    rough = (high - low) / most
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))
    return [float(n * step) for n in range(int(np.ceil(low / step)), int(np.floor(high / step)) + 1)]


def tick_label(value: float) -> str:
    """A tick in few letters: `0.5`, `20`, `1e-5`."""
    return f"{value:.0e}".replace("e-0", "e-") if 0 < abs(value) < 0.001 else f"{value:.6g}"


def steps(count: int) -> list[int]:
    """Ticks of layers or heads: 0, k, 2k, … with at most nine of them."""
    return list(range(0, count, next(k for k in (1, 2, 4, 8, 16, 32, 64, 128, 256) if count <= 9 * k)))


# What a rule chooses


@dataclass(frozen=True)
class Picks:
    """What two rules choose for one criterion and projection.

    Attributes:
        selective: Heads kept by the published selectivity rule, best first.
        sensitive: The head that moves most on unsafe prompts: the decoy, where it is not selective as well.
        bound: 80th percentile over heads of the mean on safe prompts, in the criterion's unit; the rule keeps heads
            below it. NaN where the rule keeps none, or the bound is no single value of that unit.
        refused: Why the selectivity rule keeps no head; empty where it keeps one.
        asked: Whether `selective` are heads that were asked for, in the place of the rule's.
    """

    selective: tuple[Head, ...]
    sensitive: Head | None
    bound: float
    refused: str = ""
    asked: bool = False

    @property
    def why(self) -> str:
        """`picked by selectivity, best first`, or that the heads were asked for."""
        return "as asked for" if self.asked else "picked by selectivity, best first"


def picks(
    scores: pd.DataFrame, *, criterion: str, projection: str, k: int = 5, heads: Sequence[Head] | None = None
) -> Picks:
    """The selectivity rule's best `k` heads or fewer, the sensitivity rule's best one, and the bound.

    With `heads`, those are named in place of what the rules choose.

    Raises: FigureError for heads that the table does not have.
    """
    where = {"criterion": criterion, "projection": projection}
    sensitive, _ = rule_heads(scores, **where, rule="sensitivity", k=1)
    selective, refused = rule_heads(scores, **where, rule="selectivity", k=k)
    bound = float("nan")
    # A criterion that ranks by another strength than its value (a change that is more negative) has no such line; nor
    # has a run of some heads only, whose bound is that of all heads and leans on estimates.
    if selective and "safe_rank" not in scores:
        safe = grid(scores, **where, column="safe")
        if np.array_equal(get_criterion(criterion).strength(safe), safe, equal_nan=True):
            bound = float(np.nanpercentile(safe, SAFE_PERCENTILE))
    if heads is not None:
        return Picks(checked_heads(scores, heads), None, bound, asked=True)
    return Picks(selective, sensitive[0] if sensitive else None, bound, refused)


def checked_heads(scores: pd.DataFrame, heads: Sequence[Head]) -> tuple[Head, ...]:
    """Heads as (layer, head). Raises: FigureError for what is no head of the table."""
    try:
        asked = tuple(as_heads(heads))
    except ValueError as error:
        raise FigureError(f"What is named in a figure {error}; got {plainly(heads)}.") from error
    layers, per_layer = int(scores["layer"].max()) + 1, int(scores["head"].max()) + 1
    if beyond := [head for head in asked if head[0] >= layers or head[1] >= per_layer]:
        raise FigureError(
            f"The table has layers 0..{layers - 1} of {per_layer} heads, and no {head_name(*beyond[0])} to name."
        )
    return asked


def rule_heads(
    scores: pd.DataFrame, *, criterion: str, projection: str, rule: str, k: int
) -> tuple[tuple[Head, ...], str]:
    """The rule's best `k` heads, best first (fewer, if it keeps fewer), and why there is none where there is none."""
    record = theme.record(criterion)
    if record is None or rule not in record.rules:
        return (), f"{rule} has no meaning for {theme.title(criterion)}"
    rows, _ = scored_rows(scores, record, projection)
    kept = ranked(rows, record, rule).head(k)
    if kept.empty:
        return (), f"no head passes {rule} under {theme.title(criterion)}"
    return tuple(head_pairs(kept)), ""


# Charts


@dataclass(frozen=True, repr=False)
class HeadMap:
    """A layer × head map.

    Attributes:
        cells: [layer, head], in `unit`; NaN is not computed.
        column: Of the score table.
    """

    cells: np.ndarray
    scale: Scale
    title: str
    unit: str
    column: str

    @property
    def gaps(self) -> bool:
        """Whether cells are so large that a gap parts them."""
        return gapped(self.cells)


def gapped(cells: np.ndarray) -> bool:
    """Whether the cells of a map are so large that a gap parts them."""
    return max(cells.shape) <= 16


def head_map(scores: pd.DataFrame, *, criterion: str, projection: str, column: str = "unsafe") -> HeadMap:
    """The map of one column of a score table (one of `theme.COLUMN_WORDS`).

    Raises: FigureError for a criterion, projection or column that the table does not have.
    """
    shown = projection_of(scores, criterion, projection)
    if column not in theme.COLUMN_WORDS or column not in scores:
        have = ", ".join(c for c in theme.COLUMN_WORDS if c in scores)
        raise FigureError(f"A heat map shows one of the columns {have}; got {column!r}.")
    cells = grid(scores, criterion=criterion, projection=shown, column=column)
    words = {"title": theme.heading(criterion, shown), "unit": theme.unit(criterion, column)}
    return HeadMap(cells, scale(cells, column=column), **words, column=column)


class Limits(NamedTuple):
    """The ends of an axis on which heads lie, and its ticks where it is logarithmic."""

    low: float
    high: float
    log: bool = False

    @property
    def ticks(self) -> list[float]:
        return log_ticks(self.low, self.high)


def limits(*points: np.ndarray) -> Limits:
    """Ends that suit the points: from 0 where none is negative, logarithmic where they are spread wide."""
    seen = np.concatenate([np.ravel(part) for part in points])
    seen = seen[np.isfinite(seen)]
    low, high = (seen.min(), seen.max()) if seen.size else (0.0, 1.0)
    if wide(seen):
        return Limits(low / 1.3, high * 1.5, log=True)
    room = 0.06 * (high - low) or 1.0
    return Limits(0.0 if low >= 0 else low - room, high + room)


@dataclass(frozen=True, repr=False)
class Cloud:
    """One point a head, by its mean on safe prompts (`x`, [layer, head]) and on unsafe prompts (`y`).

    Attributes:
        interval: [2, layer, head], 95 % of where the mean on unsafe prompts would lie with the mean on safe ones where
            it is: the interval of their difference, from `x` up. NaN where the table has none.
    """

    x: np.ndarray
    y: np.ndarray
    heads: tuple[Head, ...]
    limits: Limits
    picks: Picks
    words: tuple[str, str]
    interval: np.ndarray

    @property
    def named(self) -> dict[Head, str]:
        """The colour of each head that is named: the picks, and the head that moves most."""
        found = dict.fromkeys(self.picks.selective, theme.LABEL_COLOURS["unsafe"])
        return found | {h: theme.INK for h in (self.picks.sensitive,) if h and h not in found}


def cloud(scores: pd.DataFrame, *, criterion: str, projection: str, chosen: Picks | None = None) -> Cloud:
    """Every head by its means on safe and unsafe prompts, with what the rules choose (or is `chosen` already)."""
    where = {"criterion": criterion, "projection": projection}
    x, y = (grid(scores, **where, column=column) for column in ("safe", "unsafe"))
    known = np.isfinite(x) & np.isfinite(y)
    heads = tuple((int(layer), int(head)) for layer, head in np.argwhere(known))
    chosen = chosen or picks(scores, criterion=criterion, projection=projection)
    safe, unsafe = (f"mean over {label} prompts ({theme.unit(criterion)})" for label in ("safe", "unsafe"))
    ends = [
        grid(scores, **where, column=column) if column in scores else x * np.nan for column in ("ci_low", "ci_high")
    ]
    return Cloud(x, y, heads, limits(x[known], y[known]), chosen, (safe, unsafe), x + np.array(ends))
