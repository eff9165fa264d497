"""Pictures of one panel, each drawn on the Axes it is given and returned: they keep the user's matplotlib settings.

`workbench.plot` hands them out; the pages of `save_figures` are made of the same panels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from workbench.axes import Head
from workbench.runs.reading import RunLike, as_run
from workbench.views import charts, distributions, rankings, theme
from workbench.views.charts import Picks
from workbench.views.figures.panels import colour_bar, head_axes, head_cloud, heat_map, name_points, outline
from workbench.views.figures.style import literal

_LITERAL = {"parse_math": False}  # names of criteria and projections are shown as they are, dollars included

_STATUS_LOOKS: dict[str, dict[str, Any]] = {
    "certain": {"color": theme.INK},
    "possible": {"facecolors": "white", "edgecolors": theme.INK, "linewidths": 0.8},
    "excluded": {"color": theme.NEUTRAL, "marker": "x", "linewidths": 0.8},
    "": {"color": theme.INK},
}


def new_axes(ax: Axes | None) -> Axes:
    """The Axes given, or those of a new figure of the user's."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt  # its backend is the user's; whoever hands in an Axes needs none

    return plt.subplots(layout="constrained")[1]


def _label(ax: Axes, *, title: str = "", xlabel: str = "", ylabel: str = "") -> None:
    for name, words in (("title", title), ("xlabel", xlabel), ("ylabel", ylabel)):
        getattr(ax, f"set_{name}")(literal(words), **_LITERAL)


def _tick_size(ax: Axes) -> float:
    return float(ax.xaxis.get_ticklabels()[0].get_fontsize())


def maps(
    scores: pd.DataFrame,
    *,
    criterion: str,
    projection: str,
    value: str = "unsafe",
    heads: Sequence[Head] = (),
    ax: Axes | None = None,
) -> Axes:
    """One layer × head map with its colour bar; layer 0 is at the bottom, heads that were not computed are hatched.

    Args:
        scores: From `wb.score`.
        criterion: Which rows.
        projection: Which rows; a criterion without masks is drawn whatever the projection.
        value: `"unsafe"`, `"safe"`, `"difference"`, `"auroc"` or `"effect_size"`.
        heads: (layer, head) or names of heads to frame.
        ax: Where to draw; a new figure without it.

    Raises:
        FigureError: For a criterion, projection, value or head that the table does not have.
    """
    chart = charts.head_map(scores, criterion=criterion, projection=projection, column=value)
    framed = charts.checked_heads(scores, heads)
    ax = new_axes(ax)
    mesh = heat_map(ax, chart.cells, scale=chart.scale)
    outline(ax, framed, small=not chart.gaps)
    _label(ax, title=chart.title, xlabel="head", ylabel="layer")
    words = theme.COLUMN_WORDS[value]
    colour_bar(ax.figure, mesh, ax, label=words if words == chart.unit else f"{words} ({chart.unit})")
    return ax


