"""`save_figures`: a run's figures for a paper, drawn by matplotlib and written without a browser.

The same run and the same library versions give the same bytes: no dates, no random ids, fonts included.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from workbench.axes import Head
from workbench.checking import Place, checked, plainly
from workbench.criteria import SCORE_COLUMNS, score
from workbench.errors import FigureError
from workbench.plain import write_table
from workbench.runs.reading import SomeRun, as_run, check_run
from workbench.views import charts, rankings, theme
from workbench.views.charts import picks
from workbench.views.figures import captions, pages
from workbench.views.figures.style import get_style, settings

# What each format would otherwise write about the moment and the program that made it.
_METADATA = {
    "pdf": {"CreationDate": None, "ModDate": None, "Creator": None, "Producer": None},
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
}
_ABREAST = 3  # criteria side by side in 6.9 inches
_SIDECAR = "captions.md"
_SHOWN = ["criterion", "projection", "layer", "head", "safe", "unsafe"]


class _Page(NamedTuple):
    """One figure with its file name (no suffix), how it is drawn, its numbers and its caption."""

    name: str
    draw: Callable[..., Figure]
    table: pd.DataFrame
    caption: str


@checked
def save_figures(
    run: SomeRun,
    out: Annotated[str | Path, Place()],
    formats: Sequence[str] | str = ("pdf", "svg", "png"),
    *,
    scores: pd.DataFrame | None = None,
    only: str | Sequence[str] = "*",
    width: Any = "own",
    style: str = "workbench",
    latex: bool = False,
    heads: Sequence[Any] | None = None,
) -> list[Path]:
    """Draw a run's figures at column width and write them, each with its numbers as CSV, and a file of captions.

    For each criterion with a mean on safe and on unsafe prompts and each projection: the two layer × head
    maps (`maps_<criterion>_<projection>`). For the first such criterion (deflection, unless `scores` says
    otherwise): the selectivity plot, and query against value. For all criteria: their maps side by side with
    AUROC, and how far their rankings agree. A head that was not computed is hatched.

    Args:
        run: A run as `wb.sweep` returns it, or the path of a stored one.
        out: A folder; made if it is missing. Files of the same names are replaced.
        formats: Any of `pdf`, `svg`, `png` (300 dots per inch).
        scores: A score table to draw; without it, `wb.score(run)`.
        only: Names of the figures to draw, without their suffix; `*` stands for anything (`"maps_*"`).
        width: `"column"`, `"page"`, or inches; by default each has its own of the two.
        style: Widths and letters of a venue: `"workbench"` (3.3 and 6.9 inches), `"acl"`, `"cvpr"`, `"iclr"`, `"icml"`,
            `"ieee"` or `"neurips"`.
        latex: Have LaTeX set all text; it must be installed.
        heads: (layer, head) or names of the heads to frame and name, in place of those that selectivity picks.

    Returns:
        Every file written, `captions.md` last.

    Raises:
        FigureError: For an unknown format, style or head, a folder that cannot be written, LaTeX where there is none,
            or a run or table without what is drawn.

    Examples:
        >>> import workbench as wb
        >>> prompts = wb.load_prompts("planted", n=24)
        >>> run = wb.sweep(wb.load_model("planted"), prompts, progress=False)
        >>> scores = wb.score(run, "deflection")
        >>> files = wb.save_figures(run, "figures", formats=("png",), scores=scores)
        >>> files[0].name, files[-1].name
        ('maps_deflection_query.png', 'captions.md')
    """
    formats, run, page_style = checked_formats(formats), as_run(run), get_style(style)
    sheet = pages.Sheet(page_style, 0.0 if isinstance(width, str) and width == "own" else page_style.inches(width))
    table = _checked_scores(run, scores)
    folder = writable_folder(Path(out))
    written, sections = [], []
    names: set[str] = set()
    drawn = {_file_name(page.name, names): page for page in _pages(run, table, heads)}
    wanted = [only] if isinstance(only, str) else list(only)
    chosen = [name for name in drawn if any(fnmatchcase(name, want) for want in wanted)]
    if drawn and not chosen:
        raise FigureError(f"No figure is called {' or '.join(map(repr, wanted))}; there are {', '.join(drawn)}.")
    with matplotlib.rc_context(settings(page_style, latex=latex) | {"axes.titley": 1.0}):  # no ticks above, to look for
        for name in chosen:
            page = drawn[name]
            figure = page.draw(sheet=sheet)
            pages.lay_out(figure)
            files = [folder / f"{name}.{suffix}" for suffix in formats]
            for file in files:
                write_figure(figure, file)
            written += [*files, write_table(page.table, folder / f"{name}.csv")]
            sections.append(f"## {name}\n\n{page.caption}\n")
    sidecar = folder / _SIDECAR
    made = "\n".join(captions.provenance(run))
    sidecar.write_text(
        "\n".join(
            [
                "# Figures\n",
                *captions.minded(run),
                *sections,
                "## Where they come from\n",
                made,
                "",
                captions.rebuild(run, folder),
                "",
            ]
        )
    )
    return [*written, sidecar]


def _file_name(name: str, taken: set[str]) -> str:
    """A name that stays in its folder on every system, and that no other figure has; criteria are named by others."""
    safe = re.sub(r"[^\w-]+", "-", name, flags=re.ASCII)[:80].strip("-")
    ends = itertools.chain([""], (f"_{i}" for i in itertools.count(2)))
    free = next(safe + end for end in ends if safe + end not in taken)
    taken.add(free)
    return free


def checked_formats(formats: Sequence[str]) -> tuple[str, ...]:
    """Suffixes that figures are written with; a FigureError for others."""
    asked = (formats,) if isinstance(formats, str) else tuple(formats)
    unknown = [f for f in asked if f not in _METADATA]
    if unknown or not asked:
        got = ", ".join(map(plainly, unknown)) or "none"
        raise FigureError(
            f"Figures are written as {', '.join(_METADATA)}; got {got}. Pass formats=('pdf', 'png'), for example."
        )
    return tuple(dict.fromkeys(asked))


def writable_folder(folder: Path) -> Path:
    """The folder, made if it is missing; a FigureError if nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{_SIDECAR}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = error.strerror or str(error)
        raise FigureError(
            f"Figures need a folder that can be written; {folder} cannot ({reason}). Name another with out=."
        ) from error
    return folder


