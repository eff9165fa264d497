"""The arena's table for the terminal, for LaTeX, and in a sentence or two."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from workbench.comparison.differences import CHANCE
from workbench.plain import plain

# Title of the column, and what its numbers are multiplied by.
SHOWN: Mapping[str, tuple[str, int]] = {
    "auroc": ("AUROC", 1),
    "auroc_matched": ("matched", 1),
    "detection_rate_kde": ("DR %", 100),
    "fpr_kde": ("FPR %", 100),
    "tpr_at_1": ("TPR at\n1 %", 100),
    "tpr_at_5": ("TPR at\n5 %", 100),
    "asr_unguarded": ("ASR %", 100),
    "asr_guarded": ("guarded", 100),
    "benign_refusal": ("refused", 100),
    "benign_quality_flagged": ("quality", 100),
    "passes": ("passes", 1),
    "milliseconds": ("ms", 1),
}
# With the detector's heads masked, and random ones in their place.
MASKED: Mapping[str, tuple[str, int]] = {
    "attack_success": ("ASR %", 100),
    "attack_success_control": ("random", 100),
    "freed": ("freed %", 100),
    "freed_control": ("random", 100),
    "benign_exact": ("safe %", 100),
    "benign_exact_control": ("random", 100),
    "question_exact": ("questions", 100),
    "question_exact_control": ("random", 100),
}
PARTS = {
    "detection_rate_kde": ("Flagged unsafe prompts, %", 100),
    "fpr_kde": ("Flagged safe prompts, %", 100),
    "auroc_matched": ("AUROC against safe prompts of the same {}", 1),
}
LEVEL = 0.05


def pivot(table: pd.DataFrame, measures: Mapping[str, tuple[str, int]] = SHOWN) -> pd.DataFrame:
    """Detectors in order × measures, over all test prompts."""
    whole = table[(table["source"] == "all") & (table["family"] == "all") & table["measure"].isin(list(measures))]
    wide = whole.pivot(index="detector", columns="measure", values="value")
    return wide.reindex(index=list(dict.fromkeys(whole["detector"])), columns=[m for m in measures if m in wide])


def by_part(table: pd.DataFrame, measure: str, part: str) -> pd.DataFrame:
    """Detectors in order × sources, or × families of the only source, and all of them; for one measure."""
    everything = (table["source"] == "all") & (table["family"] == "all")
    inner = (table["source"] != "all") & ((table["family"] == "all") == (part == "source"))
    rows = table[(everything | inner) & (table["measure"] == measure)]
    wide = rows.pivot(index="detector", columns=part, values="value")
    order = ["all", *sorted(set(wide) - {"all"})]
    return wide.reindex(index=list(dict.fromkeys(rows["detector"])), columns=[name for name in order if name in wide])


def arena_tables(table: pd.DataFrame, *, width: int = 80) -> list[Table]:
    """The whole at a glance; prompts by source or, of one, by family; and what masking does. No wider than `width`."""
    tables = [*_tables("The arena, all test prompts", pivot(table), SHOWN, width)]
    part = "source" if len(set(table["source"]) - {"all"}) > 1 else "family"
    for measure, (title, scale) in PARTS.items():
        wide = by_part(table, measure, part)
        if len(wide.columns) > 2:
            tables += _tables(title.format(part), wide, {name: (_folded(name), scale) for name in wide}, width)
    if "attack_success" in set(table["measure"]):
        masked = pivot(table, MASKED)
        tables += _tables("With the detector's heads masked, or random ones", masked, MASKED, width)
    return tables


def _tables(title: str, wide: pd.DataFrame, columns: Mapping[str, tuple[str, int]], width: int) -> Iterator[Table]:
    """As many tables as it takes for every column to fit beside the names."""
    columns = {name: columns[name] for name in wide}
    cells = {name: [_number(v * scale, scale) for v in wide[name]] for name, (_, scale) in columns.items()}
    widths = {n: 1 + max(map(len, [*columns[n][0].split("\n"), *cells[n]])) for n in columns}
    names = [plain(key) for key in wide.index]
    longest = max(map(len, names))
    left, chunks = 0, list[list[str]]([[]])
    room = width - min(longest, max(20, width - sum(widths.values()) - 2)) - 2
    for name in columns:
        if left + widths[name] > room and chunks[-1]:
            chunks.append([])
            left = 0
        chunks[-1].append(name)
        left += widths[name]
    for number, chunk in enumerate(chunks):
        out = Table(title=title if not number else None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        out.padding = (0, 1, 0, 0)
        out.add_column("detector", overflow="fold", max_width=width - sum(widths[n] for n in chunk) - 1)
        for name in chunk:
            out.add_column(Text(columns[name][0], justify="right"), justify="right", no_wrap=True)
        for place, key in enumerate(names):
            out.add_row(Text(key), *(cells[name][place] for name in chunk))
        yield out


def _folded(name: str) -> str:
    """A source's name in lines of at most ten letters."""
    name = plain(name)
    return "\n".join(name[i : i + 10] for i in range(0, len(name), 10))


