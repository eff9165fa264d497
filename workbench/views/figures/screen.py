"""Screen figures: pure functions from a score table or a run to a plotly `Figure`; nothing here displays itself.

The explorer puts them in widgets; in a notebook each can be shown on its own.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from scipy.stats import gaussian_kde

from workbench.axes import head_name
from workbench.criteria import get_criterion, prompt_values
from workbench.criteria.thresholds import kde_threshold
from workbench.errors import CriterionError, FigureError
from workbench.views import theme
from workbench.views.picks import Head, picks

_FONT = {
    "family": "system-ui, -apple-system, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif",
    "size": 12,
    "color": theme.INK,
}
_GRID = "#E6E6E6"


def _layout(**changes: object) -> go.Layout:
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
    return go.Layout(**(base | changes))


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
    shown = projection_of(scores, criterion, projection)
    if column not in theme.COLUMN_WORDS or column not in scores:
        have = ", ".join(c for c in theme.COLUMN_WORDS if c in scores)
        raise FigureError(f"A heat map shows one of the columns {have}; got {column!r}.")
    cells = theme.grid(scores, criterion=criterion, projection=shown, column=column)
    scale = theme.scale(cells, column=column)
    layers, heads = cells.shape
    unit = theme.unit(criterion, column)
    figure = go.Figure(layout=_layout())
    figure.add_heatmap(
        z=_json(np.log10(cells) if scale.log else cells),
        customdata=_json(cells),
        x=np.arange(heads),
        y=np.arange(layers),
        zmin=np.log10(scale.low) if scale.log else scale.low,
        zmax=np.log10(scale.high) if scale.log else scale.high,
        colorscale=scale.colours,
        xgap=1.5 if max(layers, heads) <= 16 else 0,
        ygap=1.5 if max(layers, heads) <= 16 else 0,
        hoverongaps=True,
        hovertemplate=f"L%{{y}}H%{{x}}<br>{theme.COLUMN_WORDS[column]}: %{{customdata:.3g}} {unit}<extra></extra>",
        colorbar=_bar(scale, unit),
    )
    missing = np.argwhere(~np.isfinite(cells))
    figure.add_scatter(
        x=missing[:, 1],
        y=missing[:, 0],
        mode="text",
        text=["╱"] * len(missing),
        hoverinfo="skip",
        textfont={"color": theme.QUIET},
    )
    figure.add_scatter(
        x=[head for _, head in marked],
        y=[layer for layer, _ in marked],
        mode="text",
        text=[str(i + 1) for i in range(len(marked))],
        hoverinfo="skip",
        textfont={"size": 11, "color": [_ink_on(cells[head], scale) for head in marked]},
    )
    figure.update_xaxes(
        title="head", range=[-0.5, heads - 0.5], showgrid=False, zeroline=False, constrain="domain", **_ticks(heads)
    )
    figure.update_yaxes(title="layer", range=[-0.5, layers - 0.5], showgrid=False, zeroline=False, **_ticks(layers))
    figure.update_layout(
        title={
            "text": ", ".join(w for w in (theme.title(criterion), theme.projection_words(shown)) if w),
            "font": {"size": 13},
        },
        shapes=frames(selected),
        height=380,
        width=440,
    )
    return figure


def _json(cells: np.ndarray) -> np.ndarray:
    """NaN has no JSON: None in its place."""
    return np.where(np.isfinite(cells), cells.astype(object), np.array(None))


def _bar(scale: theme.Scale, unit: str) -> dict[str, object]:
    bar = {
        "thickness": 7,
        "outlinewidth": 0,
        "xpad": 4,
        "tickfont": {"size": 10},
        "title": {"text": unit, "side": "right"},
    }
    if not scale.log:
        return bar | {"tickmode": "auto"}
    ticks = theme.log_ticks(scale.low, scale.high)
    return bar | {
        "tickmode": "array",
        "tickvals": np.log10(ticks).tolist(),
        "ticktext": [theme.tick_label(tick) for tick in ticks],
    }


def _ink_on(value: float, scale: theme.Scale) -> str:
    """White on the dark part of a scale (both ends of a signed one, else the low end), dark on the light part."""
    share = scale.share(value)
    dark = abs(share - 0.5) > 0.3 if scale.signed else share < 0.6
    return "#FFFFFF" if dark else "#111111"


def _ticks(count: int) -> dict[str, object]:
    step = next(k for k in (1, 2, 4, 8, 16, 32, 64, 128, 256) if count <= 9 * k)
    return {"tickvals": list(range(0, count, step)), "ticks": "", "title_standoff": 4}


def frames(heads: Sequence[Head]) -> list[dict[str, object]]:
    """A frame around each head, white under vermilion to show on every colour; for `layout.shapes`."""
    shapes = []
    for layer, column in heads:
        corner = {"type": "rect", "x0": column - 0.5, "x1": column + 0.5, "y0": layer - 0.5, "y1": layer + 0.5}
        lines = ({"color": "#FFFFFF", "width": 5}, {"color": theme.LABEL_COLOURS["unsafe"], "width": 2.5})
        shapes += [corner | {"line": line} for line in lines]
    return shapes


def projection_of(scores: pd.DataFrame, criterion: str, projection: str) -> str:
    """The asked projection, or `none` for a criterion that masks no head; FigureError where the table has neither."""
    have = list(dict.fromkeys(scores.loc[scores["criterion"] == criterion, "projection"]))
    if not have:
        known = ", ".join(dict.fromkeys(scores["criterion"]))
        raise FigureError(
            f"The score table has no criterion {criterion!r}; it has {known}. Add it with wb.score(run, criteria=…)."
        )
    if projection in have:
        return projection
    if have == ["none"]:
        return "none"
    raise FigureError(
        f"{criterion} was not computed for the projection {projection!r}; this table has {', '.join(have)}."
    )


def selectivity(scores: pd.DataFrame, criterion: str, projection: str, *, selected: Sequence[Head] = ()) -> go.Figure:
    """Every head by its mean on safe prompts (across) and unsafe prompts (up), with the rule's bound and its picks."""
    shown = projection_of(scores, criterion, projection)
    chosen = picks(scores, criterion=criterion, projection=shown)
    safe, unsafe = (theme.grid(scores, criterion=criterion, projection=shown, column=c) for c in ("safe", "unsafe"))
    heads = [(int(layer), int(head)) for layer, head in np.argwhere(np.isfinite(safe) & np.isfinite(unsafe))]
    named = {*chosen.selective, chosen.sensitive}
    figure = go.Figure(layout=_layout(height=380, width=520, margin={"l": 60, "r": 8, "t": 16, "b": 44}))
    figure.add_scatter(
        x=[safe[h] for h in heads],
        y=[unsafe[h] for h in heads],
        mode="markers+text",
        text=[head_name(*h) if h in named else "" for h in heads],
        customdata=[head_name(*h) for h in heads],
        textposition="top center",
        marker={
            "size": [11 if h in selected else 7 for h in heads],
            "color": [theme.LABEL_COLOURS["unsafe"] if h in chosen.selective else theme.NEUTRAL for h in heads],
            "line": {"width": [2 if h in selected else 0 for h in heads], "color": theme.PICKED},
        },
        hovertemplate="%{customdata}<br>safe %{x:.3g}, unsafe %{y:.3g}<extra></extra>",
    )
    if heads:
        both = np.array([[safe[h], unsafe[h]] for h in heads])
        low, high = float(both.min()), float(both.max())
        # Lines as traces: a log axis moves shapes and their words to other places than points.
        figure.add_scatter(x=[low, high], y=[low, high], mode="lines", line={"color": theme.QUIET}, hoverinfo="skip")
        if np.isfinite(chosen.bound):
            figure.add_scatter(
                x=[chosen.bound] * 2,
                y=[low, high],
                mode="lines+text",
                text=["", "80th percentile"],
                textposition="top right",
                line={"color": theme.INK, "width": 1, "dash": "dash"},
                hoverinfo="skip",
            )
        if theme.wide(both):
            ticks = theme.log_ticks(low, high)
            figure.update_xaxes(type="log", tickvals=ticks)
            figure.update_yaxes(type="log", tickvals=ticks)
    unit = theme.unit(criterion)
    figure.update_xaxes(title=f"mean over safe prompts ({unit})", gridcolor=_GRID, zeroline=False)
    figure.update_yaxes(title=f"mean over unsafe prompts ({unit})", gridcolor=_GRID, zeroline=False)
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
    if by not in ("label", "family"):
        raise FigureError(f"Distributions are drawn by 'label' or 'family'; got {by!r}.")
    table = prompt_table(run, criterion, projection, head=head)
    table["row"] = table["family" if by == "family" else "label"]
    table = table[np.isfinite(table["value"])]
    figure = go.Figure(layout=_layout(height=250, width=392, showlegend=True, barmode="overlay"))
    for label, colour in theme.LABEL_COLOURS.items():
        part = table[table["label"] == label]
        if by == "label":
            _add_density(figure, part["value"].to_numpy(), label=f"{label} (n = {len(part)})", colour=colour)
        jitter = np.random.default_rng(0).uniform(-0.22, 0.22, len(part))
        rows = {name: i for i, name in enumerate(sorted(set(table["row"])))} if by == "family" else {}
        figure.add_scatter(
            x=part["value"],
            y=part["row"].map(rows) + jitter
            if by == "family"
            else np.full(len(part), -0.06 if label == "unsafe" else -0.12),
            customdata=part["prompt"],
            mode="markers",
            name=f"{label} (n = {len(part)})",
            showlegend=by == "family",
            marker={"color": colour, "size": 6 if by == "family" else 8, "opacity": 0.6}
            | ({} if by == "family" else {"symbol": "line-ns", "line": {"color": colour, "width": 1}}),
            hovertemplate="%{customdata}: %{x:.3g}<extra></extra>",
        )
    if threshold is not None and np.isfinite(threshold):
        line = {"color": theme.INK, "width": 1.5, "dash": "dash"}
        figure.add_vline(x=threshold, line=line, annotation_text=f"threshold {threshold:.3g}", annotation_font_size=11)
    figure.update_xaxes(title=f"{theme.title(criterion)} ({theme.unit(criterion)})", gridcolor=_GRID, zeroline=False)
    if by == "family":
        names = sorted(set(table["row"]))
        figure.update_yaxes(tickvals=list(range(len(names))), ticktext=names, showgrid=False, zeroline=False)
    else:
        figure.update_yaxes(visible=False, zeroline=False)
    figure.update_layout(legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "font": {"size": 11}})
    return figure


