"""The parts of a paper figure: each function draws one panel on a matplotlib axes it is given."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.ticker import NullLocator

from workbench.axes import head_name
from workbench.views import charts, theme
from workbench.views.charts import Head

Box = Sequence[float]  # left, bottom, right, top in pixels


def heat_map(ax: Axes, cells: np.ndarray, *, scale: charts.Scale) -> QuadMesh:
    """A layer × head map of `cells` [layer, head]; NaN cells show the hatched ground: not computed.

    Args:
        cells: One value a head, in the unit of the colour bar. Layer 0 is drawn at the bottom.
        scale: From `charts.scale`.
    """
    layers, heads = cells.shape
    ax.patch.set(facecolor="white", edgecolor=theme.QUIET, hatch="////////", linewidth=0)
    gap = 0.6 if max(layers, heads) <= 16 else 0.0
    mesh = ax.pcolormesh(
        np.arange(heads + 1) - 0.5,
        np.arange(layers + 1) - 0.5,
        np.ma.masked_invalid(cells),
        cmap=scale.colours,
        norm=(LogNorm if scale.log else Normalize)(scale.low, scale.high),
        edgecolors="white" if gap else "face",
        linewidth=gap or 0.1,
    )
    ax.set(xticks=charts.steps(heads), yticks=charts.steps(layers), aspect="equal")
    ax.tick_params(length=0, pad=2)
    ax.spines[:].set_visible(False)
    return mesh


def colour_bar(figure: Figure, mesh: QuadMesh, axes: Axes | Sequence[Axes], *, label: str) -> None:
    """A thin bar with the unit as its label."""
    log = isinstance(mesh.norm, LogNorm)
    bar = figure.colorbar(mesh, ax=axes, fraction=0.05, pad=0.02, aspect=22)
    bar.set_label(f"{label}, log scale" if log else label)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=2, width=0.5, pad=2)
    if log:
        ticks = charts.log_ticks(mesh.norm.vmin, mesh.norm.vmax)
        bar.set_ticks(ticks, labels=map(charts.tick_label, ticks))
        bar.ax.minorticks_off()


def outline(ax: Axes, heads: Sequence[Head], *, colour: str = theme.PICKED, small: bool = False) -> None:
    """A frame around each of `heads`, white under dark so that it shows on both ends of a scale.

    Cells that are `small` would vanish under a frame of their own size: theirs stands around them.
    """
    for (layer, head), (width, edge) in itertools.product(heads, ((1.6, "white"), (0.8, colour))):
        if small:
            look = {"marker": "s", "s": 36, "facecolors": "none", "edgecolors": edge, "linewidths": width}
            ax.scatter([head], [layer], **look, clip_on=False, zorder=3)
            continue
        ax.add_patch(Rectangle((head - 0.46, layer - 0.46), 0.92, 0.92, fill=False, edgecolor=edge, linewidth=width))


def head_cloud(ax: Axes, x: np.ndarray, y: np.ndarray, *, colour: str, marker: str = "o", label: str = "") -> None:
    """One point a head; `x` and `y` are [layer, head], and heads that were not computed are left out."""
    known = np.isfinite(x) & np.isfinite(y)
    look = {"s": 9, "c": colour, "marker": marker, "linewidths": 0, "alpha": 0.75, "zorder": 2}
    ax.scatter(x[known], y[known], label=label or None, **look)


def head_axes(ax: Axes, limits: charts.Limits) -> None:
    """Two axes alike, left and bottom only, with the line on which they are equal."""
    ends = (limits.low, limits.high)
    if limits.log:
        ax.set(xscale="log", yscale="log")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_ticks(limits.ticks, labels=map(charts.tick_label, limits.ticks))
            axis.set_minor_locator(NullLocator())
    ax.set(xlim=ends, ylim=ends)
    ax.plot(ends, ends, color=theme.QUIET, linewidth=0.7, zorder=1)
    ax.spines[["top", "right"]].set_visible(False)


def name_points(
    ax: Axes, heads: Mapping[Head, str], x: np.ndarray, y: np.ndarray, *, avoid: Sequence[Artist] = ()
) -> None:
    """Ring each of `heads` in its colour and write `L3H6` beside it, clear of names, rings and what to `avoid`."""
    size = ax.xaxis.get_ticklabels()[0].get_fontsize()
    figure = ax.figure.figure  # of a figure inside a figure, the outer one
    renderer = RendererAgg(figure.bbox.width, figure.bbox.height, figure.dpi)  # whatever canvas the figure has
    figure.draw_without_rendering()  # places in pixels are known only after a layout
    inside = ax.get_window_extent().extents
    centres = {cell: ax.transData.transform((x[cell], y[cell])) for cell in heads}
    rings = {cell: _around(centre, 4) for cell, centre in centres.items()}
    dots = [_around(ax.transData.transform(dot), 2) for cloud in ax.collections for dot in cloud.get_offsets()]
    taken = [*(artist.get_window_extent(renderer).extents for artist in avoid), *rings.values()]
    names: list[Box] = []
    for cell, colour in heads.items():
        ax.scatter([x[cell]], [y[cell]], s=24, facecolors="none", edgecolors=colour, linewidths=0.8, zorder=3)
        text = ax.annotate(
            head_name(*cell),
            (x[cell], y[cell]),
            xytext=(0, 5),
            textcoords="offset points",
            fontsize=size,
            color=colour,
            zorder=4,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.4, "shrinkA": 0, "shrinkB": 4},
        )
        # First clear of everything; else over dots; else above its ring, over whatever is there.
        for filled, radius, (dx, dy, ha, va) in itertools.product(([*taken, *dots], taken, []), _RADII, _COMPASS):
            text.set(position=(dx * radius, dy * radius), ha=ha, va=va)
            text.arrow_patch.set_visible(radius > 8)  # a name far from its ring is tied to it
            text.update_positions(renderer)
            box = Text.get_window_extent(text, renderer).padded(2).extents  # the word, without its line
            line = _line(centres[cell], box) if radius > 8 else []
            others = [*names, *(ring for head, ring in rings.items() if head != cell)] if filled else []
            crossed = any(_overlap(part, other) for part in line for other in others)
            if _within(box, inside) and not crossed and not any(_overlap(box, other) for other in filled):
                names.append(box)
                taken += [box, *line]
                break


def _line(ring: np.ndarray, box: np.ndarray) -> list[Box]:
    """Small boxes along the line from a ring to a word."""
    centre = np.array([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2])
    return [_around(ring + share * (centre - ring), 0.5) for share in np.linspace(0.2, 1, 20)]


def _around(place: np.ndarray, reach: float) -> Box:
    return (place[0] - reach, place[1] - reach, place[0] + reach, place[1] + reach)


_RADII = (5, 8, 12, 17, 23, 30, 38)  # points
_COMPASS = (
    *((1, 0, "left", "center"), (0.7, 0.7, "left", "bottom"), (0, 1, "center", "bottom"), (-1, 0, "right", "center")),
    *((-0.7, 0.7, "right", "bottom"), (0.7, -0.7, "left", "top"), (0, -1, "center", "top")),
    (-0.7, -0.7, "right", "top"),
)


def _within(box: Box, frame: Box) -> bool:
    return box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
