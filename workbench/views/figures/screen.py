"""Figures for notebooks: each function turns a score table or a run into a plotly `Figure`; nothing displays itself."""

import html
from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr

from workbench.axes import head_name
from workbench.plain import plain
from workbench.views import charts, theme
from workbench.views.charts import Head
from workbench.views.distributions import density, distribution, prompt_table

_FONT = {
    "family": "system-ui, -apple-system, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif",
    "size": 12,
    "color": theme.INK,
}
_AXIS = {"gridcolor": "#E6E6E6", "zeroline": False}


def literal(text: object) -> str:
    """Words of others for plotly, which reads some HTML, and TeX between dollars."""
    return html.escape(plain(text)).replace("$", "&#36;")


def _figure(**changes: object) -> go.Figure:
    base = {
        "font": _FONT,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 36, "r": 4, "t": 30, "b": 36},
        "hoverlabel": {"font": {"size": 12}},
        "showlegend": False,
        "dragmode": False,
        "template": "none",
    }
    return go.Figure(layout=go.Layout(**(base | changes)))


def heatmap(
    scores: pd.DataFrame,
    criterion: str,
    projection: str,
    column: str = "unsafe",
    *,
    marked: Sequence[Head] = (),
    selected: Sequence[Head] = (),
) -> go.Figure:
    """A layer × head map of one column of a score table.

    Args:
        scores: As `wb.score` returns it.
        criterion: Which rows.
        projection: Which rows. A criterion without a mask (the probe) is shown whatever the projection.
        column: `unsafe`, `safe`, `difference`, `auroc` or `effect_size`. Signed columns have a scale centred on no
            difference.
        marked: Heads that a rule picks, best first; numbered on the map.
        selected: Heads to frame.

    Returns:
        A figure whose first trace is the heat map (`customdata` [layer, head] in the column's unit, None where not
        computed, shown hatched; `z` is its logarithm where the scale is logarithmic).

    Raises:
        FigureError: For a criterion or column that the table does not have.
    """

    def along(values: np.ndarray) -> np.ndarray:
        return np.log10(values) if scale.log else values

    chart = charts.head_map(scores, criterion=criterion, projection=projection, column=column)
    cells, scale = chart.cells, chart.scale
    layers, heads = cells.shape
    shares = np.linspace(0, 1, 33).tolist()
    value = f"{theme.COLUMN_WORDS[column]}: %{{customdata:.3g}} {chart.unit}"
    bar = {
        "thickness": 7,
        "outlinewidth": 0,
        "xpad": 4,
        "tickfont": {"size": 10},
        "title": {"text": literal(chart.unit), "side": "right"},
        "tickvals": along(np.array(scale.ticks)).tolist(),
        "ticktext": [charts.tick_label(tick) for tick in scale.ticks],
    }
    figure = _figure(title={"text": literal(chart.title), "font": {"size": 13}}, height=380, width=440)
    figure.add_heatmap(
        z=_json(along(cells)),
        customdata=_json(cells),
        x=np.arange(heads),
        y=np.arange(layers),
        zmin=float(along(np.array(scale.low))),
        zmax=float(along(np.array(scale.high))),
        colorscale=[(s, colour) for s, (colour, _) in zip(shares, theme.shades(scale.colours, shares), strict=True)],
        xgap=1.5 if chart.gaps else 0,
        ygap=1.5 if chart.gaps else 0,
        hoverongaps=True,
        hovertemplate=f"L%{{y}}H%{{x}}<br>{value}<extra></extra>",
        colorbar=bar,
    )
    missing = [(int(layer), int(head)) for layer, head in np.argwhere(~np.isfinite(cells))]
    for places, words, font in (
        (missing, ["╱"] * len(missing), {"color": theme.QUIET}),
        (marked, [str(i + 1) for i in range(len(marked))], {"size": 11, "color": [i for _, i in chart.inks(marked)]}),
    ):
        x, y = [head for _, head in places], [layer for layer, _ in places]
        figure.add_scatter(x=x, y=y, mode="text", text=words, hoverinfo="skip", textfont=font)
    for (layer, head), line in [
        (cell, line) for cell in selected for line in (("#FFFFFF", 5), (theme.LABEL_COLOURS["unsafe"], 2.5))
    ]:
        box = {"x0": head - 0.5, "x1": head + 0.5, "y0": layer - 0.5, "y1": layer + 0.5}
        figure.add_shape(type="rect", **box, line=dict(zip(("color", "width"), line, strict=True)))
    plain = {"showgrid": False, "zeroline": False, "ticks": "", "title_standoff": 4}
    figure.update_xaxes(
        title="head", range=[-0.5, heads - 0.5], constrain="domain", tickvals=charts.steps(heads), **plain
    )
    figure.update_yaxes(title="layer", range=[-0.5, layers - 0.5], tickvals=charts.steps(layers), **plain)
    return figure