def _values(run: xr.Dataset, criterion: str, projection: str, head: Head) -> xr.DataArray:
    """A criterion's value of one head on every prompt it has a meaning for, in its own unit."""
    values = prompt_values(run, get_criterion(criterion))
    shown = projection if projection in values["projection"].values else "none"
    return values.sel(projection=shown, layer=head[0], head=head[1])


def prompt_table(run: xr.Dataset, criterion: str, projection: str, *, head: Head) -> pd.DataFrame:
    """One row a prompt: `prompt, value` (of one head, in the criterion's unit), `label, family`."""
    values = _values(run, criterion, projection, head)
    named = {"prompt": values["prompt"].values, "value": values.values, "label": values["label"].values}
    family = values["family"].values if "family" in values.coords else ""
    return pd.DataFrame(named).assign(family=family).astype({"prompt": str, "label": str, "family": str})


def threshold(run: xr.Dataset, criterion: str, projection: str, *, head: Head) -> float | None:
    """The published threshold of one head: where the two densities cross, from the prompts of the split `threshold`.

    Without such a split, from all of them. None where there is no threshold: a class that is constant or too small, or
    a criterion of which larger is not stronger.
    """
    values = _values(run, criterion, projection, head)
    if "split" in values.coords and "threshold" in values["split"].values:
        values = values.isel(prompt=values["split"].values == "threshold")
    numbers = values.values
    if not np.array_equal(get_criterion(criterion).strength(numbers), numbers):
        return None
    unsafe = values["label"].values == "unsafe"
    try:
        return kde_threshold(numbers[unsafe], numbers[~unsafe]).value
    except CriterionError:
        return None


def _add_density(figure: go.Figure, values: np.ndarray, *, label: str, colour: str) -> None:
    """A Gaussian kernel density scaled to height 1; values without spread have none and are left to the rug."""
    if len(values) < 2 or np.ptp(values) == 0:
        figure.add_scatter(x=[None], y=[None], mode="lines", line={"color": colour}, name=label)
        return
    room = 0.1 * np.ptp(values)
    at = np.linspace(values.min() - room, values.max() + room, 200)
    height = gaussian_kde(values)(at)
    rgb = ",".join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))
    figure.add_scatter(
        x=at,
        y=height / height.max(),
        mode="lines",
        line={"color": colour, "width": 2},
        fill="tozeroy",
        name=label,
        hoverinfo="skip",
    )
    figure.data[-1].fillcolor = f"rgba({rgb},0.15)"
