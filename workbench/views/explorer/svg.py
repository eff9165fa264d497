"""The explorer's drawings, as SVG: pure functions from numbers to a string, in which every word is escaped.

Marks that can be clicked carry `data-key`, marks that say something under the pointer `data-tip`.
"""

import itertools
from collections.abc import Callable, Sequence
from html import escape

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.ticker import MaxNLocator
from scipy.stats import gaussian_kde

from workbench.axes import head_name
from workbench.views import theme
from workbench.views.picks import Head

Place = Callable[[float], float]  # from a value to where it lies across the drawing, pixels

_TYPE = "font-family:var(--jp-ui-font-family,system-ui,sans-serif);font-size:11px"
_TEXT = "var(--jp-ui-font-color1,#333)"
_QUIET = "var(--jp-ui-font-color2,#616161)"
_LINE = "var(--jp-border-color2,#E0E0E0)"


def _svg(width: float, height: float, name: str, inside: Sequence[str], *, focus: bool = False) -> str:
    reach = ' tabindex="0"' if focus else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" role="img" '
        f'aria-label="{escape(name)}"{reach} style="{_TYPE}">{"".join(inside)}</svg>'
    )


def _text(x: float, y: float, words: str, *, anchor: str = "middle", fill: str = _QUIET, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}" {more}>{escape(words)}</text>'


def heat_map(
    cells: np.ndarray,
    *,
    title: str,
    unit: str,
    column: str,
    marked: Sequence[Head] = (),
    selected: Sequence[Head] = (),
    width: float = 276,
) -> str:
    """A layer × head map; layer 0 is at the bottom, and a head that was not computed is hatched.

    Args:
        cells: One value a head, [layer, head]; NaN is not computed.
        unit: Of the colour bar.
        column: Of the score table; it decides the scale, and is named under the pointer.
        marked: Heads that a rule picks, best first; numbered.
        selected: Heads to frame.
    """
    layers, heads = cells.shape
    scale = theme.scale(cells, column=column)
    left, top, right = 32.0, 26.0, 50.0
    side = (width - left - right) / heads
    tall = min(side, 420 / layers) * layers
    high = tall / layers
    gap = 1.0 if max(layers, heads) <= 16 else 0.2

    def corner(head: Head) -> tuple[float, float]:
        return left + head[1] * side, top + (layers - 1 - head[0]) * high

    parts = [_HATCH, _text(left, 14, title, anchor="start", fill=_TEXT, more='style="font-size:12px;font-weight:600"')]
    for head in itertools.product(range(layers), range(heads)):
        (x, y), value = corner(head), float(cells[head])
        known = np.isfinite(value)
        said = f"{theme.COLUMN_WORDS[column]} {value:.3g} {unit}" if known else "not computed"
        parts.append(
            f'<rect x="{x:.2f}" y="{y:.2f}" width="{side - gap:.2f}" height="{high - gap:.2f}" '
            f'fill="{_colour(value, scale) if known else "url(#wb-hatch)"}" data-key="{head[0]},{head[1]}" '
            f'data-tip="{escape(head_name(*head))}: {escape(said)}"/>'
        )
    for rank, head in enumerate(marked, start=1):
        x, y = corner(head)
        ink = _ink(float(cells[head]), scale)
        parts.append(_text(x + side / 2, y + high / 2 + 4, str(rank), fill=ink, more='pointer-events="none"'))
    for head in selected:
        x, y = corner(head)
        frame = f'x="{x - 0.5:.2f}" y="{y - 0.5:.2f}" width="{side:.2f}" height="{high:.2f}" fill="none"'
        for ink, thick in (("#fff", 5), (theme.LABEL_COLOURS["unsafe"], 2.5)):
            parts.append(f'<rect {frame} stroke="{ink}" stroke-width="{thick}" pointer-events="none"/>')
    for layer in _steps(layers):
        parts.append(_text(left - 6, corner((layer, 0))[1] + high / 2 + 4, str(layer), anchor="end"))
    for column_number in _steps(heads):
        parts.append(_text(corner((0, column_number))[0] + side / 2, top + tall + 13, str(column_number)))
    parts.append(_text(left + heads * side / 2, top + tall + 28, "head"))
    turned = f'transform="rotate(-90 10 {top + tall / 2:.1f})"'
    parts.append(_text(10, top + tall / 2, "layer", more=turned))
    parts += _bar(scale, x=left + heads * side + 8, y=top, tall=tall)
    parts.append(_text(width - 6, 14, unit, anchor="end"))
    return _svg(width, top + tall + 36, f"{title}, layer by head", parts, focus=True)


_HATCH = (
    '<defs><pattern id="wb-hatch" width="5" height="5" patternTransform="rotate(45)" patternUnits="userSpaceOnUse">'
    f'<rect width="5" height="5" fill="transparent"/><line x1="0" y1="0" x2="0" y2="5" stroke="{theme.QUIET}" '
    'stroke-width="2"/></pattern></defs>'
)


def _steps(count: int) -> range:
    """Ticks 0, k, 2k, … with at most nine of them."""
    return range(0, count, next(k for k in (1, 2, 4, 8, 16, 32, 64, 128, 256) if count <= 9 * k))


def _colour(value: float, scale: theme.Scale) -> str:
    return to_hex(colormaps[scale.colours](scale.share(value)))


def _ink(value: float, scale: theme.Scale) -> str:
    """White on a dark cell, dark on a light one, by the luminance of its colour."""
    red, green, blue, _ = colormaps[scale.colours](scale.share(value))
    return "#fff" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.55 else "#111"