def _checked_scores(run: xr.Dataset, scores: pd.DataFrame | None) -> pd.DataFrame:
    check_run(run)
    if scores is None:
        drawn = charts.usual_criteria(run)
        if not drawn:
            have = ", ".join(map(str, run.data_vars)) or "none"
            raise FigureError(
                f"The run has none of the variables that are drawn (deflection, kl, head_output); it has {have}. "
                "Sweep again with wb.sweep, or pass the table to draw as scores=."
            )
        scores = score(run, criteria=drawn)
    if absent := [c for c in SCORE_COLUMNS if c not in scores]:
        raise FigureError(
            f"A score table needs the columns {', '.join(SCORE_COLUMNS)}; this one lacks {', '.join(absent)}. Use "
            "wb.score(run)."
        )
    if scores.empty:
        raise FigureError("The score table has no rows, so there is nothing to draw. Make one with wb.score(run).")
    return scores


def _pages(run: xr.Dataset, scores: pd.DataFrame, heads: Sequence[Head] | None) -> Iterator[_Page]:
    contrast = scores[scores["safe"].notna()]
    pairs = list(dict.fromkeys(zip(contrast["criterion"], contrast["projection"], strict=True)))
    chosen = {pair: picks(scores, criterion=pair[0], projection=pair[1], heads=heads) for pair in pairs}
    first = pairs[0][0] if pairs else ""
    unit = theme.unit(first)
    for (criterion, projection), kept in chosen.items():
        where: dict[str, Any] = {"criterion": criterion, "projection": projection}
        over = captions.over(run, scores, projection)
        name = criterion if projection == "none" else f"{criterion}_{projection}"
        rows = scores.loc[(scores["criterion"] == criterion) & (scores["projection"] == projection), _SHOWN]
        heading = captions.literal(theme.heading(criterion, projection))
        named = captions.picked(kept, scores, **where)
        decoy = "" if kept.asked else "In dark, where it is no pick: the head that moves most on unsafe prompts. "
        yield _Page(
            f"maps_{name}",
            partial(pages.safe_and_unsafe, scores, **where, picks=kept),
            rows,
            f"**{heading}**: every head's mean in {theme.unit(criterion)} over safe prompts (left) and unsafe prompts "
            "(right), on one colour scale. Layer 0 is at the bottom; hatched heads were not computed. "
            f"{over} Framed, {kept.why}: {named}.",
        )
        if criterion == first:
            yield _Page(
                f"selectivity_{name}",
                partial(pages.selectivity, scores, **where, picks=kept),
                rows,
                f"**Safe against unsafe: {theme.in_a_sentence(heading)}.** One point a head. The rule keeps heads "
                f"{_bound_words(kept.bound, unit)}, and ranks them by unsafe − safe, their height above the grey "
                f"line. Ringed in colour, {kept.why}: {named}. {decoy}A bar through a ring is the 95 % interval of "
                f"unsafe − safe, from the mean on safe prompts up. {over}",
            )
    if {(first, "query"), (first, "value")} <= set(pairs):
        yield _Page(
            "query_against_value",
            partial(pages.query_against_value, scores, criterion=first, picks=chosen[first, "query"]),
            scores.loc[scores["criterion"] == first, _SHOWN],
            "**Masking the query against masking the value**: "
            f"{captions.literal(theme.in_a_sentence(theme.title(first)))} in {unit}, two points a head (mean over safe "
            "and over unsafe prompts); on the grey line both do the same. "
            f"Named, at their unsafe mean: the heads {chosen[first, 'query'].why}. "
            f"{captions.over(run, scores)}",
        )
    criteria = list(dict.fromkeys(scores["criterion"]))
    for projection in [p for p in dict.fromkeys(scores["projection"]) if p != "none"]:
        for page, begin in enumerate(range(0, len(criteria), _ABREAST), start=1):
            part = scores[scores["criterion"].isin(criteria[begin : begin + _ABREAST])]
            shown = {c: charts.projection_of(part, c, projection, strict=False) for c in part["criterion"].unique()}
            yield _Page(
                f"criteria_{projection}" + (f"_{page}" if page > 1 else ""),
                partial(pages.side_by_side, part, projection=projection),
                part.loc[part["projection"] == part["criterion"].map(shown), [*_SHOWN, "auroc"]],
                "**The criteria side by side.** Above: the mean over unsafe prompts (a probe: its held-out accuracy), "
                "each in its own unit. Below: AUROC of unsafe above safe on one scale; 0.5 is no difference. "
                f"{captions.over(run, scores, projection)}",
            )
    registered = scores[[theme.record(criterion) is not None for criterion in scores["criterion"]]]
    if registered.groupby(["criterion", "projection"]).ngroups > 1:
        chart = rankings.agreement(registered)
        yield _Page(
            "agreement",
            partial(pages.agreement, registered, chart=chart),
            chart.table,
            "**Do the criteria rank heads alike?** Spearman's rank correlation over heads between every two rankings "
            f"by the mean over unsafe prompts (for the probe, its accuracy). {captions.over(run, scores)} The "
            "table beside it has 95 % intervals from redrawn prompts.",
        )


def _bound_words(bound: float, unit: str) -> str:
    percentile = "the 80th percentile over heads of the mean on safe prompts"
    if np.isfinite(bound):
        return f"left of the dashed line, {percentile} ({bound:.3g} {unit})"
    return f"under {percentile} (no line: it leans on heads that are not drawn, or is no single value)"


def write_figure(figure: Figure, file: Path) -> None:
    """Write a figure, the same bytes every time: without dates and names of programs."""
    try:
        figure.savefig(file, metadata=_METADATA[file.suffix[1:]])
    except OSError as error:
        raise FigureError(
            f"{file} could not be written ({error.strerror or error}). Name another folder with out=."
        ) from error
