"""How the cost of a sweep grows with heads, layers, prompts and tokens: the benchmark's figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from workbench.errors import FigureError
from workbench.plain import write_table
from workbench.views.theme import DOUBLE_INCHES, LABEL_COLOURS

COLOURS = {"exact": LABEL_COLOURS["unsafe"], "estimates": LABEL_COLOURS["safe"]}
WORDS = {"heads": "heads in all", "layers": "layers", "prompts": "prompts", "tokens": "tokens a prompt"}


def save_growth(
    rows: Sequence[Mapping[str, Any]], folder: str | Path, formats: Sequence[str] = ("pdf", "png")
) -> list[Path]:
    """Draw the benchmark's `growth` rows: processor seconds of a whole sweep against one size, on two log axes.

    Returns:
        The files written, the numbers as CSV last.

    Raises:
        FigureError: Without any such row.
    """
    rows = [row for row in rows if row["job"] == "growth"]
    if not rows:
        raise FigureError("There are no rows of job 'growth' to draw; run python -m workbench.bench --only growth.")
    figure = Figure(figsize=(DOUBLE_INCHES, 2.0), layout="constrained")
    axes = figure.subplots(1, len(WORDS), sharey=True)
    for ax, (axis, words) in zip(axes, WORDS.items(), strict=True):
        for engine, colour in COLOURS.items():
            points = sorted(
                (row["more"]["size"], row["cpu_seconds"])
                for row in rows
                if row["more"]["axis"] == axis and row["engine"] == engine
            )
            if points:
                ax.plot(*zip(*points, strict=True), "o-", color=colour, label=engine, markersize=3, linewidth=1)
        ax.set(xscale="log", yscale="log", xlabel=words)
        sizes = sorted({row["more"]["size"] for row in rows if row["more"]["axis"] == axis})
        ax.set_xticks(sizes, [str(size) for size in sizes])  # the sizes that were measured, in plain numbers
        ax.xaxis.set_minor_locator(NullLocator())
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("processor seconds")
    axes[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes[0].yaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
    axes[0].yaxis.set_minor_locator(NullLocator())
    axes[-1].legend(frameon=False, fontsize=7)
    Path(folder).mkdir(parents=True, exist_ok=True)
    files = [Path(folder) / f"bench_growth.{kind}" for kind in formats]
    with matplotlib.rc_context({"pdf.fonttype": 42}):  # TrueType, as in the other figures: publishers refuse Type 3
        for file in files:
            figure.savefig(file, dpi=200)
    drawn = [{"engine": row["engine"], "cpu_seconds": row["cpu_seconds"]} | row["more"] for row in rows]
    return [*files, write_table(pd.DataFrame(drawn), Path(folder) / "bench_growth.csv")]