def _json(cells: np.ndarray) -> np.ndarray:
    """NaN has no JSON: None in its place."""
    return np.where(np.isfinite(cells), cells.astype(object), np.array(None))


def selectivity(scores: pd.DataFrame, criterion: str, projection: str, *, selected: Sequence[Head] = ()) -> go.Figure:
    """Every head by its mean on safe prompts (across) and unsafe prompts (up), with the rule's bound and its picks."""
    shown = charts.projection_of(scores, criterion, projection)
    chart = charts.cloud(scores, criterion=criterion, projection=shown)
    heads, low, high = chart.heads, chart.limits.low, chart.limits.high
    picked = [theme.LABEL_COLOURS["unsafe"] if h in chart.picks.selective else theme.NEUTRAL for h in heads]
    figure = _figure(height=380, width=520, margin={"l": 60, "r": 8, "t": 16, "b": 44})
    figure.add_scatter(
        x=[chart.x[h] for h in heads],
        y=[chart.y[h] for h in heads],
        mode="markers+text",
        text=[head_name(*h) if h in chart.named else "" for h in heads],
        customdata=[head_name(*h) for h in heads],
        textposition="top center",
        marker={
            "size": [11 if h in selected else 7 for h in heads],
            "color": picked,
            "line": {"width": [2 if h in selected else 0 for h in heads], "color": theme.PICKED},
        },
        hovertemplate="%{customdata}<br>safe %{x:.3g}, unsafe %{y:.3g}<extra></extra>",
    )
    # Lines as traces: a log axis moves shapes and their words to other places than points.
    figure.add_scatter(x=[low, high], y=[low, high], mode="lines", line={"color": theme.QUIET}, hoverinfo="skip")
    if np.isfinite(chart.picks.bound):
        figure.add_scatter(
            x=[chart.picks.bound] * 2,
            y=[low, high],
            mode="lines+text",
            text=["", "80th percentile"],
            textposition="bottom right",
            line={"color": theme.INK, "width": 1, "dash": "dash"},
            hoverinfo="skip",
        )
    ends = [low, high]
    if chart.limits.log:
        log = {"type": "log", "tickvals": chart.limits.ticks}
        figure.update_xaxes(**log).update_yaxes(**log)
        ends = np.log10(ends).tolist()
    figure.update_xaxes(title=literal(chart.words[0]), range=ends, **_AXIS)
    figure.update_yaxes(title=literal(chart.words[1]), range=ends, **_AXIS)
    return figure


def distributions(
    run: xr.Dataset, criterion: str, projection: str, *, head: Head, by: str = "label", threshold: float | None = None
) -> go.Figure:
    """One head's value on every prompt: a density a label, or a row of points a family, with a threshold.

    Args:
        criterion: One with a value for every prompt.
        by: `label` (two densities over a rug) or `family` (one row a family, coloured by label).
        threshold: In the criterion's unit; drawn where given.

    Raises:
        CriterionError: For a criterion without a value for every prompt.
        FigureError: For another `by`.
    """
    table = prompt_table(run, criterion, projection, head=head)
    chart = distribution(table, axis=theme.axis(criterion), by=by, threshold=threshold)
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "font": {"size": 11}}
    figure = _figure(height=250, width=392, showlegend=True, barmode="overlay", legend=legend)
    for i, (words, colour, part) in enumerate(chart.parts()):
        marker = {"color": colour, "size": 6, "opacity": 0.6}
        if not chart.families:
            marker |= {"size": 8, "symbol": "line-ns", "line": {"color": colour, "width": 1}}
            at, height = density(part["value"].to_numpy())
            rgb = ",".join(str(int(colour[c : c + 2], 16)) for c in (1, 3, 5))
            look = {"line": {"color": colour, "width": 2}, "fillcolor": f"rgba({rgb},0.15)", "fill": "tozeroy"}
            figure.add_scatter(x=at, y=height, mode="lines", name=words, hoverinfo="skip", **look)
        figure.add_scatter(
            x=part["value"],
            y=part["row"] if chart.families else np.full(len(part), -0.06 * (i + 1)),
            customdata=part["prompt"].map(literal),
            mode="markers",
            name=words,
            showlegend=bool(chart.families),
            marker=marker,
            hovertemplate="%{customdata}: %{x:.3g}<extra></extra>",
        )
    if np.isfinite(chart.threshold):
        line = {"color": theme.INK, "width": 1.5, "dash": "dash"}
        words = f"threshold {chart.threshold:.3g}"
        figure.add_vline(x=chart.threshold, line=line, annotation_text=words, annotation_font_size=11)
    figure.update_xaxes(title=literal(chart.axis), **_AXIS)
    rows = {
        "tickvals": list(range(len(chart.families))),
        "ticktext": [literal(family) for family in chart.families],
        "showgrid": False,
    }
    figure.update_yaxes(zeroline=False, **(rows if chart.families else {"visible": False}))
    return figure
