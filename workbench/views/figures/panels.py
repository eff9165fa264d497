"""The parts of a paper figure: each function draws one panel on a matplotlib axes it is given."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from adjustText import adjust_text
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullLocator

from workbench.axes import Head, head_name
from workbench.views import charts, theme
from workbench.views.figures.style import literal

DOTS = 8  # of a picture of a map, along a side of a cell


def heat_map(ax: Axes, cells: np.ndarray, *, scale: charts.Scale) -> ScalarMappable:
    """A layer × head map of `cells` [layer, head]; NaN cells show the hatched ground: not computed.

    Args:
        cells: One value a head, in the unit of the colour bar. Layer 0 is drawn at the bottom.
        scale: From `charts.scale`.
    """
    layers, heads = cells.shape
    look: dict[str, Any] = {"cmap": scale.colours}
    look["norm"] = (LogNorm if scale.log else Normalize)(scale.low, scale.high)
    ax.patch.set(facecolor="white", edgecolor=theme.QUIET, hatch="////////", linewidth=0)
    if charts.gapped(cells):
        edges = np.arange(heads + 1) - 0.5, np.arange(layers + 1) - 0.5
        mesh = ax.pcolormesh(*edges, np.ma.masked_invalid(cells), **look, edgecolors="white", linewidth=0.6)
    else:
        # Thousands of drawn squares take seconds a file. A picture takes none, and has several dots a cell, since some
        # programs smooth what they enlarge.
        dots = np.repeat(np.repeat(cells, DOTS, axis=0), DOTS, axis=1)
        ends = (-0.5, heads - 0.5, -0.5, layers - 0.5)
        mesh = ax.imshow(np.ma.masked_invalid(dots), **look, origin="lower", extent=ends, interpolation="none")
    ax.set(xticks=charts.steps(heads), yticks=charts.steps(layers), aspect="equal")
    ax.tick_params(length=0, pad=2)
    ax.spines[:].set_visible(False)
    return mesh


def colour_bar(figure: Figure, mesh: ScalarMappable, axes: Axes | Sequence[Axes], *, label: str) -> None:
    """A thin bar with the unit as its label."""
    log = isinstance(mesh.norm, LogNorm)
    bar = figure.colorbar(mesh, ax=axes, fraction=0.05, pad=0.02, aspect=22)
    bar.set_label(literal(f"{label}, log scale" if log else label))
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=2, width=0.5, pad=2)
    if log:
        ticks = charts.log_ticks(mesh.norm.vmin, mesh.norm.vmax)
        bar.set_ticks(ticks, labels=map(charts.tick_label, ticks))
        bar.ax.minorticks_off()


def outline(ax: Axes, heads: Sequence[Head], *, small: bool = False) -> None:
    """A frame around each of `heads`, white under dark so that it shows on both ends of a scale.

    Cells that are `small` would vanish under a frame of their own size: theirs stands around them.
    """
    for (layer, head), (width, edge) in itertools.product(heads, ((1.6, "white"), (0.8, theme.PICKED))):
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
    """Ring each of `heads` in its colour and write `L3H6` beside it, clear of names, points and what to `avoid`."""
    if not heads:
        return
    size = ax.xaxis.get_ticklabels()[0].get_fontsize()
    places = np.array([(x[head], y[head]) for head in heads])
    names = []
    for (head, colour), place in zip(heads.items(), places, strict=True):
        ax.scatter(*place, s=24, facecolors="none", edgecolors=colour, linewidths=0.8, zorder=3)
        names.append(ax.text(*place, head_name(*head), fontsize=size, color=theme.INK, zorder=4))
    dots = np.vstack([cloud.get_offsets() for cloud in ax.collections if len(cloud.get_offsets()) > 1] + [places])
    ax.figure.figure.draw_without_rendering()  # places in pixels are known only after a layout
    adjust_text(
        names,
        target_x=places[:, 0],
        target_y=places[:, 1],
        x=dots[:, 0],
        y=dots[:, 1],
        objects=list(avoid) or None,
        ax=ax,
        expand=(1.3, 1.5),
        # Heads that lie all but on one another: their names need more than the default to come apart.
        force_text=(0.3, 0.6),
        force_explode=(0.4, 1.0),
        iter_lim=200,  # steps, not seconds: the same words lie in the same places on every machine
        min_arrow_len=9,
        arrowprops={"arrowstyle": "-", "color": theme.INK, "linewidth": 0.4, "shrinkA": 4, "shrinkB": 4},
    )
