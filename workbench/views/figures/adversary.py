"""Figures of attacks on detectors, and of how faithful sets of heads are, from their tables alone."""

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from workbench.errors import FigureError
from workbench.plain import write_table
from workbench.views.figures.studies import lines, write

EVASION = {"evasion": "evaded, next token kept", "evasion_any": "evaded, whatever is said"}
MOST_LINES = 8


def evasion_figure(table: pd.DataFrame) -> Figure:
    """The share of flagged prompts that evade a detector against the size of the change, from `wb.attack`.

    Lines are detectors attacked by someone who knows them, and noise of the same size; for texts, against the number of
    steps.

    Raises:
        FigureError: For a table without evasions.
    """
    own = table["attacked"] == table["scored_by"]
    shown = table[
        table["measure"].isin(list(EVASION)) & (own | (table["attacked"] == "noise")) & table["value"].notna()
    ]
    if shown.empty:
        raise FigureError("The table has no evasions to draw. Make one with wb.attack.")
    text = bool((shown["side"] == "text").all())
    across = "steps" if text else "eps"
    shown = shown[(shown["steps"] == shown.loc[own, "steps"].max()) | (shown["attacked"] == "noise") | text]
    noise = shown["attacked"] == "noise"
    shown = shown.assign(
        series=shown["scored_by"].where(~noise, shown["scored_by"] + ", noise"), panel=shown["measure"].map(EVASION)
    )
    kinds = list(dict.fromkeys(shown["series"]))[:MOST_LINES]
    return lines(
        shown[shown["series"].isin(kinds)],
        x=across,
        x_words="search steps" if text else "largest change of a pixel value (255ths)",
        y_words="share of flagged prompts",
        series="series",
        panels="panel",
        limits=(-0.03, 1.03),
    )


def faithfulness_figure(table: pd.DataFrame) -> Figure:
    """Faithfulness against the share of heads kept, a line a ranking, from `wb.faithfulness`.

    Raises:
        FigureError: For a table without curves.
    """
    shown = table[table["measure"] == "faithfulness"]
    if not shown["value"].notna().any():
        raise FigureError("The table has no curve to draw. Make one with wb.faithfulness.")
    matched = table[table["measure"] == "faithfulness_control"]
    controls = matched.groupby(["share", "n_heads"], as_index=False).agg(
        value=("value", "mean"), ci_low=("ci_low", "min"), ci_high=("ci_high", "max")
    )
    best = table[table["measure"] == "cmd"].sort_values("value", kind="stable")["ranking"]
    kinds = list(best.head(MOST_LINES - 1))
    shown = pd.concat([shown[shown["ranking"].isin(kinds)], controls.assign(ranking="matched random heads")])
    shown["ranking"] = pd.Categorical(shown["ranking"], [*kinds, "matched random heads"], ordered=True)
    shown = shown.sort_values(["ranking", "share"], kind="stable").astype({"ranking": str})
    words: dict[str, Any] = {"x_words": "share of heads kept", "y_words": "faithfulness"}
    return lines(shown, x="share", series="ranking", line=1.0, **words)


def save_adversary(table: pd.DataFrame, figure: Figure, out: str | Path, name: str) -> list[Path]:
    """Write a table as NAME.csv, its tests as NAME-tests.csv, and its figure as NAME.pdf and NAME.png; returns the
    paths.
    """
    out = Path(out)
    files = [write_table(table, out / f"{name}.csv")]
    if tests := table.attrs.get("tests"):
        files.append(write_table(pd.DataFrame(tests), out / f"{name}-tests.csv"))
    return files + [write(figure, out / f"{name}{suffix}") for suffix in (".pdf", ".png")]
