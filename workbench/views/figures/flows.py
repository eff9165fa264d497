"""The figures of a trace: where the difference between twins is, layer by layer; what cutting flows does; the lens."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.checking import Place, checked
from workbench.plain import write_table
from workbench.tracing.records import COMPONENTS, DIRECTIONS, HEADS
from workbench.tracing.stored import SomeTrace
from workbench.views import traces
from workbench.views.charts import steps
from workbench.views.figures import studies as pages
from workbench.views.figures.displays import new_axes
from workbench.views.figures.pages import Sheet
from workbench.views.figures.panels import colour_bar, heat_map
from workbench.views.figures.save import checked_formats, writable_folder, write_figure
from workbench.views.figures.style import house_style, literal

_LITERAL = {"parse_math": False}


@checked
def trace(
    trace: SomeTrace,
    *,
    component: str = "residual",
    value: str = "recovered",
    direction: str = "noise",
    group: str = "all",
    ax: Any = None,
) -> Axes:
    """One map of a trace with its colour bar: layers × token groups, or layers × heads; layer 0 is at the bottom.

    Args:
        trace: From `wb.trace`, or the path of a stored one.
        component: "residual", "attention", "mlp" or "heads".
        value: "recovered", "deflection", "kl", "refusal_change", "top1_change" or "left".
        direction: "noise" (the unsafe prompt patched from the safe one) or "denoise" (the reverse).
        group: For "heads", the tokens at which they are patched.
        ax: Where to draw; a new figure without it.

    Raises:
        FigureError: For what the trace does not have.
        RunError: For what is no trace.

    Examples:
        >>> import workbench as wb
        >>> trace = wb.trace("planted", wb.load_prompts("planted", split="test", n=2), progress=False)
        >>> wb.plot.trace(trace, component="heads").get_title()
        'single heads (z)'
    """
    assert isinstance(trace, xr.Dataset)
    chart = traces.flow_map(trace, component, value=value, direction=direction, group=group)
    ax = new_axes(ax)
    colour_bar(ax.figure, _map(ax, chart), ax, label=chart.unit)
    ax.set_ylabel("layer")
    return ax


def _map(ax: Axes, chart: traces.Map) -> Any:
    mesh = heat_map(ax, chart.cells, scale=chart.scale)
    ax.set_aspect("auto")
    ax.set_title(literal(chart.title), **_LITERAL)
    ax.set_xlabel(chart.across)
    if chart.across != "head":
        ax.set_xticks(range(len(chart.columns)), labels=chart.columns, rotation=40, ha="right", rotation_mode="anchor")
    ax.set_yticks(steps(len(chart.cells)))
    return mesh


def maps_page(found: xr.Dataset, *, value: str = "recovered", sheet: Sheet | None = None) -> Figure:
    """Every component in both directions, on one colour scale a row."""
    parts = [c for c in COMPONENTS if "component" in found.coords and c in found["component"].values]
    parts += [HEADS] if f"head_{value}" in found else []
    with house_style():
        figure = (sheet or Sheet()).figure("page" if len(parts) > 1 else "column", 0.52 if len(parts) > 1 else 1.3)
        grid = figure.subplots(2, len(parts), squeeze=False, sharey=True)
        for place, (row, direction) in enumerate(zip(grid, DIRECTIONS, strict=True)):
            charts = [traces.flow_map(found, part, value=value, direction=direction) for part in parts]
            widest = max(charts, key=lambda chart: (chart.scale.high, chart.scale.signed))
            for ax, chart in zip(row, charts, strict=True):
                mesh = _map(ax, traces.Map(**{**vars(chart), "scale": widest.scale}))
                if place:
                    ax.set_title("")
                else:
                    ax.set(xlabel="", xticks=[])
            row[0].set_ylabel(f"layer\n({direction})")
            colour_bar(figure, mesh, list(row), label=value.replace("_", " "))
    return figure


def cuts_page(found: xr.Dataset) -> Figure:
    """The refusal log-odds of both prompts with each flow cut, window by window."""
    table = pd.concat(
        [traces.cut_lines(found, side=side).assign(panel=f"{side} prompts") for side in ("unsafe", "safe")]
    )
    words: dict[str, Any] = {"x_words": "first layer of the window", "y_words": traces.WORDS["refusal_change"]}
    return pages.lines(table, x="window", series="flow", panels="panel", line=0.0, **words)


def lens_page(found: xr.Dataset) -> Figure:
    """The refusal log-odds read after every layer."""
    table = traces.lens_lines(found)
    words: dict[str, Any] = {"x_words": "read after layer", "y_words": "refusal log-odds"}
    return pages.lines(table, x="layer", series="side", line=0.0, **words)


@checked
def save_trace_figures(
    trace: SomeTrace,
    out: Annotated[str | Path, Place()],
    formats: Sequence[str] | str = ("pdf", "svg", "png"),
) -> list[Path]:
    """Draw a trace's figures and write them as vectors, each with its numbers as CSV.

    `trace_maps` (every component, both directions), `trace_cuts` (attention knock-out) and `trace_lens`, as far as the
    trace has them. Maps show means over pairs; bars of lines are 95 % intervals over redraws of the pairs.

    Args:
        trace: From `wb.trace`, or the path of a stored one.
        out: A folder; made if it is missing. Files of the same names are replaced.
        formats: Any of `pdf`, `svg`, `png`.

    Returns:
        Every file written.

    Raises:
        FigureError: For a format or a folder that cannot be written.
        RunError: For what is no trace.
    """
    assert isinstance(trace, xr.Dataset)
    suffixes, folder = checked_formats(formats), writable_folder(Path(out))
    drawn: list[tuple[str, Any, list[str]]] = []
    of_maps = [n for n in ("patch_recovered", "head_recovered") if n in trace]
    drawn += [("trace_maps", maps_page, of_maps)] if of_maps else []
    if "cut_refusal_change" in trace and trace["base_refusal"].notnull().any():
        drawn.append(("trace_cuts", cuts_page, ["cut_refusal_change"]))
    if trace["base_refusal"].notnull().any():
        drawn.append(("trace_lens", lens_page, ["lens_refusal"]))
    written = []
    for name, draw, variables in drawn:
        figure = draw(trace)
        for suffix in suffixes:
            written.append(folder / f"{name}.{suffix}")
            with house_style():
                figure.draw_without_rendering()
                write_figure(figure, written[-1])
        numbers = pd.concat([traces.means(trace, v).assign(variable=v) for v in variables], ignore_index=True)
        written.append(write_table(numbers, folder / f"{name}.csv"))
    return written
