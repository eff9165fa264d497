"""The explorer's drawings, as SVG: pure functions from charts to a string, in which every word is escaped.

Marks that can be clicked carry `data-key`, marks that say something under the pointer `data-tip`.
"""

import html
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from workbench.axes import head_name
from workbench.views import charts, distributions, theme
from workbench.views.charts import Head
from workbench.views.explorer.markup import escape

Place = Callable[[float], float]  # from a value to where it lies across the drawing, pixels

_TYPE = "font-family:var(--jp-ui-font-family,system-ui,sans-serif);font-size:11px"
_TEXT = "var(--jp-ui-font-color1,#333)"
_QUIET = "var(--jp-ui-font-color2,#616161)"
_LINE = "var(--jp-border-color2,#E0E0E0)"
_HATCH = (
    '<defs><pattern id="wb-hatch" width="5" height="5" patternTransform="rotate(45)" patternUnits="userSpaceOnUse">'
    f'<rect width="5" height="5" fill="transparent"/><line x1="0" y1="0" x2="0" y2="5" stroke="{theme.QUIET}" '
    'stroke-width="2"/></pattern></defs>'
)


def _tag(name: str, inside: str = "", **attributes: Any) -> str:
    """One element: numbers to two decimals, `_` in a name is `-`, values are escaped; `inside` is markup already.

    A key goes back to Python, and keeps every character.
    """
    written = ""
    for key, value in attributes.items():
        words = html.escape(str(value)) if key == "data_key" else escape(value)
        written += f' {key.replace("_", "-")}="{f"{value:.2f}" if isinstance(value, float) else words}"'
    return f"<{name}{written}>{inside}</{name}>"


def _text(x: float, y: float, words: str, *, anchor: str = "middle", fill: str = _QUIET, **more: Any) -> str:
    return _tag("text", escape(words), x=float(x), y=float(y), text_anchor=anchor, fill=fill, **more)


def _svg(width: float, height: float, name: str, inside: Sequence[str], **more: Any) -> str:
    words = {"role": "img", "aria_label": name, "style": _TYPE} | more
    namespace = "http://www.w3.org/2000/svg"
    return _tag("svg", "".join(inside), xmlns=namespace, width=round(width), height=round(height), **words)


def heat_map(
    chart: charts.HeadMap,
    *,
    title: str = "",
    marked: Sequence[Head] = (),
    selected: Sequence[Head] = (),
    width: float = 276,
) -> str:
    """A layer × head map; layer 0 is at the bottom, and a head that was not computed is hatched.

    Args:
        title: In place of the chart's own.
        marked: Heads that a rule picks, best first; numbered.
        selected: Heads to frame.
    """
    layers, heads = chart.cells.shape
    left, top, right = 32.0, 26.0, 50.0
    side = (width - left - right) / heads
    high = min(side, 420 / layers)
    tall = high * layers
    gap = 1.0 if chart.gaps else 0.2

    def corner(layer: int, head: int) -> tuple[float, float]:
        return left + head * side, top + (layers - 1 - layer) * high

    bold = "font-size:12px;font-weight:600"
    parts = [_HATCH, _text(left, 14, title or chart.title, anchor="start", fill=_TEXT, style=bold)]
    known = [(layer, head) for layer, head in np.ndindex(layers, heads) if np.isfinite(chart.cells[layer, head])]
    look = dict(zip(known, chart.inks(known), strict=True))
    for cell in itertools.product(range(layers), range(heads)):
        x, y = corner(*cell)
        parts.append(
            _tag(
                "rect",
                x=x,
                y=y,
                width=side - gap,
                height=high - gap,
                fill=look.get(cell, ("url(#wb-hatch)", ""))[0],
                data_key=f"{cell[0]},{cell[1]}",
                data_tip=f"{head_name(*cell)}: {chart.value_words(cell)}",
            )
        )
    through = {"pointer_events": "none"}
    for rank, cell in enumerate(marked, start=1):
        x, y = corner(*cell)
        parts.append(_text(x + side / 2, y + high / 2 + 4, str(rank), fill=look[cell][1], **through))
    for cell, (ink, thick) in itertools.product(selected, (("#fff", 5), (theme.LABEL_COLOURS["unsafe"], 2.5))):
        x, y = corner(*cell)
        frame: dict[str, Any] = {"x": x - 0.5, "y": y - 0.5, "width": side, "height": high, "fill": "none"}
        parts.append(_tag("rect", **frame, stroke=ink, stroke_width=str(thick), **through))
    parts += [_text(left - 6, corner(i, 0)[1] + high / 2 + 4, str(i), anchor="end") for i in charts.steps(layers)]
    parts += [_text(corner(0, i)[0] + side / 2, top + tall + 13, str(i)) for i in charts.steps(heads)]
    parts.append(_text(left + heads * side / 2, top + tall + 28, "head"))
    parts.append(_text(10, top + tall / 2, "layer", transform=f"rotate(-90 10 {top + tall / 2:.1f})"))
    parts += _bar(chart.scale, x=left + heads * side + 8, y=top, tall=tall)
    parts.append(_text(width - 6, 14, chart.unit, anchor="end"))
    return _svg(width, top + tall + 36, f"{title or chart.title}, layer by head", parts, tabindex=0)


