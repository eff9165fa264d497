"""The arena's figure: detection and false alarms of every detector, by source, and attack success under guard."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.comparison.arena import TIMED
from workbench.comparison.arena_tables import latex
from workbench.comparison.differences import differences_of
from workbench.errors import FigureError
from workbench.plain import plain, write_table
from workbench.views import theme
from workbench.views.figures.save import write_figure
from workbench.views.figures.style import house_style

ROW = 0.2  # inches a detector
MOST_PANELS = 4
# Marker and colour of each measure, and its words.
DETECTION = {"detection_rate_kde": ("o", "unsafe", "unsafe flagged"), "fpr_kde": ("s", "safe", "safe flagged")}
GUARDED = {
    "asr_unguarded": ("x", "unsafe", "attack success"),
    "asr_guarded": ("o", "unsafe", "attack success, guarded"),
    "benign_refusal": ("s", "safe", "safe refused, guarded"),
}


def arena_figure(table: pd.DataFrame, *, width: float = theme.DOUBLE_INCHES) -> Figure:
    """One row a detector, one panel a source (of many: the four with most prompts), and one of guarded replies.

    Points are shares with their 95 % intervals.

    Raises:
        FigureError: For a table without detectors or guards.
    """
    rows = table[(table["family"] == "all") & table["measure"].isin([*DETECTION, *GUARDED])]
    if rows.empty:
        raise FigureError("The arena's table has no rates to draw. Make one with wb.arena.")
    keys = list(dict.fromkeys(rows["detector"]))[::-1]
    size = rows[(rows["source"] != "all") & rows["measure"].isin(DETECTION)].groupby("source")["n"].max()
    sources = ["all", *sorted(size.nlargest(MOST_PANELS - 1).index)] if len(size) > 1 else ["all"]
    panels = [(source, DETECTION) for source in sources if rows["measure"].isin(DETECTION).any()]
    panels += [("all", GUARDED)] if rows["measure"].isin(GUARDED).any() else []
    figure = Figure(figsize=(width, 0.75 + ROW * len(keys)), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, (source, measures) in zip(axes, panels, strict=True):
        _draw(ax, rows[rows["source"] == source], keys, measures)
        what = "all sources" if source == "all" and len(panels) > 1 else plain(source)
        ax.set_title("under guard" if measures is GUARDED else what if len(sources) > 1 else "detection")
        ax.set(xlim=(-0.03, 1.03), xlabel="share of prompts")
    axes[0].set_yticks(range(len(keys)), [plain(key) for key in keys])
    handles = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles))
    return figure


def _draw(ax: Axes, rows: pd.DataFrame, keys: Sequence[str], measures: dict[str, tuple[str, str, str]]) -> None:
    shifts = np.linspace(0.2, -0.2, len(measures))
    for (measure, (marker, label, words)), shift in zip(measures.items(), shifts, strict=True):
        of = rows[(rows["measure"] == measure) & rows["value"].notna()]
        if of.empty:
            continue
        at = np.array([keys.index(key) for key in of["detector"]]) + shift
        colour = theme.PRINT_COLOURS[label]
        ax.hlines(at, of["ci_low"], of["ci_high"], color=colour, linewidth=0.6)
        filled = {"color": colour} if marker == "x" else {"facecolor": colour, "edgecolor": colour}
        ax.scatter(of["value"], at, marker=marker, s=9, linewidth=0.7, label=words, zorder=3, clip_on=False, **filled)
    ax.set_ylim(-0.6, len(keys) - 0.4)
    ax.grid(axis="x", color=theme.QUIET, linewidth=0.4)
    ax.set_axisbelow(True)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)


def save_arena(table: pd.DataFrame, folder: str | Path, formats: Sequence[str] = ("pdf", "png")) -> list[Path]:
    """Write the arena: table, measured times, differences, what is known of it, a LaTeX table and the figure.

    All but `times.csv` are the same bytes for the same arena.

    Args:
        table: As `wb.arena` returns it.
        folder: Made if it is missing.
        formats: Of the figure: pdf, svg, png.

    Returns:
        The files: arena.csv, times.csv, differences.csv, arena.json, arena.tex, and the figure's.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    timed = table["measure"] == TIMED
    files = [
        write_table(table[~timed], folder / "arena.csv"),
        write_table(table[timed], folder / "times.csv"),
        write_table(differences_of(table), folder / "differences.csv"),
        folder / "arena.json",
        folder / "arena.tex",
        *(folder / f"arena.{suffix}" for suffix in formats),
    ]
    about = {name: value for name, value in table.attrs.items() if name != "differences"}
    known = json.loads(json.dumps(about), parse_constant=lambda _: None)  # JSON has no NaN
    files[3].write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    files[4].write_text(latex(table), encoding="utf-8")
    with house_style():
        figure = arena_figure(table)
        for file in files[5:]:
            write_figure(figure, file)
    return files
