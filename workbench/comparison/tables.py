"""The tables of `workbench compare` and `detect`, for the terminal."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table
from rich.text import Text

from workbench.axes import head_name
from workbench.plain import plain

CELL = ("value", "ci_low", "ci_high")
LEFT_OUT = {"detection_rate": "detection rate", "auroc": "AUROC pooled", "auroc_matched": "AUROC matched"}


def _table(title: str, names: Iterable[str], rows: Iterable[Iterable[object]], *, left: int) -> Table:
    """A table whose first `left` columns are words and the others numbers; every cell is shown as it is."""
    out = Table(title=title, title_justify="left")
    for number, name in enumerate(names):
        out.add_column(Text(plain(name)), justify="left" if number < left else "right", overflow="fold")
    for row in rows:
        out.add_row(*(Text(plain(cell)) for cell in row))
    return out


def _cell(row: pd.DataFrame, percent: bool) -> str:
    """A value and its interval; the value alone where there is no interval, and nothing where there is no value."""
    if row.empty:
        return ""
    numbers = [100 * float(row.iloc[0][name]) if percent else float(row.iloc[0][name]) for name in CELL]
    value, low, high = (f"{number:.0f}" if percent else f"{number:.2f}" for number in numbers)
    return f"{value} ({low}–{high})" if np.isfinite(numbers).all() else value


def ingredients_table(differences: pd.DataFrame) -> Table:
    """What each ingredient adds: matched AUROC where there is one, else the pooled one."""
    measure = "auroc_matched" if (differences["measure"] == "auroc_matched").any() else "auroc"
    kind = "matched" if measure == "auroc_matched" else "pooled"
    rows = [
        [row.ingredient, *_apart(row.detector, row.other), _difference(row), f"{row.p_corrected:.2g}"]
        for row in differences[differences["measure"] == measure].itertuples()
    ]
    names = ("ingredient", "instead of", "of", "difference", "p")
    return _table(f"What each ingredient adds to AUROC, {kind} (paired bootstrap, p corrected)", names, rows, left=3)


def _apart(detector: str, other: str) -> tuple[str, str]:
    """What two detectors of a grid differ in, as `a − b`, and what they have in common."""
    one, two = (_options(key) for key in (detector, other))
    differ = [f"{one.get(name, '–')} − {two.get(name, '–')}" for name in one | two if one.get(name) != two.get(name)]
    return ", ".join(differ), ", ".join(f"{name} {value}" for name, value in one.items() if two.get(name) == value)


def _options(key: str) -> dict[str, str]:
    """The options in a detector's key; one head where it does not say how many, and the probe for SAHs."""
    name, *options = key.split(":")
    known = dict(option.partition("=")[::2] for option in options)
    measure = {"criterion": "probe"} if name == "sahs" else {}
    return measure | known | {"k": known.get("k", "1")}


def _difference(row: Any) -> str:
    return f"{row.difference:+.2f} ({row.ci_low:+.2f} to {row.ci_high:+.2f})"


def measures_table(measures: pd.DataFrame) -> Table:
    """A detector's measures, as `workbench.detectors.evaluate` gives them."""
    rows = [
        [row.measure.replace("_", " "), row.family, f"{row.value:.3f}", f"{row.ci_low:.3f}–{row.ci_high:.3f}", row.n]
        for row in measures.itertuples()
    ]
    return _table("On test prompts", ("measure", "family", "value", "95 % interval", "prompts"), rows, left=2)


def graded_table(graded: pd.DataFrame) -> Table:
    """Graded scores, as `workbench.detectors.graded_scores` gives them."""
    rows = [
        [row.label, row.family, row.category, row.n, f"{100 * row.flagged:.0f} %"]
        + [f"{100 * row.low:.0f}–{100 * row.high:.0f} %"]
        + [f"{value:.3g}" for value in (row.score_25, row.score_50, row.score_75)]
        for row in graded.itertuples()
    ]
    names = ("label", "family", "category", "prompts", "flagged", "95 % interval", "25 %", "median", "75 %")
    return _table("Graded scores (quartiles), by family and category", names, rows, left=3)


def left_out_table(table: pd.DataFrame) -> Table:
    """What a head detects of a family that neither its choice nor its threshold has seen, family by family."""
    rows = []
    for family, of in table.groupby("held_out", sort=False):
        mine = of[of["family"] == (family or "all")]
        cells = [_cell(mine[mine["measure"] == m], m == "detection_rate") for m in LEFT_OUT]
        rows.append([family or "none", head_name(of.iloc[0]["layer"], of.iloc[0]["head"]), *cells])
    title = "Leaving one attack family out of selection and threshold"
    return _table(title, ("family left out", "head", *LEFT_OUT.values()), rows, left=5)
