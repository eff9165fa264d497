"""HTML pieces of the explorer: pure functions to strings. Every word from a prompt, a model or a file is escaped."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from workbench.plain import plain
from workbench.views import theme

_COLOURS = "".join(f"--wb-{label}: {colour};" for label, colour in theme.LABEL_COLOURS.items())
STYLE = f"<style>:root {{ {_COLOURS} }}\n{Path(__file__).with_name('style.css').read_text(encoding='utf-8')}</style>"


def escape(text: object) -> str:
    """Words of others as HTML that shows them: no markup, no characters that act unseen."""
    return html.escape(plain(text, keep="\n\t"))


def block(*pieces: str) -> str:
    """Pieces of HTML, already escaped, in the explorer's type."""
    return f'<div class="wb">{"".join(pieces)}</div>'


def error(text: str) -> str:
    return block(f'<div class="wb-error" role="alert">{escape(text)}</div>')


def busy(text: str) -> str:
    return block(f'<span class="wb-busy">{escape(text)}</span>')


def note(text: str) -> str:
    return block(f'<div class="wb-quiet">{escape(text)}</div>')


def chip(text: str, kind: str = "plain") -> str:
    """A small rounded tag; `kind` is `safe`, `unsafe` or `plain`."""
    return f'<span class="wb-chip {kind}">{escape(text)}</span>'


def heading(name: str, *, masked: str, locked: bool) -> str:
    """A head's name with what is masked."""
    tag = chip("locked") if locked else ""
    return f'<span class="wb-head-name">{escape(name)}</span><span class="wb-quiet">{escape(masked)}</span> {tag}'


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A plain table of text; every cell is escaped, and a second line in a cell is set small."""
    top = "".join(f"<th>{escape(h)}</th>" for h in header)
    body = "".join("<tr>" + "".join(f"<td>{_two_lines(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _two_lines(cell: str) -> str:
    first, _, second = cell.partition("\n")
    return escape(first) + (f"<small>{escape(second)}</small>" if second else "")


def prompt_text(text: str, *, label: str, tags: Sequence[str]) -> str:
    chips = chip(label, label if label in theme.LABEL_COLOURS else "plain") + "".join(chip(tag) for tag in tags if tag)
    words = f'<div class="wb-text">{escape(text)}</div>' if text else '<div class="wb-quiet">(no text)</div>'
    return f"{chips}{words}"


def pictures(image: Image.Image, patches: np.ndarray | None, *, side: int = 168) -> str:
    """The picture, and the picture under a head's attention.

    Args:
        patches: Attention [rows, cols] on each patch (a share of all the head's attention); None where the patches
            have no plain grid.
        side: Length of the longer side on the screen, pixels.
    """
    scale = side / max(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    buffer = io.BytesIO()
    shown = image.convert("RGB")
    shown.thumbnail((1024, 1024))
    shown.save(buffer, format="PNG")
    source = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    crisp = "pixelated" if scale > 1.5 else "auto"
    box = f'width="{width}" height="{height}"'
    picture = f'<image href="{source}" {box} preserveAspectRatio="none" style="image-rendering:{crisp}"/>'

    def svg(inside: str, name: str) -> str:
        return f'<svg {box} viewBox="0 0 {width} {height}" role="img" aria-label="{name}">{picture}{inside}</svg>'

    plain = svg("", "the picture of the prompt")
    if patches is None:
        return f'<div class="wb-pictures">{plain}</div>'
    return f'<div class="wb-pictures">{plain}{svg(_veil(patches, width, height), "attention over the picture")}</div>'


def _veil(patches: np.ndarray, width: int, height: int) -> str:
    """A dark veil over the picture, lifted where the head looks; hovering a patch says its share."""
    rows, cols = patches.shape
    top = float(np.nanmax(patches)) or 1.0
    w, h = width / cols, height / rows
    cells = []
    for (row, col), share in np.ndenumerate(patches):
        light = 0.0 if np.isnan(share) else float(share) / top
        cells.append(
            f'<rect x="{col * w:.2f}" y="{row * h:.2f}" width="{w:.2f}" height="{h:.2f}" fill="#10151C" '
            f'fill-opacity="{0.82 * (1 - light):.2f}" stroke="#fff" stroke-opacity="0.18" stroke-width="0.5">'
            f"<title>patch row {row}, column {col}: {share:.1%} of the attention</title></rect>"
        )
    return "".join(cells)


def words(tokens: Sequence[tuple[str, float]]) -> str:
    """Tokens shaded by the attention each gets; the most attended one is darkest, hovering says the share."""
    top = max((share for _, share in tokens if np.isfinite(share)), default=0.0) or 1.0
    spans = []
    for text, share in tokens:
        alpha = 0.0 if not np.isfinite(share) else 0.75 * share / top
        shade = f"background:rgba(230,159,0,{alpha:.2f})"
        spans.append(f'<span class="wb-word" style="{shade}" title="{share:.1%}">{escape(text)}</span>')
    return f'<div class="wb-words">{" ".join(spans)}</div>'


def next_tokens(rows: Sequence[tuple[str, float, float]]) -> str:
    """A row a token: its probability as it is and with the head masked, as bars and numbers."""
    lines = []
    for text, base, masked in rows:
        bars = "".join(
            f'<td class="wb-p"><span class="wb-bar" style="width:{60 * p:.0f}px;background:{fill}"></span>{p:.3f}</td>'
            for p, fill in ((base, theme.NEUTRAL), (masked, theme.LABEL_COLOURS["unsafe"]))
        )
        lines.append(f'<tr><td class="wb-token"><code>{escape(text)}</code></td>{bars}</tr>')
    head = '<th>token</th><th class="wb-p">with the head</th><th class="wb-p">without</th>'
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def replies(base: str, masked: str) -> str:
    """The generated reply with the head and without it."""
    same = '<div class="wb-quiet">The two replies are the same.</div>' if base == masked else ""
    return (
        f'<div class="wb-quiet">with the head</div><div class="wb-reply">{escape(base) or "(empty)"}</div>'
        f'<div class="wb-quiet">without</div><div class="wb-reply masked">{escape(masked) or "(empty)"}</div>{same}'
    )
