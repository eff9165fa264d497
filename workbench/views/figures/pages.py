"""The paper figures: each function takes score tables and returns one matplotlib figure.

Sizes are those of a printed page (3.3 inches a column, 6.9 inches two), text is 6–8 points, and no
browser is involved. `save.save_figures` writes them.
"""

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from workbench.criteria.agreement import rank_agreement
from workbench.views import charts, theme
from workbench.views.charts import Picks
from workbench.views.figures.panels import colour_bar, head_axes, head_cloud, heat_map, name_points, outline

RC = {
    "font.family": "DejaVu Sans",  # ships with matplotlib, so every machine draws the same letters
    **dict.fromkeys(("font.size", "axes.titlesize", "axes.labelsize"), 7),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 6),
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color"), theme.INK),
    **dict.fromkeys(("axes.linewidth", "xtick.major.width", "ytick.major.width"), 0.5),
    **dict.fromkeys(("xtick.major.size", "ytick.major.size"), 2),
    "legend.frameon": False,
    "hatch.linewidth": 0.4,
    "figure.dpi": 100,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,  # TrueType: embedded, and editable in a vector program
    "svg.fonttype": "path",  # the letters themselves, so that a missing font changes nothing
    "svg.hashsalt": "workbench",  # the same element ids every time
}


def _new_figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.04, wspace=0.03, hspace=0.03)
    return figure


def safe_and_unsafe(scores: pd.DataFrame, *, criterion: str, projection: str, picks: Picks) -> Figure:
    """Two layer × head maps on one colour scale: the mean over safe and over unsafe prompts."""
    where = {"criterion": criterion, "projection": projection}
    maps = {column: charts.grid(scores, **where, column=column) for column in ("safe", "unsafe")}
    scale = charts.scale(np.stack(list(maps.values())))
    figure = _new_figure(theme.COLUMN_INCHES, _map_height(maps["safe"], panel_inches=1.2))
    axes = figure.subplots(1, 2, sharey=True)
    for ax, (column, cells) in zip(axes, maps.items(), strict=True):
        mesh = heat_map(ax, cells, scale=scale)
        outline(ax, picks.selective)
        ax.set_title(", ".join(w for w in (theme.projection_words(projection), column) if w))
        ax.set_xlabel("head")
    axes[0].set_ylabel("layer")
    colour_bar(figure, mesh, axes, label=f"{theme.short_title(criterion).lower()}\n({theme.unit(criterion)})")
    return figure


def _map_height(cells: np.ndarray, *, panel_inches: float) -> float:
    """Room for one row of maps whose cells are square, with a title and axis words."""
    layers, heads = cells.shape
    return float(np.clip(panel_inches * layers / heads, 1.0, 4.5)) + 0.6


def selectivity(scores: pd.DataFrame, *, criterion: str, projection: str, picks: Picks) -> Figure:
    """Every head by its mean on safe prompts (across) and unsafe prompts (up), with the rule's bound and its picks."""
    chart = charts.cloud(scores, criterion=criterion, projection=projection, chosen=picks)
    figure = _new_figure(theme.COLUMN_INCHES, 2.7)
    ax = figure.subplots()
    head_cloud(ax, chart.x, chart.y, colour=theme.NEUTRAL)
    ax.set(xlabel=chart.words[0], ylabel=chart.words[1], title=theme.heading(criterion, projection))
    head_axes(ax, chart.limits)
    avoid = []
    if np.isfinite(picks.bound):
        shade = {"color": theme.LABEL_COLOURS["unsafe"], "alpha": 0.07, "linewidth": 0, "zorder": 0}
        ax.axvspan(ax.get_xlim()[0], picks.bound, **shade)
        line = ax.axvline(picks.bound, color=theme.INK, linewidth=0.6, linestyle=(0, (4, 2)), zorder=1)
        place = {"transform": ax.get_xaxis_transform(), "fontsize": 6, "va": "top"}
        avoid = [line, ax.text(picks.bound, 1.0, " 80th percentile over heads", **place)]
    name_points(ax, chart.named, chart.x, chart.y, avoid=avoid)
    return figure


