"""The pictures of `workbench.plot` by plotly, to hover over and zoom in a notebook: `wb.plot.screen.maps(scores, …)`.

Each function has the arguments of its namesake, draws the same numbers, and returns a plotly `Figure`; nothing displays
itself. Ground and ink are those of your plotly template, dark ones included: `plotly.io.templates.default =
"plotly_dark"`.
"""

import html
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr

from workbench.axes import Head, head_name
from workbench.plain import plain
from workbench.runs.reading import RunLike, as_run
from workbench.views import charts, rankings, theme
from workbench.views import distributions as chart_distributions
from workbench.views.distributions import density, distribution, prompt_table

# Seen on white and on black alike; which of the two the page has, only the reader's template knows.
MIDDLE = "#808080"
_BESIDE = ("top center", "bottom center", "middle right", "middle left")


def literal(text: object) -> str:
    """Words of others for plotly, which reads some HTML, and TeX between dollars."""
    return html.escape(plain(text)).replace("$", "&#36;").replace("\n", "<br>")


def _figure(title: str = "", **changes: object) -> go.Figure:
    base: dict[str, Any] = {"margin": {"l": 60, "r": 8, "t": 36 if title else 16, "b": 44}, "showlegend": False}
    if title:
        base["title"] = {"text": literal(title), "font": {"size": 13}}
    return go.Figure(layout=go.Layout(**(base | {"dragmode": False} | changes)))


def _cells(figure: go.Figure, cells: np.ndarray, scale: charts.Scale, *, unit: str, gap: float, **look: Any) -> None:
    """Add a map of `cells` with its colour bar; what was not computed has no colour, and a stroke through it."""

    def along(values: Any) -> np.ndarray:
        return np.log10(values) if scale.log else np.asarray(values)

    shares = np.linspace(0, 1, 33).tolist()
    figure.add_heatmap(
        z=_json(along(cells)),
        customdata=_json(cells),
        zmin=float(along(scale.low)),
        zmax=float(along(scale.high)),
        colorscale=[(s, colour) for s, (colour, _) in zip(shares, theme.shades(scale.colours, shares), strict=True)],
        xgap=gap,
        ygap=gap,
        hoverongaps=True,
        colorbar={
            "thickness": 7,
            "outlinewidth": 0,
            "xpad": 4,
            "tickfont": {"size": 10},
            "title": {"text": literal(unit), "side": "right"},
            "tickvals": along(scale.ticks).tolist(),
            "ticktext": [charts.tick_label(tick) for tick in scale.ticks],
        },
        **look,
    )
    missing = np.argwhere(~np.isfinite(cells))
    stroke = {"mode": "text", "text": ["╱"] * len(missing), "textfont": {"color": MIDDLE}, "hoverinfo": "skip"}
    figure.add_scatter(x=missing[:, 1], y=missing[:, 0], **stroke)


def _json(cells: np.ndarray) -> np.ndarray:
    """NaN has no JSON: None in its place."""
    return np.where(np.isfinite(cells), cells.astype(object), np.array(None))


def maps(
    scores: pd.DataFrame, *, criterion: str, projection: str, value: str = "unsafe", heads: Sequence[Head] = ()
) -> go.Figure:
    """One layer × head map, framing `heads`; see `workbench.plot.maps`.

    The first trace is the map: `customdata` [layer, head] in the value's unit, None where not computed; `z` is its
    logarithm where the scale is logarithmic.
    """
    chart = charts.head_map(scores, criterion=criterion, projection=projection, column=value)
    layers, per_layer = chart.cells.shape
    figure = _figure(chart.title, height=380, width=440)
    hover = f"L%{{y}}H%{{x}}<br>{theme.COLUMN_WORDS[value]}: %{{customdata:.3g}} {literal(chart.unit)}<extra></extra>"
    _cells(figure, chart.cells, chart.scale, unit=chart.unit, gap=1.5 if chart.gaps else 0, hovertemplate=hover)
    for layer, head in charts.checked_heads(scores, heads):
        box = {"x0": head - 0.5, "x1": head + 0.5, "y0": layer - 0.5, "y1": layer + 0.5}
        for colour, width in (("#FFFFFF", 5), (theme.LABEL_COLOURS["unsafe"], 2.5)):
            figure.add_shape(type="rect", **box, line={"color": colour, "width": width})
    bare = {"showgrid": False, "zeroline": False, "ticks": "", "title_standoff": 4}
    ends = {"range": [-0.5, per_layer - 0.5], "constrain": "domain", "tickvals": charts.steps(per_layer)}
    figure.update_xaxes(title="head", **ends, **bare)
    return figure.update_yaxes(title="layer", range=[-0.5, layers - 0.5], tickvals=charts.steps(layers), **bare)