def _bar(scale: charts.Scale, *, x: float, y: float, tall: float) -> list[str]:
    """A colour bar in thin slices, with its ticks."""
    slices = 48
    colours = theme.shades(scale.colours, [(i + 0.5) / slices for i in range(slices)])
    thin: dict[str, Any] = {"width": 8, "height": tall / slices + 0.5}
    parts = [
        _tag("rect", x=x, y=y + tall * (1 - (i + 1) / slices), **thin, fill=colour)
        for i, (colour, _) in enumerate(colours)
    ]
    for tick in scale.ticks:
        at = y + tall * (1 - scale.share(tick)) + 4
        parts.append(_text(x + 11, at, charts.tick_label(tick), anchor="start", style="font-size:10px"))
    return parts


def distribution(chart: distributions.Distribution, *, width: float = 392) -> str:
    """One head's value on every prompt: a density a label over its prompts, or a row of prompts a family."""
    if chart.table.empty:
        return _svg(width, 60, "no values", [_text(width / 2, 30, "This head was not computed.")])
    rows = len(chart.families)
    left, right, top = (86.0 if rows else 12.0), 12.0, 30.0
    body = max(150.0, 30.0 * rows)
    foot = top + body
    low, high = chart.ends

    def place(value: float) -> float:
        return left + (value - low) / (high - low) * (width - left - right)

    def upright(value: float, y1: float, **look: Any) -> str:
        return _tag("line", x1=place(value), x2=place(value), y1=y1, y2=foot, **look)

    parts = []
    for tick in charts.linear_ticks(low, high, most=6):
        parts += [upright(tick, top, stroke=_LINE), _text(place(tick), foot + 14, charts.tick_label(tick))]
    parts.append(_text(left + (width - left - right) / 2, foot + 31, chart.axis))
    for i, family in enumerate(chart.families):
        parts.append(_text(left - 8, top + body * (i + 0.5) / rows + 4, family or "(none)", anchor="end"))
    for i, (words, colour, part) in enumerate(chart.parts()):
        parts.append(_tag("rect", x=left + 120 * i, y=4, width=10, height=10, rx=2, fill=colour))
        parts.append(_text(left + 120 * i + 15, 13, words, anchor="start", fill=_TEXT))
        if not rows:
            parts += _density(part["value"].to_numpy(), place, colour, floor=foot - 34, tall=body - 40)
        for row in part.itertuples():
            look: dict[str, Any] = {"fill": colour, "fill_opacity": 0.6, "data_key": row.prompt}
            look["data_tip"] = f"{row.prompt}: {row.value:.3g}"
            if rows:
                parts.append(_tag("circle", cx=place(row.value), r=3.5, cy=top + body / rows * (row.row + 0.5), **look))
            else:
                mark: dict[str, Any] = {"x": place(row.value) - 1.5, "y": foot - 30 + 15 * i, "width": 3, "height": 12}
                parts.append(_tag("rect", **mark, **look))
    if np.isfinite(chart.threshold):
        x = place(chart.threshold)
        dashed: dict[str, Any] = {"stroke": _TEXT, "stroke_dasharray": "5 3", "stroke_width": 1.3}
        parts.append(upright(chart.threshold, top - 4, **dashed))
        anchor, nudge = ("start", 4) if x < width * 0.7 else ("end", -4)
        parts.append(_text(x + nudge, top + 6, f"threshold {chart.threshold:.3g}", anchor=anchor, fill=_TEXT))
    return _svg(width, foot + 40, f"{chart.axis} on safe and unsafe prompts", parts)


def _density(values: np.ndarray, place: Place, colour: str, *, floor: float, tall: float) -> list[str]:
    """The filled curve of a density; nothing where there is none."""
    at, height = distributions.density(values)
    if not at.size:
        return []
    line = " ".join(f"{place(x):.1f},{floor - tall * h:.1f}" for x, h in zip(at, height, strict=True))
    ends = f"{place(at[0]):.1f},{floor} {line} {place(at[-1]):.1f},{floor}"
    return [
        _tag("polygon", points=ends, fill=colour, fill_opacity=0.14),
        _tag("polyline", points=line, fill="none", stroke=colour, stroke_width=2),
    ]
