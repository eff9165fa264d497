"""Pictures of one panel, each drawn on the Axes it is given and returned: they keep the user's matplotlib settings.

`workbench.plot` hands them out; the pages of `save_figures` are made of the same panels.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from workbench.axes import head_name
from workbench.criteria.agreement import rank_agreement
from workbench.runs.reading import RunLike, as_run
from workbench.views import charts, distributions, theme
from workbench.views.charts import Head, Picks
from workbench.views.figures.panels import colour_bar, head_axes, head_cloud, heat_map, name_points, outline

_LITERAL = {"parse_math": False}  # names of criteria and projections are shown as they are, dollars included


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt  # its backend is the user's; whoever hands in an Axes needs none

    return plt.subplots(layout="constrained")[1]


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
        heads: (layer, head) of heads to frame.
        ax: Where to draw; a new figure without it.

    Raises:
        FigureError: For a criterion, projection or value that the table does not have.
    """
    chart = charts.head_map(scores, criterion=criterion, projection=projection, column=value)
    ax = _axes(ax)
    mesh = heat_map(ax, chart.cells, scale=chart.scale)
    outline(ax, heads, small=not chart.gaps)
    ax.set_title(chart.title, **_LITERAL)
    ax.set(xlabel="head", ylabel="layer")
    words = theme.COLUMN_WORDS[value]
    colour_bar(ax.figure, mesh, ax, label=words if words == chart.unit else f"{words} ({chart.unit})")
    return ax


def selectivity(
    scores: pd.DataFrame, *, criterion: str, projection: str, picks: Picks | None = None, ax: Axes | None = None
) -> Axes:
    """Every head by its mean on safe prompts (across) and unsafe prompts (up), with the rule's bound and its picks.

    Args:
        scores: From `wb.score`.
        criterion: One with a value on safe prompts.
        projection: Which rows.
        picks: What the rules choose, where that is known already.
        ax: Where to draw; a new figure without it.

    Raises:
        FigureError: For a criterion or projection that the table does not have.
    """
    shown = charts.projection_of(scores, criterion, projection)
    chart = charts.cloud(scores, criterion=criterion, projection=shown, chosen=picks)
    ax = _axes(ax)
    head_cloud(ax, chart.x, chart.y, colour=theme.NEUTRAL)
    ax.set(xlabel=chart.words[0], ylabel=chart.words[1])
    ax.set_title(theme.heading(criterion, shown), **_LITERAL)
    head_axes(ax, chart.limits)
    bound, avoid = chart.picks.bound, []
    if np.isfinite(bound):
        shade = {"color": theme.LABEL_COLOURS["unsafe"], "alpha": 0.07, "linewidth": 0, "zorder": 0}
        ax.axvspan(ax.get_xlim()[0], bound, **shade)
        line = ax.axvline(bound, color=theme.INK, linewidth=0.6, linestyle=(0, (4, 2)), zorder=1)
        size = ax.xaxis.get_ticklabels()[0].get_fontsize()
        place = {"transform": ax.get_xaxis_transform(), "fontsize": size, "va": "top"}
        avoid = [line, ax.text(bound, 1.0, " 80th percentile over heads", **place)]
    name_points(ax, chart.named, chart.x, chart.y, avoid=avoid)
    return ax


def agreement(scores: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Spearman's rank correlation over heads between every two rankings by what moves most on unsafe prompts.

    Raises:
        CriterionError: If the table has fewer than two rankings.
    """
    pairs = list(dict.fromkeys(zip(scores["criterion"], scores["projection"], strict=True)))
    place = {pair: i for i, pair in enumerate(pairs)}
    cells = np.eye(len(pairs))
    for row in rank_agreement(scores, rule="sensitivity").itertuples():
        i, j = place[row.criterion_a, row.projection_a], place[row.criterion_b, row.projection_b]
        cells[i, j] = cells[j, i] = row.spearman
    few = len(pairs) <= 8
    names = [(theme.short_title(c), p if p != "none" else "") for c, p in pairs]
    words = [(",\n" if few else ", ").join(part for part in name if part) for name in names]
    ax = _axes(ax)
    mesh = heat_map(ax, cells, scale=charts.Scale(-1.0, 1.0, theme.DIVERGING))
    ax.set_aspect("auto")  # leaves the room to the words
    ax.invert_yaxis()
    turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if few else {"rotation": 90}
    ax.set_xticks(range(len(pairs)), labels=words, **turned, **_LITERAL)
    ax.set_yticks(range(len(pairs)), labels=words, **_LITERAL)
    size = ax.xaxis.get_ticklabels()[0].get_fontsize()
    for (row, col), value in np.ndenumerate(cells if few else cells[:0]):  # many numbers would touch each other
        if np.isfinite(value):
            ink = "white" if abs(value) > 0.6 else theme.INK
            ax.text(col, row, f"{value:.2f}".replace("-", "−"), ha="center", va="center", fontsize=size, color=ink)
    colour_bar(ax.figure, mesh, ax, label="Spearman correlation over heads")
    return ax


def roc(run: RunLike, *, criterion: str, projection: str, heads: Sequence[Head], ax: Axes | None = None) -> Axes:
    """How well single heads tell unsafe prompts from safe ones: detected against falsely flagged, for every threshold.

    Args:
        run: A run, or the path of a stored one.
        criterion: One with a value for every prompt.
        projection: Which projection is masked.
        heads: (layer, head) of the heads to draw.
        ax: Where to draw; a new figure without it.

    Raises:
        CriterionError: For a criterion without a value for every prompt.
        FigureError: For a head without values on both kinds of prompts.
    """
    run, ax = as_run(run), _axes(ax)
    for head in heads:
        false_alarms, detected, area = distributions.roc(run, criterion, projection, head=head)
        ax.plot(false_alarms, detected, label=f"{head_name(*head)}, AUROC {area:.2f}")
    ax.plot([0, 1], [0, 1], color=theme.QUIET, linewidth=0.7, zorder=1)
    ax.set(xlabel="safe prompts flagged (share)", ylabel="unsafe prompts flagged (share)", aspect="equal")
    ax.set_title(theme.heading(criterion, projection), **_LITERAL)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(loc="lower right")
    return ax


def criteria(scores: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """How well heads tell unsafe prompts from safe ones under each criterion: a line a ranking, a point a head.

    Named: the best head of each line by AUROC. A criterion without an AUROC is left out.
    """
    known = scores[scores["auroc"].notna()]
    groups = list(known.groupby(["criterion", "projection"], sort=False))
    ax = _axes(ax)
    for row, (_, part) in enumerate(groups):
        look = {"linewidths": 0, "alpha": 0.75, "s": 9}
        ax.scatter(part["auroc"], np.full(len(part), row), color=theme.NEUTRAL, **look)
        best = part.loc[part["auroc"].idxmax()]
        ax.scatter([best["auroc"]], [row], color=theme.LABEL_COLOURS["unsafe"], **look | {"alpha": 1, "zorder": 3})
        ax.annotate(
            head_name(int(best["layer"]), int(best["head"])),
            (best["auroc"], row),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
        )
    ax.axvline(0.5, color=theme.QUIET, linewidth=0.7, zorder=1)
    words = [theme.heading(criterion, projection) for (criterion, projection), _ in groups]
    ax.set_yticks(range(len(groups)), labels=words, **_LITERAL)
    ax.invert_yaxis()
    ax.margins(y=0.5 / max(1, len(groups)))
    ax.set_xlabel("AUROC, unsafe above safe")
    ax.spines[["top", "right"]].set_visible(False)
    return ax