def selectivity(
    scores: pd.DataFrame, *, criterion: str, projection: str, heads: Sequence[Head] | None = None
) -> go.Figure:
    """Every head by its means on safe and unsafe prompts, with the rule's picks; see `workbench.plot.selectivity`."""
    shown = charts.projection_of(scores, criterion, projection)
    picks = charts.picks(scores, criterion=criterion, projection=shown, heads=heads)
    chart = charts.cloud(scores, criterion=criterion, projection=shown, chosen=picks)
    low, high = chart.limits.low, chart.limits.high
    unsafe = theme.LABEL_COLOURS["unsafe"]
    figure = _figure(theme.heading(criterion, shown), height=400, width=520)
    # Lines as traces: a log axis moves shapes and their words to other places than points.
    figure.add_scatter(
        x=[chart.x[h] for h in chart.heads],
        y=[chart.y[h] for h in chart.heads],
        mode="markers+text",
        text=[head_name(*h) if h in chart.named else "" for h in chart.heads],
        customdata=[head_name(*h) for h in chart.heads],
        # Names of heads that lie together stand apart.
        textposition=[_BESIDE[list(chart.named).index(h) % 4] if h in chart.named else _BESIDE[0] for h in chart.heads],
        marker={"size": 7, "color": [unsafe if h in picks.selective else MIDDLE for h in chart.heads]},
        hovertemplate="%{customdata}<br>safe %{x:.3g}, unsafe %{y:.3g}<extra></extra>",
    )
    for head in chart.named:
        ends = chart.interval[:, head[0], head[1]]
        if np.isfinite(ends).all():
            bar = {"mode": "lines", "line": {"color": unsafe, "width": 1}, "hoverinfo": "skip"}
            figure.add_scatter(x=[chart.x[head]] * 2, y=ends.clip(low), **bar)
    figure.add_scatter(x=[low, high], y=[low, high], mode="lines", line={"color": MIDDLE}, hoverinfo="skip")
    if np.isfinite(chart.picks.bound):
        figure.add_scatter(
            x=[chart.picks.bound] * 2,
            y=[low, high],
            mode="lines+text",
            text=["", "80th percentile"],
            textposition="bottom right",
            line={"color": MIDDLE, "width": 1, "dash": "dash"},
            hoverinfo="skip",
        )
    limits = [low, high]
    if chart.limits.log:
        log = {"type": "log", "tickvals": chart.limits.ticks}
        figure.update_xaxes(**log).update_yaxes(**log)
        limits = np.log10(limits).tolist()
    figure.update_xaxes(title=literal(chart.words[0]), range=limits, zeroline=False)
    return figure.update_yaxes(title=literal(chart.words[1]), range=limits, zeroline=False)


def agreement(scores: pd.DataFrame) -> go.Figure:
    """Rank correlation between every two rankings; see `workbench.plot.agreement`."""
    chart = rankings.agreement(scores)
    words = [literal(", ".join(part for part in name if part)) for name in chart.names]
    side = 260 + 34 * len(words)
    figure = _figure(height=side, width=side + 60, margin={"l": 8, "r": 8, "t": 16, "b": 8})
    look: dict[str, Any] = {"hovertemplate": "%{x}<br>%{y}<br>%{customdata:.2f}<extra></extra>"}
    if chart.few:
        look["texttemplate"] = "%{z:.2f}"
    scale = charts.Scale(-1.0, 1.0, theme.DIVERGING)
    _cells(figure, chart.cells, scale, unit="Spearman correlation over heads", gap=1.5, x=words, y=words, **look)
    figure.update_xaxes(showgrid=False, automargin=True, tickangle=-45)
    return figure.update_yaxes(showgrid=False, automargin=True, autorange="reversed")


def roc(run: RunLike, *, criterion: str, projection: str, heads: Sequence[Head]) -> go.Figure:
    """ROC curves of single heads with their 95 % bands; see `workbench.plot.roc`."""
    run = as_run(run)
    title = theme.heading(criterion, projection)
    figure = _figure(title, height=420, width=440, showlegend=True, legend={"x": 1, "xanchor": "right", "y": 0})
    for place, head in enumerate(chart_distributions.checked_heads(run, heads)):
        curve = chart_distributions.roc(run, criterion, projection, head=head)
        colour = theme.SERIES[place % len(theme.SERIES)]
        at, (low, high) = chart_distributions.FALSE_ALARMS, curve.band
        band = {"x": [*at, *at[::-1]], "y": [*high, *low[::-1]], "fill": "toself", "mode": "none", "hoverinfo": "skip"}
        figure.add_scatter(**band, fillcolor=_faint(colour), showlegend=False)
        said = literal(curve.words(head))
        figure.add_scatter(x=curve.false_alarms, y=curve.detected, mode="lines", name=said, line={"color": colour})
    even = {"mode": "lines", "line": {"color": MIDDLE, "width": 1}, "hoverinfo": "skip", "showlegend": False}
    figure.add_scatter(x=[0, 1], y=[0, 1], **even)
    figure.update_xaxes(title="safe prompts flagged (share)", range=[-0.02, 1.02], constrain="domain")
    return figure.update_yaxes(title="unsafe prompts flagged (share)", range=[-0.02, 1.02], scaleanchor="x")


