"""How every picture looks: colours, sizes, and the words and units on axes. Numbers to draw come from `charts`."""

from collections.abc import Sequence

import pandas as pd

from workbench.axes import head_name
from workbench.criteria.registry import Criterion, list_criteria
from workbench.plain import plain

COLUMN_INCHES = 3.3
DOUBLE_INCHES = 6.9

# Okabe and Ito's palette, which stays apart for the common kinds of colour blindness.
LABEL_COLOURS = {"unsafe": "#D55E00", "safe": "#0072B2"}
# On paper safe is darker, so that the two stay apart in greyscale; on a dark screen it would be lost.
PRINT_COLOURS = LABEL_COLOURS | {"safe": "#00406B"}
PICKED, NEUTRAL, QUIET, INK = "#111111", "#6F7D8A", "#C8C8C8", "#333333"

# Series of one chart on a screen, apart for colour-blind readers and from a white ground as from a black one.
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

# Names of matplotlib's colour maps; the other back ends get their colours from `shades`.
SEQUENTIAL, DIVERGING = "viridis", "RdBu_r"

COLUMN_WORDS = {
    "unsafe": "unsafe",
    "safe": "safe",
    "difference": "unsafe − safe",
    "auroc": "AUROC",
    "effect_size": "effect size",
}
_COLUMN_UNITS = {"auroc": "AUROC", "effect_size": "standard deviations"}


def shades(colours: str, shares: Sequence[float]) -> list[tuple[str, str]]:
    """Colour and ink (white on dark, dark on light) at each share, 0 to 1, of a colour map."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    found = []
    for red, green, blue, _ in (colormaps[colours](float(share)) for share in shares):
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
        found.append((to_hex((red, green, blue)), "#fff" if dark else "#111"))
    return found


def record(criterion: str) -> Criterion | None:
    """What the registry knows about a criterion; None for one that only a given score table has."""
    return next((known for known in list_criteria() if known.name == criterion), None)


def title(criterion: str) -> str:
    """The criterion in words, as its record has them; one that is not registered is shown under its own name."""
    known = record(criterion)
    return known.label if known else plain(criterion).replace("_", " ").capitalize()


def short_title(criterion: str) -> str:
    """The title without what stands in brackets."""
    return title(criterion).split(" (")[0]


def in_a_sentence(words: str) -> str:
    """A title as it stands within a sentence: names keep their capitals."""
    return words if words.startswith(("Jensen", "Ships", "AUROC")) else words[:1].lower() + words[1:]


def unit(criterion: str, column: str = "unsafe") -> str:
    """The unit of one column of a score table, in words fit for an axis."""
    known = record(criterion)
    return _COLUMN_UNITS.get(column) or (known.unit if known else "") or "no unit"


def axis(criterion: str) -> str:
    """`Deflection angle (degrees)`."""
    return f"{title(criterion)} ({unit(criterion)})"


def projection_words(projection: str) -> str:
    """`query masked`, `value masked`, or nothing for a criterion that masks no head."""
    return "" if projection == "none" else f"{plain(projection)} masked"


def heading(criterion: str, projection: str) -> str:
    """`Deflection angle, query masked`."""
    return ", ".join(words for words in (title(criterion), projection_words(projection)) if words)


def names(table: pd.DataFrame) -> list[str]:
    """`L3H6` for every row of a table with `layer` and `head`."""
    return [head_name(layer, head) for layer, head in zip(table["layer"], table["head"], strict=True)]
