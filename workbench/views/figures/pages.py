"""The paper figures: each function takes score tables and returns one matplotlib figure.

Sizes are those of a printed page, text is 6–8 points, and no browser is involved. `save.save_figures` writes them.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from workbench.views import charts, rankings, theme
from workbench.views.charts import Picks
from workbench.views.figures import displays
from workbench.views.figures.panels import colour_bar, head_axes, head_cloud, heat_map, name_points, outline
from workbench.views.figures.style import STYLES, Style, literal


@dataclass(frozen=True)
class Sheet:
    """What figures are drawn on.

    Attributes:
        style: Of the venue.
        inches: Width of every figure; 0 gives each its own, a column or a page.
    """

    style: Style = STYLES["workbench"]
    inches: float = 0.0

    def figure(self, own: str, shape: float) -> Figure:
        """A figure of its own width ("column" or "page"), or of the one asked for.

        Args:
            own: Its own width.
            shape: Height over width.
        """
        width = self.inches or self.style.inches(own)
        figure = Figure(figsize=(width, shape * width), layout="constrained")
        FigureCanvasAgg(figure)
        figure.get_layout_engine().set(w_pad=0.06, h_pad=0.04, wspace=0.03, hspace=0.03)
        return figure


_SHEET = Sheet()


def lay_out(figure: Figure) -> None:
    """Give everything its place, once, so that every format has the same places.

    Words beside axes keep the distance that the first layout gives them: to measure all ticks of all axes again, for
    the second layout and for every file, takes longer than to draw them.
    """
    engine = figure.get_layout_engine()
    words = [axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)]
    for axis in words:
        if not axis.label.get_text():
            axis.set_label_coords(0, 0)  # nothing to be placed
    engine.execute(figure)
    for ax in figure.axes:
        ax.get_tightbbox(figure.canvas.get_renderer())  # places the words where the axes are now
    for axis in (axis for axis in words if axis.label.get_text()):
        across, far = axis is axis.axes.xaxis, axis.get_label_position() in ("right", "top")
        edge, place = axis.axes.bbox.get_points()[int(far)], axis.label.get_position()
        away = [0.0, (place[1] - edge[1]) / figure.dpi] if across else [(place[0] - edge[0]) / figure.dpi, 0.0]
        beside = axis.axes.transAxes + ScaledTranslation(*away, figure.dpi_scale_trans)
        axis.set_label_coords(*((place[0], far) if across else (far, place[1])), transform=beside)
    engine.execute(figure)  # what a colour bar needs is known after the first time
    figure.set_layout_engine(None)


def safe_and_unsafe(
    scores: pd.DataFrame, *, criterion: str, projection: str, picks: Picks, sheet: Sheet = _SHEET
) -> Figure:
    """Two layer × head maps on one colour scale: the mean over safe and over unsafe prompts."""
    where = {"criterion": criterion, "projection": projection}
    maps = {column: charts.grid(scores, **where, column=column) for column in ("safe", "unsafe")}
    scale = charts.scale(np.stack(list(maps.values())))
    figure = sheet.figure("column", _map_height(maps["safe"], panel_inches=1.2) / theme.COLUMN_INCHES)
    axes = figure.subplots(1, 2, sharey=True)
    for ax, (column, cells) in zip(axes, maps.items(), strict=True):
        mesh = heat_map(ax, cells, scale=scale)
        outline(ax, picks.selective, small=not charts.gapped(cells))
        ax.set_title(literal(", ".join(w for w in (theme.projection_words(projection), column) if w)))
        ax.set_xlabel("head")
    axes[0].set_ylabel("layer")
    colour_bar(
        figure, mesh, axes, label=f"{theme.in_a_sentence(theme.short_title(criterion))}\n({theme.unit(criterion)})"
    )
    return figure


def _map_height(cells: np.ndarray, *, panel_inches: float) -> float:
    """Room for one row of maps whose cells are square, with a title and axis words."""
    layers, heads = cells.shape
    return float(np.clip(panel_inches * layers / heads, 1.0, 4.5)) + 0.6


def selectivity(
    scores: pd.DataFrame, *, criterion: str, projection: str, picks: Picks, sheet: Sheet = _SHEET
) -> Figure:
    """Every head by its mean on safe prompts (across) and unsafe prompts (up), with the rule's bound and its picks."""
    figure = sheet.figure("column", 0.82)
    displays.selectivity(scores, criterion=criterion, projection=projection, picks=picks, ax=figure.subplots())
    return figure


def query_against_value(scores: pd.DataFrame, *, criterion: str, picks: Picks, sheet: Sheet = _SHEET) -> Figure:
    """Every head by what masking its query does (across) and what masking its value does (up)."""
    figure = sheet.figure("column", 0.82)
    ax = figure.subplots()
    points = []
    for column, marker in (("safe", "o"), ("unsafe", "^")):
        x, y = (charts.grid(scores, criterion=criterion, projection=p, column=column) for p in ("query", "value"))
        head_cloud(ax, x, y, colour=theme.PRINT_COLOURS[column], marker=marker, label=f"{column} prompts")
        known = np.isfinite(x) & np.isfinite(y)
        points += [x[known], y[known]]
    words = f"{theme.in_a_sentence(theme.title(criterion))} ({theme.unit(criterion)})"
    ax.set(xlabel=literal(f"query masked: {words}"), ylabel=literal(f"value masked: {words}"))
    head_axes(ax, charts.limits(*points))
    legend = ax.legend(loc="upper left", handletextpad=0.1, borderaxespad=0)
    name_points(ax, dict.fromkeys(picks.selective, theme.INK), x, y, avoid=[legend])
    return figure


def side_by_side(scores: pd.DataFrame, *, projection: str, sheet: Sheet = _SHEET) -> Figure:
    """One column a criterion: above, its value on unsafe prompts; below, its AUROC, on one scale for all."""
    shown = {c: charts.projection_of(scores, c, projection, strict=False) for c in dict.fromkeys(scores["criterion"])}
    maps = {
        column: [charts.head_map(scores, criterion=c, projection=p, column=column) for c, p in shown.items()]
        for column in ("unsafe", "auroc")
    }
    rates = charts.scale(np.stack([chart.cells for chart in maps["auroc"]]), column="auroc")
    height = _map_height(maps["unsafe"][0].cells, panel_inches=1.4)
    own, inches = ("page", theme.DOUBLE_INCHES) if len(shown) > 1 else ("column", theme.COLUMN_INCHES)
    figure = sheet.figure(own, 2 * height / inches)
    axes = figure.subplots(2, len(shown), sharex=True, sharey=True, squeeze=False)
    for above, below, value, rate in zip(*axes, maps["unsafe"], maps["auroc"], strict=True):
        colour_bar(figure, heat_map(above, value.cells, scale=value.scale), above, label=value.unit)
        above.set_title(literal(value.title.replace(", ", "\n")))
        lower = heat_map(below, rate.cells, scale=rates)
        below.set_xlabel("head")
    colour_bar(figure, lower, list(axes[1]), label="AUROC, unsafe above safe")
    for row in axes:
        row[0].set_ylabel("layer")
    return figure


def agreement(scores: pd.DataFrame, *, chart: rankings.Agreement, sheet: Sheet = _SHEET) -> Figure:
    """How alike every two rankings of the heads are: see `displays.agreement`."""
    figure = sheet.figure("column" if chart.few else "page", 0.82)
    displays.agreement(scores, chart=chart, ax=figure.subplots())
    return figure