def _faint(colour: str) -> str:
    return f"rgba({','.join(str(int(colour[c : c + 2], 16)) for c in (1, 3, 5))},0.15)"


def criteria(scores: pd.DataFrame, *, heads: Sequence[Head] | None = None) -> go.Figure:
    """AUROC of every head under each ranking; see `workbench.plot.criteria`."""
    lines = rankings.strips(scores, None if heads is None else charts.checked_heads(scores, heads))
    figure = _figure(height=120 + 50 * len(lines), width=620, margin={"l": 8, "r": 8, "t": 16, "b": 44})
    hover = "%{customdata}: %{x:.3f}<extra></extra>"
    for row, line in enumerate(lines):
        names = [head_name(*head) for head in line.heads]
        look = {"mode": "markers", "customdata": names, "hovertemplate": hover}
        figure.add_scatter(x=line.auroc, y=[row] * len(names), **look, marker={"size": 6, "color": MIDDLE})
        at, ends = line.auroc[line.named], np.array(line.intervals).reshape(-1, 2)
        away = {"array": ends[:, 1] - at, "arrayminus": at - ends[:, 0], "symmetric": False, "thickness": 1}
        look |= {"mode": "markers+text", "customdata": (shown := [names[i] for i in line.named]), "text": shown}
        marker = {"size": 7, "color": theme.LABEL_COLOURS["unsafe"]}
        figure.add_scatter(
            x=at, y=[row] * len(at), **look, textposition="top center", error_x=_finite(away), marker=marker
        )
    rows = {"tickvals": list(range(len(lines))), "ticktext": [literal(line.words) for line in lines]}
    figure.update_yaxes(**rows, autorange="reversed", automargin=True, showgrid=False, zeroline=False)
    return figure.update_xaxes(title="AUROC, unsafe above safe")


def _finite(away: dict[str, Any]) -> dict[str, Any]:
    return away | {side: np.nan_to_num(away[side]) for side in ("array", "arrayminus")}


def heads(table: pd.DataFrame, *, k: int = 20) -> go.Figure:
    """The first heads of one ranking with intervals and status; see `workbench.plot.heads`."""
    chart = rankings.head_list(table, k)
    shown = chart.table
    legend = {"x": 1, "xanchor": "right", "y": 0}
    height = 110 + 22 * len(shown)
    figure = _figure(chart.title, height=height, width=520, showlegend=bool(shown["status"].any()), legend=legend)
    symbols = {"certain": "circle", "possible": "circle-open", "excluded": "x-thin-open", "": "circle"}
    for status, symbol in symbols.items():
        part = shown[shown["status"] == status]
        away = {"array": part["ci_high"] - part["value"], "arrayminus": part["value"] - part["ci_low"]}
        if len(part):
            figure.add_scatter(
                x=part["value"],
                y=part.index,
                mode="markers",
                name=rankings.STATUSES.get(status, ""),
                marker={"symbol": symbol, "size": 9, "color": MIDDLE if status == "excluded" else theme.SERIES[0]},
                error_x=_finite(away | {"symmetric": False, "thickness": 1}),
                hovertemplate="%{x:.4g}<extra></extra>",
            )
    rows = {"tickvals": shown.index.tolist(), "ticktext": [literal(name) for name in chart.names]}
    figure.update_yaxes(**rows, autorange="reversed", automargin=True, showgrid=False, zeroline=False)
    return figure.update_xaxes(title=literal(chart.axis))


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
            look = {"line": {"color": colour, "width": 2}, "fillcolor": _faint(colour), "fill": "tozeroy"}
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
        line = {"color": MIDDLE, "width": 1.5, "dash": "dash"}
        words = f"threshold {chart.threshold:.3g}"
        figure.add_vline(x=chart.threshold, line=line, annotation_text=words, annotation_font_size=11)
    figure.update_xaxes(title=literal(chart.axis), zeroline=False)
    rows = {
        "tickvals": list(range(len(chart.families))),
        "ticktext": [literal(family) for family in chart.families],
        "showgrid": False,
    }
    figure.update_yaxes(zeroline=False, **(rows if chart.families else {"visible": False}))
    return figure
