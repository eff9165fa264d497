"""A run as one HTML file that needs no kernel and no network: the explorer on stored data."""

import base64
import hashlib
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import xarray as xr
from PIL import Image

from workbench.checking import Converted, Whole, checked
from workbench.errors import FigureError, PromptError
from workbench.plain import plain
from workbench.prompts.prompt import Prompt
from workbench.runs.reading import RunLike, SomeRun, as_checked_run
from workbench.views.explorer import assets
from workbench.views.explorer.gathering import as_prompt_source, gathered, manifest_of
from workbench.views.explorer.packing import Packed
from workbench.views.explorer.stored import Stored
from workbench.views.explorer.traced import pack_trace

MOST_BYTES = 10 * 2**20
LONGEST_TEXT = 10**5  # letters of one prompt
THUMBNAIL = 256  # pixels


def _as_html(path: Any) -> Path:
    if not isinstance(path, str | Path) or Path(path).suffix.lower() not in (".html", ".htm") or "\0" in str(path):
        raise ValueError("must be the path of an .html file")
    return Path(path)


@checked
def save_report(
    run: SomeRun,
    path: Annotated[Path, Converted(_as_html)],
    *others: RunLike,
    prompts: Annotated[Sequence[Prompt] | str | Path, Converted(as_prompt_source)] | None = None,
    scores: pd.DataFrame | Sequence[pd.DataFrame] | None = None,
    texts: bool = False,
    pictures: Sequence[str] = (),
    k: Annotated[int, Whole(1, 50)] = 5,
    trace: xr.Dataset | str | Path | None = None,
) -> Path:
    """Write a run as one HTML file to send: it opens without a network, and without Python.

    What is shown is what `explore` shows of stored data: maps, ranks with their stability, every value on every prompt,
    where the run came from. `report.html#head=L3H6&prompt=ID` opens at a head and a prompt. Texts and pictures of
    prompts are left out unless they are asked for. The page may load nothing and send nothing: its own policy says so
    to the browser.

    Args:
        run: A run, or the path of a stored one.
        path: The file to write, `.html`.
        others: More runs, to compare with it.
        prompts: The prompts of the run, for texts and pictures; without them, those that the run says how to draw
            again.
        scores: A score table to show (a sequence of them for several runs); without it, `wb.score(run)`.
        texts: Whether the texts of prompts are written into the file.
        pictures: Ids of the prompts of which a small picture is written into the file.
        k: Number of first heads whose stability is said.
        trace: Of the same model, from `wb.trace`, or the path of a stored one; shown in a panel of its own.

    Returns:
        The path.

    Raises:
        FigureError: For a file that cannot be written.
        PromptError: For texts or pictures of prompts that are not at hand.

    Examples:
        >>> import workbench as wb
        >>> model = wb.load_model("planted")
        >>> run = wb.sweep(model, wb.load_prompts("planted", n=24), progress=False)
        >>> wb.save_report(run, "report.html").stat().st_size < 10 * 2**20
        True
    """
    runs = gathered([as_checked_run(one) for one in (run, *others)], prompts=prompts, scores=scores)
    asked = _asked(runs, texts, pictures)
    packed = Packed()
    flow = None if trace is None else pack_trace(packed, trace, runs)
    for place, stored in enumerate(runs):
        stored.pack_scores(packed, place, rule="*", k=k)
    left_out = _pack_values(runs, packed)
    manifest = manifest_of(runs, packed, texts=LONGEST_TEXT if texts else 0)
    manifest |= {"pictures": asked, "first": manifest["first"] | {"k": k}, "left_out": left_out, "trace": flow}
    page = page_of(manifest, packed.data)
    try:
        path.write_text(page, encoding="utf-8")
    except (OSError, ValueError) as error:
        raise FigureError(
            f"The report cannot be written to {plain(str(path)[:200])!r} ({type(error).__name__}). Give a path in a "
            "folder that exists and may be written to."
        ) from error
    return path


def _asked(runs: Sequence[Stored], texts: bool, pictures: Sequence[str]) -> dict[str, str]:
    """Small pictures of the prompts asked for, as data addresses."""
    prompts: Mapping[str, Prompt] = runs[0].prompts
    if (texts or pictures) and not prompts:
        raise PromptError(
            "The run keeps ids, not prompts, so texts and pictures need them: give prompts=…, or leave out texts and "
            "pictures."
        )
    shown = {}
    for name in pictures:
        if name not in prompts or prompts[name].image is None:
            raise PromptError(
                f"The run has no prompt {plain(name)[:80]!r} with a picture; give ids of prompts that have one."
            )
        shown[name] = f"data:image/jpeg;base64,{base64.b64encode(_thumbnail(prompts[name].image)).decode()}"
    return shown


def _thumbnail(picture: Any) -> bytes:
    small: Image.Image = picture.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=82)
    return buffer.getvalue()


def _pack_values(runs: Sequence[Stored], packed: Packed) -> list[str]:
    """Values on every prompt, criterion by criterion as far as the file stays under its size; what is left out."""
    left_out, room = [], MOST_BYTES * 3 // 4 - 2**19 - len(packed.data)  # base64 takes four letters for three bytes
    for place, stored in enumerate(runs):
        each = stored.values_bytes() // max(1, len(stored.per_prompt))
        for criterion in stored.per_prompt:
            if each > room:
                left_out.append(f"{stored.label}: {criterion}")
                continue
            stored.pack_values(packed, place, criterion)
            room -= each
    return left_out


def page_of(manifest: Mapping[str, Any], data: bytes) -> str:
    """The file: style, data and script in one, under a policy that lets nothing else in or out."""
    style = assets.style()
    script = assets.script() + "openPage();\n"
    policy = (
        f"default-src 'none'; script-src '{_mark(script)}'; style-src '{_mark(style)}'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
    # Inside a script element only "</" and "<!--" could end the text early; no "<" is left at all.
    words = json.dumps(manifest, allow_nan=False, ensure_ascii=True).replace("<", "\\u003c")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(str(manifest['title']))}</title>\n<style>{style}</style>\n</head>\n"
        '<body class="wbx-page">\n<main id="workbench">This page needs JavaScript, which it brings along.</main>\n'
        f'<script type="application/json" id="manifest">{words}</script>\n'
        f'<script type="text/plain" id="arrays">{base64.b64encode(data).decode()}</script>\n'
        f'<script type="module">{script}</script>\n</body>\n</html>\n'
    )


def _mark(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