def query_against_value(scores: pd.DataFrame, *, criterion: str, picks: Picks) -> Figure:
    """Every head by what masking its query does (across) and what masking its value does (up)."""
    figure = _new_figure(theme.COLUMN_INCHES, 2.7)
    ax = figure.subplots()
    points = []
    for column, marker in (("safe", "o"), ("unsafe", "^")):
        x, y = (charts.grid(scores, criterion=criterion, projection=p, column=column) for p in ("query", "value"))
        head_cloud(ax, x, y, colour=theme.LABEL_COLOURS[column], marker=marker, label=f"{column} prompts")
        known = np.isfinite(x) & np.isfinite(y)
        points += [x[known], y[known]]
    words = f"{theme.title(criterion).lower()} ({theme.unit(criterion)})"
    ax.set(xlabel=f"query masked: {words}", ylabel=f"value masked: {words}")
    head_axes(ax, charts.limits(*points))
    legend = ax.legend(loc="upper left", handletextpad=0.1, borderaxespad=0)
    name_points(ax, dict.fromkeys(picks.selective, theme.INK), x, y, avoid=[legend])
    return figure


def side_by_side(scores: pd.DataFrame, *, projection: str) -> Figure:
    """One column a criterion: above, its value on unsafe prompts; below, its AUROC, on one scale for all."""
    shown = {c: charts.projection_of(scores, c, projection, strict=False) for c in dict.fromkeys(scores["criterion"])}
    maps = {
        column: [charts.head_map(scores, criterion=c, projection=p, column=column) for c, p in shown.items()]
        for column in ("unsafe", "auroc")
    }
    height = _map_height(maps["unsafe"][0].cells, panel_inches=1.4)
    figure = _new_figure(theme.DOUBLE_INCHES if len(shown) > 1 else theme.COLUMN_INCHES, 2 * height)
    axes = figure.subplots(2, len(shown), sharex=True, sharey=True, squeeze=False)
    for above, below, value, rate in zip(*axes, maps["unsafe"], maps["auroc"], strict=True):
        colour_bar(figure, heat_map(above, value.cells, scale=value.scale), above, label=value.unit)
        above.set_title(value.title.replace(", ", "\n"))
        lower = heat_map(below, rate.cells, scale=rate.scale)
        below.set_xlabel("head")
    colour_bar(figure, lower, list(axes[1]), label="AUROC, unsafe above safe")
    for row in axes:
        row[0].set_ylabel("layer")
    return figure


def agreement(scores: pd.DataFrame) -> Figure:
    """Spearman's rank correlation over heads between every two rankings by what moves most on unsafe prompts."""
    pairs = list(dict.fromkeys(zip(scores["criterion"], scores["projection"], strict=True)))
    place = {pair: i for i, pair in enumerate(pairs)}
    cells = np.eye(len(pairs))
    for row in rank_agreement(scores, rule="sensitivity").itertuples():
        i, j = place[row.criterion_a, row.projection_a], place[row.criterion_b, row.projection_b]
        cells[i, j] = cells[j, i] = row.spearman
    few = len(pairs) <= 8
    names = [(theme.short_title(c), p if p != "none" else "") for c, p in pairs]
    words = [(",\n" if few else ", ").join(part for part in name if part) for name in names]
    side = theme.COLUMN_INCHES if few else theme.DOUBLE_INCHES
    figure = _new_figure(side, side * 0.82)
    ax = figure.subplots()
    mesh = heat_map(ax, cells, scale=charts.Scale(-1.0, 1.0, theme.DIVERGING))
    ax.set_aspect("auto")  # leaves the room to the words
    ax.invert_yaxis()
    turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if few else {"rotation": 90}
    ax.set_xticks(range(len(pairs)), labels=words, **turned)
    ax.set_yticks(range(len(pairs)), labels=words)
    for (row, col), value in np.ndenumerate(cells if few else cells[:0]):  # many numbers would touch each other
        if np.isfinite(value):
            ink = "white" if abs(value) > 0.6 else theme.INK
            said = f"{value:.2f}".replace("-", "−")
            ax.text(col, row, said, ha="center", va="center", fontsize=6, color=ink)
    colour_bar(figure, mesh, ax, label="Spearman correlation over heads")
    return figure


def house_style() -> "matplotlib.RcParams":
    """A context in which matplotlib draws and writes in this style; the user's own settings come back after it."""
    return matplotlib.rc_context(RC)