def _bar(scale: theme.Scale, *, x: float, y: float, tall: float) -> list[str]:
    """A colour bar in thin slices, with its ticks."""
    slices = 48
    parts = [
        f'<rect x="{x:.1f}" y="{y + tall * (1 - (i + 1) / slices):.2f}" width="8" height="{tall / slices + 0.5:.2f}" '
        f'fill="{to_hex(colormaps[scale.colours]((i + 0.5) / slices))}"/>'
        for i in range(slices)
    ]
    ticks = theme.log_ticks(scale.low, scale.high) if scale.log else MaxNLocator(4).tick_values(scale.low, scale.high)
    for tick in ticks:
        if scale.low <= tick <= scale.high:
            at = y + tall * (1 - scale.share(tick))
            parts.append(_text(x + 11, at + 4, theme.tick_label(tick), anchor="start", more='style="font-size:10px"'))
    return parts


def distribution(
    table: pd.DataFrame, *, axis: str, by: str = "label", threshold: float | None = None, width: float = 392
) -> str:
    """One head's value on every prompt: a density a label over its prompts, or a row of prompts a family.

    Args:
        table: Columns `prompt, value, label, family`; values that are not finite are left out.
        axis: Name and unit of the value.
        by: `label` or `family`.
        threshold: In the unit of the value; drawn where given.
    """
    table = table[np.isfinite(table["value"])]
    if table.empty:
        return _svg(width, 60, "no values", [_text(width / 2, 30, "This head was not computed.")])
    families = sorted(set(table["family"])) if by == "family" else []
    left, right, top = (86.0 if families else 12.0), 12.0, 30.0
    body = max(150.0, 30.0 * len(families))
    low, high = float(table["value"].min()), float(table["value"].max())
    if threshold is not None:
        low, high = min(low, threshold), max(high, threshold)
    room = 0.06 * (high - low) or 0.5
    low, high = low - room, high + room

    def place(value: float) -> float:
        return left + (value - low) / (high - low) * (width - left - right)

    parts = []
    for tick in map(float, MaxNLocator(6).tick_values(low, high)):
        if low <= tick <= high:
            x = place(tick)
            parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{top + body}" stroke="{_LINE}"/>')
            parts.append(_text(x, top + body + 14, f"{tick:.6g}"))
    parts.append(_text(left + (width - left - right) / 2, top + body + 31, axis))
    for i, family in enumerate(families):
        parts.append(_text(left - 8, top + body * (i + 0.5) / len(families) + 4, family or "(none)", anchor="end"))
    for i, (label, colour) in enumerate(theme.LABEL_COLOURS.items()):
        part = table[table["label"] == label]
        parts.append(f'<rect x="{left + 120 * i}" y="4" width="10" height="10" rx="2" fill="{colour}"/>')
        parts.append(_text(left + 120 * i + 15, 13, f"{label} (n = {len(part)})", anchor="start", fill=_TEXT))
        if families:
            parts += _points(part, families, place, colour, top=top, body=body)
        else:
            parts += _density(part["value"].to_numpy(), place, colour, floor=top + body - 34, tall=body - 40)
            parts += _rug(part, place, colour, y=top + body - 30 + 15 * i)
    if threshold is not None:
        x = place(threshold)
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top - 4}" y2="{top + body}" stroke="{_TEXT}" '
            'stroke-dasharray="5 3" stroke-width="1.3"/>'
        )
        anchor, nudge = ("start", 4) if x < width * 0.7 else ("end", -4)
        parts.append(_text(x + nudge, top + 6, f"threshold {threshold:.3g}", anchor=anchor, fill=_TEXT))
    return _svg(width, top + body + 40, f"{axis} on safe and unsafe prompts", parts)


def _density(values: np.ndarray, place: Place, colour: str, *, floor: float, tall: float) -> list[str]:
    """A Gaussian kernel density scaled to height 1; values without spread have none and are left to the rug."""
    if len(values) < 2 or np.ptp(values) == 0:
        return []
    reach = 0.06 * np.ptp(values)
    at = np.linspace(values.min() - reach, values.max() + reach, 120)
    height = gaussian_kde(values)(at)
    line = " ".join(
        f"{x:.1f},{floor - tall * h:.1f}" for x, h in zip(map(place, at), height / height.max(), strict=True)
    )
    ends = f"{place(at[0]):.1f},{floor} {line} {place(at[-1]):.1f},{floor}"
    return [
        f'<polygon points="{ends}" fill="{colour}" fill-opacity="0.14"/>',
        f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>',
    ]


def _rug(part: pd.DataFrame, place: Place, colour: str, *, y: float) -> list[str]:
    return [
        f'<rect x="{place(row.value) - 1.5:.1f}" y="{y:.1f}" width="3" height="12" fill="{colour}" fill-opacity="0.6" '
        f'data-key="{escape(row.prompt)}" data-tip="{escape(row.prompt)}: {row.value:.3g}"/>'
        for row in part.itertuples()
    ]


def _points(
    part: pd.DataFrame, families: list[str], place: Place, colour: str, *, top: float, body: float
) -> list[str]:
    each = body / len(families)
    rank = {family: i + 0.5 for i, family in enumerate(families)}
    jitter = np.random.default_rng(0).uniform(-0.28, 0.28, len(part))
    return [
        f'<circle cx="{place(row.value):.1f}" r="3.5" cy="{top + each * (rank[row.family] + shift):.1f}" '
        f'fill="{colour}" fill-opacity="0.6" data-key="{escape(row.prompt)}" '
        f'data-tip="{escape(row.prompt)}: {row.value:.3g}"/>'
        for row, shift in zip(part.itertuples(), jitter, strict=True)
    ]
