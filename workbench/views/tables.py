"""Score tables as text: the top heads for a terminal (rich) and for a notebook (HTML, everything escaped)."""

import numpy as np
import pandas as pd
from rich import box
from rich.markup import escape
from rich.table import Table

from workbench.views import theme


def top_heads_table(tops: pd.DataFrame, *, title: str = "Top heads") -> Table:
    """Tables of `wb.top_heads`, concatenated, as one: a row a rank, a column a (criterion, projection, rule).

    Args:
        tops: Columns `criterion, rule, projection, layer, head, value`, best first within each group.
    """
    table = Table(
        title=title, title_justify="left", title_style="bold", header_style="", box=box.SIMPLE_HEAD, pad_edge=False
    )
    table.add_column("", justify="right", style="dim")
    groups = list(tops.groupby(["criterion", "projection", "rule"], sort=False))
    for (criterion, projection, rule), _ in groups:
        masked = theme.projection_words(projection)
        words = [theme.title(criterion), masked or "no mask", str(rule)]
        table.add_column("\n".join(escape(w) for w in words), justify="left", no_wrap=True)
    depth = max((len(group) for _, group in groups), default=0)
    for rank in range(depth):
        table.add_row(str(rank + 1), *(_cell(group, rank) for _, group in groups))
    return table


def _cell(group: pd.DataFrame, rank: int) -> str:
    if rank >= len(group):
        return ""
    row = group.iloc[[rank]]
    return f"[bold]{theme.names(row)[0]}[/bold] {number(float(row['value'].iloc[0]))}"


def frame_table(frame: pd.DataFrame, *, title: str = "") -> Table:
    """Any small data frame as a rich table: numbers right-aligned to three digits, NaN as a dash, text escaped."""
    table = Table(
        title=escape(title) or None, title_justify="left", title_style="bold", header_style="", box=box.SIMPLE_HEAD
    )
    numeric = {c for c in frame.columns if pd.api.types.is_float_dtype(frame[c])}
    for column in frame.columns:
        table.add_column(escape(str(column)), justify="right" if column in numeric else "left")
    for row in frame.itertuples(index=False):
        cells = (number(v) if c in numeric else escape(str(v)) for c, v in zip(frame.columns, row, strict=True))
        table.add_row(*cells)
    return table


def html_table(frame: pd.DataFrame) -> str:
    """A small data frame as an HTML table for a notebook; every cell and column name is escaped."""
    shown = frame.map(lambda value: number(float(value)) if isinstance(value, float | np.floating) else str(value))
    with pd.option_context("display.max_colwidth", None):
        return shown.to_html(index=False, border=0, classes="wb-table", escape=True)


def number(value: float) -> str:
    """Three significant digits; a dash for NaN, which means not computed."""
    if not np.isfinite(value):
        return "–" if np.isnan(value) else ("∞" if value > 0 else "−∞")
    size = f"{abs(value):.3g}" if abs(value) < 1000 else f"{abs(value):.0f}"
    return f"−{size}" if value < 0 else size