def selectivity(
    scores: pd.DataFrame,
    *,
    criterion: str,
    projection: str,
    heads: Sequence[Head] | None = None,
    picks: Picks | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Every head by its mean on safe prompts (across) and unsafe prompts (up), with the rule's bound and its picks.

    A bar through a named head is the 95 % interval of its difference, from the mean on safe prompts up.

    Args:
        scores: From `wb.score`.
        criterion: One with a value on safe prompts.
        projection: Which rows.
        heads: (layer, head) or names of heads to name, in place of what the rules choose.
        picks: What the rules choose, where that is known already.
        ax: Where to draw; a new figure without it.

    Raises:
        FigureError: For a criterion, projection or head that the table does not have.
    """
    shown = charts.projection_of(scores, criterion, projection)
    if picks is None:
        picks = charts.picks(scores, criterion=criterion, projection=shown, heads=heads)
    chart = charts.cloud(scores, criterion=criterion, projection=shown, chosen=picks)
    ax = new_axes(ax)
    head_cloud(ax, chart.x, chart.y, colour=theme.NEUTRAL)
    _label(ax, title=theme.heading(criterion, shown), xlabel=chart.words[0], ylabel=chart.words[1])
    head_axes(ax, chart.limits)
    for head, colour in chart.named.items():
        ends = chart.interval[:, head[0], head[1]]
        if np.isfinite(ends).all():
            ax.vlines(chart.x[head], *ends.clip(chart.limits.low), color=colour, linewidth=0.8, alpha=0.6, zorder=2)
    bound, avoid = chart.picks.bound, []
    if np.isfinite(bound):
        shade = {"color": theme.LABEL_COLOURS["unsafe"], "alpha": 0.07, "linewidth": 0, "zorder": 0}
        ax.axvspan(ax.get_xlim()[0], bound, **shade)
        ax.axvline(bound, color=theme.INK, linewidth=0.6, linestyle=(0, (4, 2)), zorder=1)
        # Below the diagonal, where heads are few: at the top stands the name of the head that moves most.
        side = "left" if bound < np.mean(ax.get_xlim()) else "right"
        place = {"transform": ax.get_xaxis_transform(), "fontsize": _tick_size(ax), "va": "bottom", "ha": side}
        avoid = [ax.text(bound, 0.01, " 80th percentile over heads ", **place)]
    name_points(ax, chart.named, chart.x, chart.y, avoid=avoid)
    return ax


def agreement(scores: pd.DataFrame, *, chart: rankings.Agreement | None = None, ax: Axes | None = None) -> Axes:
    """Spearman's rank correlation over heads between every two rankings by what moves most on unsafe prompts.

    Args:
        scores: From `wb.score`; criteria that are not registered are left out.
        chart: What is drawn, where that is known already.
        ax: Where to draw; a new figure without it.

    Raises:
        CriterionError: If the table has fewer than two rankings.
    """
    chart = chart or rankings.agreement(scores)
    words = [literal(", ".join(part for part in name if part)) for name in chart.names]
    lines = [word.replace(", ", ",\n") if chart.few else word for word in words]
    ax = new_axes(ax)
    mesh = heat_map(ax, chart.cells, scale=charts.Scale(-1.0, 1.0, theme.DIVERGING))
    ax.set_aspect("auto")  # leaves the room to the words
    ax.invert_yaxis()
    turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if chart.few else {"rotation": 90}
    ax.set_xticks(range(len(words)), labels=words, **turned, **_LITERAL)
    ax.set_yticks(range(len(words)), labels=lines, **_LITERAL)
    for (row, col), value in np.ndenumerate(chart.cells if chart.few else chart.cells[:0]):
        if np.isfinite(value):
            ink = "white" if abs(value) > 0.6 else theme.INK
            look = {"ha": "center", "va": "center", "fontsize": _tick_size(ax), "color": ink}
            ax.text(col, row, literal(f"{value:.2f}".replace("-", "−")), **look)
    colour_bar(ax.figure, mesh, ax, label="Spearman correlation over heads")
    return ax


def roc(run: RunLike, *, criterion: str, projection: str, heads: Sequence[Head], ax: Axes | None = None) -> Axes:
    """How well single heads tell unsafe prompts from safe ones: detected against falsely flagged, for every threshold.

    Bands and the intervals of the areas are 95 %, over redraws of the prompts.

    Args:
        run: A run, or the path of a stored one.
        criterion: One with a value for every prompt.
        projection: Which projection is masked.
        heads: (layer, head) or names of the heads to draw.
        ax: Where to draw; a new figure without it.

    Raises:
        CriterionError: For a criterion without a value for every prompt.
        FigureError: For a head without values on both kinds of prompts.
    """
    run, ax = as_run(run), new_axes(ax)
    for head in distributions.checked_heads(run, heads):
        curve = distributions.roc(run, criterion, projection, head=head)
        (line,) = ax.plot(curve.false_alarms, curve.detected, label=literal(curve.words(head)))
        look = {"color": line.get_color(), "alpha": 0.15, "linewidth": 0, "step": "post"}
        ax.fill_between(distributions.FALSE_ALARMS, *curve.band, **look)
    ax.plot([0, 1], [0, 1], color=theme.QUIET, linewidth=0.7, zorder=1)
    ax.set_aspect("equal")
    _label(
        ax,
        title=theme.heading(criterion, projection),
        xlabel="safe prompts flagged (share)",
        ylabel="unsafe prompts flagged (share)",
    )
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(loc="lower right")
    return ax


def criteria(scores: pd.DataFrame, *, heads: Sequence[Head] | None = None, ax: Axes | None = None) -> Axes:
    """How well heads tell unsafe prompts from safe ones under each criterion: a line a ranking, a point a head.

    A bar is the 95 % interval of that head's AUROC over redraws of the prompts. It does not count that the best was
    chosen among many, whose AUROC on other prompts will be lower. A criterion without an AUROC is left out.

    Args:
        scores: From `wb.score`.
        heads: (layer, head) or names of heads to name on every line, in place of its best.
        ax: Where to draw; a new figure without it.
    """
    lines = rankings.strips(scores, None if heads is None else charts.checked_heads(scores, heads))
    ax = new_axes(ax)
    colour = theme.LABEL_COLOURS["unsafe"]
    for row, line in enumerate(lines):
        look: dict[str, Any] = {"linewidths": 0, "s": 9}
        ax.scatter(line.auroc, np.full(len(line.auroc), row), color=theme.NEUTRAL, alpha=0.75, **look)
        for place, ends in zip(line.named, line.intervals, strict=True):
            ax.scatter([line.auroc[place]], [row], color=colour, zorder=3, **look)
            ax.hlines(row, *ends, color=colour, linewidth=1, zorder=3)
            over = {"xytext": (0, 4), "textcoords": "offset points", "ha": "center"}
            name = theme.head_name(*line.heads[place])
            ax.annotate(name, (line.auroc[place], row), fontsize=_tick_size(ax), **over)
    ax.axvline(0.5, color=theme.QUIET, linewidth=0.7, zorder=1)
    ax.set_yticks(range(len(lines)), labels=[literal(line.words) for line in lines], **_LITERAL)
    ax.invert_yaxis()
    ax.margins(y=0.5 / max(1, len(lines)))
    _label(ax, xlabel="AUROC, unsafe above safe")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def heads(table: pd.DataFrame, *, k: int = 20, ax: Axes | None = None) -> Axes:
    """The first heads of one ranking, best at the top: each value with its interval, and how sure its place is.

    Filled: certainly among the first; open: possibly; a cross: not. A table without a `status` has plain dots. Where
    the table has a stability, it stands beside the name: the share of redraws of the prompts in which the head is
    among the first.

    Args:
        table: From `wb.top_heads` or `wb.find_heads`; one ranking.
        k: How many heads to draw.
        ax: Where to draw; a new figure without it.

    Raises:
        FigureError: For another table.
    """
    chart = rankings.head_list(table, k)
    ax = new_axes(ax)
    rows = np.arange(len(chart.table))
    shown = chart.table
    ax.hlines(rows, shown["ci_low"], shown["ci_high"], color=theme.NEUTRAL, linewidth=1, zorder=2)
    for status, look in _STATUS_LOOKS.items():
        at = (shown["status"] == status).to_numpy()
        if at.any():
            ax.scatter(shown["value"][at], rows[at], label=rankings.STATUSES.get(status), s=16, zorder=3, **look)
    ax.set_yticks(rows, labels=[literal(name) for name in chart.names], **_LITERAL)
    ax.invert_yaxis()
    ax.margins(y=0.5 / max(1, len(rows)))
    more = f"\n(the first {len(rows)} of {len(rows) + chart.left_out})" if chart.left_out else ""
    _label(ax, title=chart.title, xlabel=f"{chart.axis}{more}")
    ax.spines[["top", "right"]].set_visible(False)
    if shown["status"].any():
        ax.legend(loc="best")
    return ax
