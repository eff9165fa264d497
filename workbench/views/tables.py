"""Tables for a terminal (rich), at whatever width: the top heads of scores, found heads, any small data frame."""

import textwrap
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from rich import box, markup
from rich.cells import cell_len
from rich.console import Group
from rich.table import Column, Table
from rich.text import Text

from workbench.plain import plain
from workbench.views import theme

_HEADER = 14  # letters of a line in a header, where its words are so short
_SENTENCE = 28  # letters above which a cell is wrapped
_LOOK: dict[str, Any] = {
    "title_justify": "left",
    "title_style": "bold",
    "header_style": "",
    "box": box.SIMPLE_HEAD,
}


def escape(text: object) -> str:
    """Words of others for a rich table: no markup, no control characters."""
    return markup.escape(plain(text, keep="\n"))


def fitted(table: Table, width: int) -> list[Table]:
    """A table as it is, if it has room; else in several, each with its first columns: no number is cut, no word broken.

    Args:
        table: Leading columns that are not right-aligned name its rows, and stand in every part.
        width: Of the terminal, in letters.
    """
    columns = [_unbroken(column) for column in table.columns]
    _, right, _, left = table.padding
    needed = [wide + left + right + (table.box is not None) for _, wide in columns]
    named = next((i for i, (column, _) in enumerate(columns) if column.justify == "right"), len(columns))
    keys = max(1, named if sum(needed[:named]) <= width / 2 else 1)
    width -= 1  # the edge
    parts, room = [list(range(keys))], width - sum(needed[:keys])
    for i in range(keys, len(columns)):
        if needed[i] > room and len(parts[-1]) > keys:
            parts.append(list(range(keys)))
            room = width - sum(needed[:keys])
        parts[-1].append(i)
        room -= needed[i]
    found: list[Table] = []
    for part in parts:
        one = copy(table)
        one.columns = [replace(columns[i][0], _index=place) for place, i in enumerate(part)]
        one.title = None if found else table.title
        found.append(one)
    return found


def _unbroken(column: Column) -> tuple[Column, int]:
    """A column that breaks no word, and the letters it needs at least: sentences are wrapped, all else is not."""
    header, *cells = (_lines(cell) for cell in (column.header, *column.cells))
    widest = max((cell_len(line) for cell in cells for line in cell), default=0)
    if len(header) == 1:  # a header of several words stands over its numbers in as many lines
        header = textwrap.wrap(header[0], max(widest, _HEADER), break_long_words=False) or [""]
    over = max(map(cell_len, header))
    if widest <= _SENTENCE:
        return replace(column, header=Text("\n".join(header)), no_wrap=True), max(widest, over)
    return replace(column, overflow="fold"), max(_SENTENCE, over)


def _lines(cell: Any) -> list[str]:
    return (cell.plain if isinstance(cell, Text) else Text.from_markup(str(cell)).plain).splitlines() or [""]


def top_heads_table(tops: pd.DataFrame, *, title: str = "Top heads", width: int = 80) -> Group:
    """Tables of `wb.top_heads`, concatenated, side by side: a row a rank, a column a (criterion, projection, rule).

    Args:
        tops: Columns `criterion, rule, projection, layer, head, value, stability`, best first within each group. Beside
            each value stands in what share of redraws of the prompts the head is among the first k.
        title: Above the first table.
        width: Of the terminal, in letters. What does not fit stands in a further table: no number is cut.
    """
    table = Table(title=Text(plain(title)), pad_edge=False, **_LOOK)
    table.add_column("", justify="right", style="dim")
    groups = [group for _, group in tops.groupby(["criterion", "projection", "rule"], sort=False)]
    for group in groups:
        criterion, projection, rule = group[["criterion", "projection", "rule"]].iloc[0]
        words = (theme.title(criterion), theme.projection_words(projection) or "no mask", str(rule))
        lines = [line for part in words for line in textwrap.wrap(plain(part), _HEADER, break_long_words=False)]
        table.add_column(Text("\n".join(lines)))
    for rank in range(max(map(len, groups))):
        table.add_row(str(rank + 1), *(_cell(group, rank) if rank < len(group) else "" for group in groups))
    return Group(*fitted(table, width))


def _cell(group: pd.DataFrame, rank: int) -> Text:
    row = group.iloc[[rank]]
    cell = Text.assemble((theme.names(row)[0], "bold"), " ", number(float(row["value"].iloc[0])))
    if "stability" in row and np.isfinite(row["stability"].iloc[0]):
        cell.append(f" {row['stability'].iloc[0]:.0%}", "dim")
    return cell


SHOWN = 12  # heads of a projection that are possible and shown, at most


def found_table(found: pd.DataFrame) -> Table:
    """The table of `wb.find_heads` for a terminal: certain heads, then the first of the possible ones."""
    first = found.iloc[0]
    title = f"{theme.title(first['criterion'])}, {first['rule']}"
    table = Table(title=escape(title), **_LOOK)
    for name in ("projection", "head", "status"):
        table.add_column(name)
    for name in ("value", "interval", "in redraws"):
        table.add_column(name, justify="right")
    for projection, mine in found.groupby("projection", sort=False):
        for status, style in (("certain", "bold"), ("possible", "")):
            part = mine[mine["status"] == status]
            for row, name in zip(part[:SHOWN].itertuples(), theme.names(part[:SHOWN]), strict=True):
                interval = f"{number(row.ci_low)} to {number(row.ci_high)}" if row.ci_low < row.ci_high else "exact"
                cells = (str(projection), name, status, number(row.value), interval, f"{row.stability:.0%}")
                table.add_row(*cells, style=style)
            if len(part) > SHOWN:
                table.add_row(str(projection), f"{len(part) - SHOWN} more", status, "", "", "", style="dim")
        left = int((mine["status"] == "excluded").sum())
        table.add_row(str(projection), f"{left} heads", "excluded", "", "", "", style="dim")
    return table


def frame_table(frame: pd.DataFrame, *, title: str = "") -> Table:
    """Any small data frame as a rich table: numbers right-aligned to three digits, NaN as a dash, text escaped."""
    table = Table(title=escape(title) or None, **_LOOK)
    numeric = {c for c in frame.columns if pd.api.types.is_float_dtype(frame[c])}
    for column in frame.columns:
        table.add_column(escape(column), justify="right" if column in numeric else "left")
    for row in frame.itertuples(index=False):
        cells = (number(v) if c in numeric else escape(v) for c, v in zip(frame.columns, row, strict=True))
        table.add_row(*cells)
    return table


def number(value: float) -> str:
    """Three significant digits; a dash for NaN, which means not computed."""
    if not np.isfinite(value):
        return "–" if np.isnan(value) else ("∞" if value > 0 else "−∞")
    size = f"{abs(value):.3g}" if abs(value) < 1000 else f"{abs(value):.0f}"
    return f"−{size}" if value < 0 else size
