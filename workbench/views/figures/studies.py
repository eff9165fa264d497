"""The figures of studies: intervals as dots or along a line, and matrices, from tidy tables, at the size of a page."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

from workbench.views import charts, theme
from workbench.views.figures.pages import Sheet
from workbench.views.figures.panels import colour_bar, heat_map
from workbench.views.figures.save import write_figure
from workbench.views.figures.style import house_style

# Okabe and Ito's palette, dark ones first, and a marker each, so that series stay apart in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#333333", "#E69F00", "#56B4E9", "#6F7D8A")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
MOST_NUMBERS = 24  # rows, and columns of all panels, up to which a matrix shows its numbers
WRAP = 4  # panels side by side
LITERAL = {"parse_math": False}  # names of families, models and policies are shown as they are


def write(figure: Figure, file: Path) -> Path:
    """Write a study's figure; the same figure and library versions give the same bytes."""
    with house_style():
        figure.draw_without_rendering()
        write_figure(figure, file)
    return file


def dots(
    table: pd.DataFrame,
    *,
    rows: str,
    x: str,
    series: str = "",
    panels: str = "",
    line: float | None = None,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """A row a category, a dot a series, with its interval (`value`, `ci_low`, `ci_high`); panels side by side.

    Args:
        table: Tidy.
        rows: The column that names rows.
        x: Words on the axis of values.
        series: The column that tells dots of a row apart.
        panels: The column that tells panels apart.
        line: A value to mark, such as chance.
        limits: Ends of the axis.
    """
    with house_style():
        named, kinds = _order(table, rows), _order(table, series)
        shown = _order(table, panels)
        height = 0.55 + max(0.13 * len(named) * max(1, len(kinds)) ** 0.7, 0.16 * len(named))
        figure, axes = _panels(shown, height, share_y=True)
        for ax, panel in zip(axes, shown, strict=True):
            part = table if not panels else table[table[panels] == panel]
            for number, kind in enumerate(kinds):
                of = part if not series else part[part[series] == kind]
                at = of[rows].map({name: i for i, name in enumerate(named)}).to_numpy(float)
                at = at + (number - (len(kinds) - 1) / 2) * 0.7 / max(1, len(kinds))
                _whiskers(ax, of, at, number, label=str(kind), upright=False)
            if line is not None:
                ax.axvline(line, color=theme.QUIET, linewidth=0.7, zorder=1)
            ax.set_yticks(range(len(named)), labels=[str(n) for n in named], **LITERAL)
            ax.set_ylim(len(named) - 0.4, -0.6)
            ax.set_xlabel(x)
            _dress(ax, str(panel) if panels else "", limits=limits)
        _legend(figure, axes, kinds, series)
    return figure


def lines(
    table: pd.DataFrame,
    *,
    x: str,
    x_words: str,
    y_words: str,
    series: str = "",
    panels: str = "",
    line: float | None = None,
    limits: tuple[float, float] | None = None,
    log: bool = False,
) -> Figure:
    """Values along a number, a line a series, with intervals (`value`, `ci_low`, `ci_high`); panels side by side.

    Args:
        table: Tidy; `x` holds numbers, or names, which then stand in the order of the table.
        x: The column across.
        x_words: Words on that axis.
        y_words: Words on the other.
        series: The column that tells lines apart.
        panels: The column that tells panels apart.
        line: A value to mark, such as chance.
        limits: Ends of the upright axis.
        log: Whether equal ratios across get equal steps.
    """
    with house_style():
        kinds, shown = _order(table, series), _order(table, panels)
        numbers = pd.api.types.is_numeric_dtype(table[x])
        alike = not panels or table.groupby(panels)[x].nunique().nunique() == 1
        figure, axes = _panels(shown, 1.75, share_y=True, share_x=alike and numbers)
        for ax, panel in zip(axes, shown, strict=True):
            part = table if not panels else table[table[panels] == panel]
            places = _order(part, x)
            at = {p: float(p) if numbers else float(i) for i, p in enumerate(places)}
            step = 0.0 if log or len(places) < 2 else 0.06 * min(np.diff(sorted(at.values())))
            for number, kind in enumerate(kinds):
                of = part if not series else part[part[series] == kind]
                if of.empty:
                    continue
                shift = (number - (len(kinds) - 1) / 2) * step
                where = of[x].map(at).to_numpy(float) + shift
                ax.plot(where, of["value"], color=_colour(str(kind), number), linewidth=0.8, zorder=2)
                _whiskers(ax, of, where, number, label=str(kind), upright=True)
            if line is not None:
                ax.axhline(line, color=theme.QUIET, linewidth=0.7, zorder=1)
            if log:
                ax.set_xscale("log")
            if len(places) <= 9 or not numbers:
                ax.xaxis.set_major_locator(FixedLocator([at[p] for p in places]))
                words = [f"{p:g}" if numbers else str(p) for p in places]
                long = max(map(len, words)) > 4
                ax.set_xticks([at[p] for p in places], labels=words, rotation=90 if long else 0, **LITERAL)
                ax.xaxis.set_minor_locator(NullLocator())
                ax.xaxis.set_minor_formatter(NullFormatter())
            ax.set_xlabel(x_words)
            _dress(ax, str(panel) if panels else "", limits=None)
            if limits is not None:
                ax.set_ylim(*limits)
        for ax in axes[::WRAP]:
            ax.set_ylabel(y_words)
        _legend(figure, axes, kinds, series)
    return figure


def matrix(
    table: pd.DataFrame,
    *,
    rows: str,
    columns: str,
    words: Mapping[str, str],
    low: float,
    high: float,
    panels: str = "",
    signed: bool = False,
) -> Figure:
    """One square matrix a panel: `value` of every pair of row and column, with its number.

    Args:
        table: Tidy.
        rows: The column that names rows.
        columns: The column that names columns.
        words: `rows`, `columns` and `value`: words on the axes and the colour bar.
        low: The lowest end of the colour scale.
        high: The highest.
        panels: The column that tells panels apart.
        signed: Whether the middle of the scale is no difference.
    """
    with house_style():
        shown, down, across = _order(table, panels), _order(table, rows), _order(table, columns)
        side = 0.75 + 0.24 * len(down)
        figure, axes = _panels(shown, side, share_y=True, wide=len(across) * len(shown) > 6)
        for ax, panel in zip(axes, shown, strict=True):
            part = table if not panels else table[table[panels] == panel]
            cells = part.pivot_table(index=rows, columns=columns, values="value", aggfunc="first", dropna=False)
            cells = cells.reindex(index=down, columns=across).to_numpy(float)
            scale = charts.Scale(low, high, theme.DIVERGING if signed else theme.SEQUENTIAL)
            mesh = heat_map(ax, cells, scale=scale)
            ax.set(
                aspect="auto", ylim=(len(down) - 0.5, -0.5)
            )  # the first row above, in panels that share the axis too
            turned = (
                {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
                if max(map(len, map(str, across))) > 4
                else {}
            )
            ax.set_xticks(range(len(across)), labels=[str(a) for a in across], **turned, **LITERAL)
            ax.set_yticks(range(len(down)), labels=[str(d) for d in down], **LITERAL)
            ax.set_xlabel(words["columns"])
            ax.set_title(str(panel) if panels else "", **LITERAL)
            if max(len(down), len(across) * len(shown)) <= MOST_NUMBERS:
                _numbers(ax, cells, scale)
        axes[0].set_ylabel(words["rows"])
        colour_bar(figure, mesh, list(axes), label=words["value"])
    return figure


def _numbers(ax: Axes, cells: np.ndarray, scale: charts.Scale) -> None:
    size = ax.xaxis.get_ticklabels()[0].get_fontsize()
    for (row, column), value in np.ndenumerate(cells):
        if np.isfinite(value):
            share = min(max(scale.share(float(value)), 0.0), 1.0)
            ink = theme.shades(scale.colours, [share])[0][1]
            words = f"{value:.2f}".replace("-", "−")
            ax.text(column, row, words, ha="center", va="center", fontsize=size, color=ink)


def _panels(
    shown: Sequence, height: float, *, share_y: bool, share_x: bool = False, wide: bool | None = None
) -> tuple[Figure, list[Axes]]:
    down = -(-len(shown) // WRAP)
    across = min(len(shown), WRAP)
    double = len(shown) > 1 if wide is None else wide
    own, inches = ("page", theme.DOUBLE_INCHES) if double else ("column", theme.COLUMN_INCHES)
    figure = Sheet().figure(own, (min(height, 8.5) * down + 0.2) / inches)
    grid = figure.subplots(down, across, sharey=share_y, sharex=share_x, squeeze=False)
    axes = list(grid.ravel())
    for spare in axes[len(shown) :]:
        spare.set_visible(False)
    return figure, axes[: len(shown)]


def _whiskers(ax: Axes, of: pd.DataFrame, at: np.ndarray, number: int, *, label: str, upright: bool) -> None:
    """Dots with their intervals; a value without one is a dot alone."""
    value = of["value"].to_numpy(float)
    low, high = (of[name].to_numpy(float) for name in ("ci_low", "ci_high"))
    reach = np.abs(np.stack([np.where(np.isfinite(end), value - end, 0.0) for end in (low, high)]))
    look = {
        "fmt": next(m for i, m in enumerate(cycle(MARKERS)) if i == number),
        "color": _colour(label, number),
        "markersize": 3,
        "elinewidth": 0.7,
        "capsize": 0,
        "linestyle": "none",
        "label": label,
        "zorder": 3,
    }
    if upright:
        ax.errorbar(at, value, yerr=reach, **look)
    else:
        ax.errorbar(value, at, xerr=reach, **look)


def _colour(label: str, number: int) -> str:
    """The label's own colour for safe and unsafe; else the next of the palette."""
    return {**theme.PRINT_COLOURS, "benign": theme.PRINT_COLOURS["safe"]}.get(label, COLOURS[number % len(COLOURS)])


def _dress(ax: Axes, title: str, *, limits: tuple[float, float] | None) -> None:
    if limits is not None:
        ax.set_xlim(*limits)
    ax.set_title(title, **LITERAL)
    ax.spines[["top", "right"]].set_visible(False)


def _legend(figure: Figure, axes: Sequence[Axes], kinds: Sequence, series: str) -> None:
    if not series or len(kinds) < 2:
        return
    found: dict[str, Any] = {}
    for ax in axes:
        found |= {label: handle for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    named = [str(kind) for kind in kinds if str(kind) in found]
    double = figure.get_figwidth() > theme.COLUMN_INCHES + 1
    legend = figure.legend(
        [found[name] for name in named],
        named,
        loc="outside upper center",
        ncols=min(len(named), 6 if double else 3),
        handletextpad=0.2,
        columnspacing=0.9,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _order(table: pd.DataFrame, column: str) -> list:
    """The values of a column in the order in which they first come; one empty name without a column."""
    return list(dict.fromkeys(table[column])) if column else [""]
