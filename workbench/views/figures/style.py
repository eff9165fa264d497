"""How figures suit a venue: widths of its columns, letters like its text's, and LaTeX where that is asked for."""

import atexit
import shutil
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib
from fontTools import subset
from matplotlib.font_manager import fontManager

from workbench.errors import FigureError
from workbench.plain import plain
from workbench.views import theme


@dataclass(frozen=True)
class Style:
    """The page of a venue.

    Attributes:
        column: Width of a column, in inches.
        page: Width of the whole text, in inches.
        letters: Size of titles and labels, in points; ticks are one smaller.
        serif: Whether its text is set in Times, which the figures then match by a face that comes with matplotlib.
    """

    column: float
    page: float
    letters: float = 8
    serif: bool = True

    def inches(self, width: Any) -> float:
        """A width in inches, from `"column"`, `"page"` or a number.

        Raises:
            FigureError: For anything else.
        """
        if width in ("column", "page"):
            return float(getattr(self, width))
        if isinstance(width, int | float) and not isinstance(width, bool) and 1 <= width <= 40:
            return float(width)
        raise FigureError(f"A figure's width is 'column', 'page', or a number of inches from 1 to 40; got {width!r}.")


# The widths that the venues' own author kits set.
STYLES = {
    "workbench": Style(theme.COLUMN_INCHES, theme.DOUBLE_INCHES, letters=7, serif=False),
    "acl": Style(3.03, 6.3),
    "cvpr": Style(3.25, 6.875),
    "iclr": Style(5.5, 5.5),
    "icml": Style(3.25, 6.75),
    "ieee": Style(3.5, 7.16),
    "neurips": Style(5.5, 5.5),
}


def get_style(name: str) -> Style:
    """A style by name.

    Raises:
        FigureError: For another name; the message lists those there are.
    """
    if name not in STYLES:
        raise FigureError(f"Figures have the styles {', '.join(STYLES)}; got {name!r}.")
    return STYLES[name]


def style(
    name: str = "workbench", *, width: str | float = "column", latex: bool = False
) -> AbstractContextManager[None]:
    """Draw in the style of a venue for the length of a block; your own matplotlib settings come back after it.

    Args:
        name: `"workbench"`, `"acl"`, `"cvpr"`, `"iclr"`, `"icml"`, `"ieee"` or `"neurips"`.
        width: Of new figures: `"column"` or `"page"` of that venue, or inches.
        latex: Have LaTeX set all text, in the faces of the venue; it must be installed, with dvipng for PNG.

    Raises:
        FigureError: For an unknown style or width, or LaTeX where there is none.

    Examples:
        >>> import matplotlib, workbench as wb
        >>> with wb.plot.style("acl"):
        ...     round(float(matplotlib.rcParams["figure.figsize"][0]), 2)
        3.03
    """
    chosen = get_style(name)
    inches = chosen.inches(width)
    return matplotlib.rc_context(settings(chosen, latex=latex) | {"figure.figsize": (inches, 0.8 * inches)})


def house_style() -> Any:
    """A context in which matplotlib draws and writes as the workbench does; the user's own settings come back after."""
    return matplotlib.rc_context(settings(STYLES["workbench"]))


def settings(chosen: Style, *, latex: bool = False) -> dict[str, Any]:
    """A style as matplotlib's settings."""
    if latex and (absent := [program for program in ("latex", "dvipng") if shutil.which(program) is None]):
        raise FigureError(
            f"latex=True has LaTeX set the words of figures, and this machine has no {' and no '.join(absent)}. "
            "Install TeX Live with dvipng and the cm-super fonts, or leave latex out."
        )
    if latex:  # it brings its own faces
        family, face = ("serif", "Times") if chosen.serif else ("sans-serif", "Helvetica")
        fonts: dict[str, Any] = {"text.usetex": True, "font.family": family, f"font.{family}": [face]}
    else:  # those that come with matplotlib, so that every machine draws the same letters
        faces = ["STIXGeneral"] if chosen.serif else [_latin(), "DejaVu Sans"]
        fonts = {"font.family": faces, "mathtext.fontset": "stix" if chosen.serif else "dejavusans"}
    return fonts | {
        **dict.fromkeys(("font.size", "axes.titlesize", "axes.labelsize"), chosen.letters),
        **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), chosen.letters - 1),
        **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color"), theme.INK),
        **dict.fromkeys(("axes.linewidth", "xtick.major.width", "ytick.major.width"), 0.5),
        **dict.fromkeys(("xtick.major.size", "ytick.major.size"), 2),
        "legend.frameon": False,
        "hatch.linewidth": 0.4,
        "figure.dpi": 100,
        "text.parse_math": False,  # names of criteria, families and models are shown as they are
        "savefig.dpi": 300,
        "pdf.fonttype": 42,  # TrueType: embedded, and editable in a vector program
        "svg.fonttype": "path",  # the letters themselves, so that a missing font changes nothing
        "svg.hashsalt": "workbench",  # the same element ids every time
    }


@cache
def _latin() -> str:
    """The family name of DejaVu Sans without the scripts and tables that figures do not need.

    To pick a figure's letters out of the whole face takes longer than to draw it. Letters left out here are drawn from
    the whole face.
    """
    options = subset.Options(layout_features=[], legacy_kern=True, glyph_names=True, recalc_timestamp=False)
    options.drop_tables += ["GSUB", "GPOS", "GDEF", "FFTM"]
    whole = Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")
    folder = TemporaryDirectory(prefix="workbench-faces-")
    atexit.register(folder.cleanup)
    file = str(Path(folder.name, "latin.ttf"))
    with subset.load_font(str(whole), options) as font:
        chooser = subset.Subsetter(options)
        chooser.populate(unicodes=[c for low, high in _LATIN for c in range(low, high)])
        chooser.subset(font)
        for name in font["name"].names:
            font["name"].setName(f"{name.toUnicode()} Latin", name.nameID, name.platformID, name.platEncID, name.langID)
        subset.save_font(font, file, options)
    fontManager.addfont(file)
    return "DejaVu Sans Latin"


_LATIN = ((0x20, 0x250), (0x391, 0x3CA), (0x2010, 0x2040), (0x2190, 0x2300))  # with Greek, dashes, arrows, mathematics
_TEX = {c: f"\\{c}" for c in "{}$&#_%"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}"}
_TEX |= {
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "×": r"$\times$",
    "–": "--",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def literal(text: object) -> str:
    """Words as they are to be read; where LaTeX sets them, without commands, and letters it lacks as their codes."""
    words = plain(text, keep="\n")
    if not matplotlib.rcParams["text.usetex"]:
        return words
    return "".join(_TEX.get(c, c if ord(c) < 0x180 else f"U+{ord(c):04X}") for c in words)