def _number(value: float, scale: int) -> str:
    if not np.isfinite(value):
        return "–"
    return f"{value:.0f}" if scale == 100 or value >= 10 else f"{value:.2f}"


def latex(table: pd.DataFrame) -> str:
    r"""The pivot as a LaTeX table (booktabs), with 95 % intervals; `\input` it as it is.

    What is to be known of the prompts stands at its head, in comments.
    """
    whole = table[(table["source"] == "all") & (table["family"] == "all")].set_index(["detector", "measure"])
    wide = pivot(table).drop(columns="milliseconds", errors="ignore")
    titles = [SHOWN[m][0].replace("\n", " ") for m in wide]
    lines = [
        *(f"% Mind: {plain(sentence)}" for sentence in table.attrs.get("caveats", ())),
        r"\begin{tabular}{l" + "r" * len(wide.columns) + "}",
        r"\toprule",
        " & ".join(["detector", *map(_escaped, titles)]) + r" \\",
        r"\midrule",
    ]
    for key in wide.index:
        cells = [_latex_cell(whole.loc[(key, m)], SHOWN[m][1]) if (key, m) in whole.index else "--" for m in wide]
        lines.append(" & ".join([_escaped(key), *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _latex_cell(row: pd.Series, scale: int) -> str:
    value, low, high = (_number(row[name] * scale, scale).replace("–", "--") for name in ("value", "ci_low", "ci_high"))
    return value if "--" in (low, high) else rf"{value} \footnotesize[{low}, {high}]"


def _escaped(text: object) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, rf"\{c}" if c in "&%$#_{}" else c) for c in plain(text))


def says(table: pd.DataFrame, differences: pd.DataFrame) -> list[str]:
    """What the numbers show, in sentences: who is above chance, and who is told apart from the first of them."""
    tested = differences[differences["other"] == CHANCE]
    told: list[str] = []
    if len(tested):
        above = tested.loc[tested["p_corrected"] < LEVEL, "detector"].tolist()
        who = _listed(above) or "none"
        told.append(f"Above chance (AUROC over 0.5; p under {LEVEL} corrected for {len(tested)} detectors): {who}.")
    areas = table[(table["source"] == "all") & (table["measure"] == "auroc")].set_index("detector")["value"]
    pairs = differences[(differences["other"] != CHANCE) & (differences["measure"] == "auroc")]
    if len(pairs):
        best = str(areas.idxmax())
        mine = pairs[(pairs["detector"] == best) | (pairs["other"] == best)]
        worse = mine[mine["p_corrected"] < LEVEL]
        others = [o if d == best else d for d, o in zip(worse["detector"], worse["other"], strict=True)]
        count = int(pairs["comparisons"].iloc[0])
        told.append(
            f"The largest AUROC is {best}'s, {areas[best]:.2f}; told apart from it (paired, corrected for {count} "
            f"comparisons): {_listed(others) or 'none'}."
        )
    return told


def _listed(names: Sequence[str]) -> str:
    return ", ".join(plain(name) for name in names)
