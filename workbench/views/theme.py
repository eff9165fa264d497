"""How every picture looks: colours, sizes, and the words and units on axes.

Paper figures (`paper.py`) and screen figures (`interactive.py`) read the same tables, so a head that is
vermilion on the screen is vermilion in print. Nothing here imports a plotting library.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

from workbench.axes import head_name
from workbench.criteria.registry import Criterion, list_criteria

COLUMN_INCHES = 3.3
DOUBLE_INCHES = 6.9

# Okabe and Ito's palette, which stays apart for the common kinds of colour blindness.
LABEL_COLOURS = {"unsafe": "#D55E00", "safe": "#0072B2"}
PICKED, NEUTRAL, QUIET, INK = "#111111", "#6F7D8A", "#C8C8C8", "#333333"

# The same name in matplotlib and (case apart) in plotly.
SEQUENTIAL, DIVERGING = "viridis", "RdBu_r"

COLUMN_WORDS = {
    "unsafe": "unsafe",
    "safe": "safe",
    "difference": "unsafe − safe",
    "auroc": "AUROC",
    "effect_size": "effect size",
}


def title(criterion: str) -> str:
    """The criterion in words, as its record has them; one that is not registered is shown under its own name."""
    known = record(criterion)
    return known.label if known else criterion.replace("_", " ").capitalize()


def short_title(criterion: str) -> str:
    """The title without what stands in brackets."""
    return title(criterion).split(" (")[0]


def unit(criterion: str, column: str = "unsafe") -> str:
    """The unit of one column of a score table, in words fit for an axis."""
    if column == "auroc":
        return "AUROC"
    if column == "effect_size":
        return "standard deviations"
    known = record(criterion)
    return (known.unit if known else "") or "no unit"


def record(criterion: str) -> Criterion | None:
    """What the registry knows about a criterion; None for one that only a given score table has."""
    return next((known for known in list_criteria() if known.name == criterion), None)


def grid(scores: pd.DataFrame, *, criterion: str, projection: str, column: str) -> np.ndarray:
    """One column of a score table as [layer, head]; a head without a row is NaN, which means not computed."""
    chosen = scores[(scores["criterion"] == criterion) & (scores["projection"] == projection)]
    cells = np.full((int(scores["layer"].max()) + 1, int(scores["head"].max()) + 1), np.nan)
    cells[chosen["layer"].to_numpy(int), chosen["head"].to_numpy(int)] = chosen[column].to_numpy(float)
    return cells


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
        return self.colours == DIVERGING

    def share(self, value: float) -> float:
        """How far along the scale a value lies, 0 to 1."""
        low, high, value = np.log((self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return float((value - low) / (high - low))


def scale(cells: np.ndarray, *, column: str = "unsafe") -> Scale:
    """Over the data's own range, logarithmic where that is wide; signed data get the same distance either side."""
    if column == "auroc":
        return Scale(0.0, 1.0, DIVERGING)
    seen = cells[np.isfinite(cells)]
    if seen.size == 0:
        return Scale(0.0, 1.0, SEQUENTIAL)
    low, high = float(seen.min()), float(seen.max())
    if column in ("difference", "effect_size") or low < 0:
        reach = max(-low, high) or 0.5
        return Scale(-reach, reach, DIVERGING)
    if high <= low:
        return Scale(low - 0.5, high + 0.5, SEQUENTIAL)
    return Scale(low, high, SEQUENTIAL, log=wide(seen))


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


def tick_label(value: float) -> str:
    """A tick in few letters: `0.5`, `20`, `1e-5`."""
    return f"{value:.0e}".replace("e-0", "e-") if 0 < abs(value) < 0.001 else f"{value:.6g}"


def projection_words(projection: str) -> str:
    """`query masked`, `value masked`, or nothing for a criterion that masks no head."""
    return "" if projection == "none" else f"{projection} masked"


def names(table: pd.DataFrame) -> list[str]:
    """`L3H6` for every row of a table with `layer` and `head`."""
    return [head_name(layer, head) for layer, head in zip(table["layer"], table["head"], strict=True)]
