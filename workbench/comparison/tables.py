"""The tables of `workbench compare` and `detect`, for the terminal."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table
from rich.text import Text

from workbench.axes import head_name
from workbench.comparison.breakdown import Breakdown
from workbench.comparison.candidates import KEYS
from workbench.plain import plain

SEPARATION = {
    "auroc": "AUROC pooled",
    "auroc_matched": "AUROC matched",
    "tpr_at_fpr_1": "TPR at 1 % FPR",
    "tpr_at_fpr_5": "TPR at 5 % FPR",
}
CAUSAL = {
    "attack_success": "attack success",
    "attack_success_control": "random heads",
    "freed": "refused before",
    "freed_control": "random heads",
    "benign_exact": "safe requests",
    "benign_exact_control": "random heads",
    "question_exact": "questions",
    "question_exact_control": "random heads",
}
CELL = ("value", "ci_low", "ci_high")
LEFT_OUT = {"detection_rate": "detection rate", "auroc": "AUROC pooled", "auroc_matched": "AUROC matched"}


def breakdown_tables(found: Breakdown) -> list[Table]:
    """Detection by family; separation; with a model the causal columns; and what each ingredient adds."""
    table = found.table

    def families(measure: str) -> list[str]:
        return [f for f in sorted(table.loc[table["measure"] == measure, "family"].unique()) if f != "all"]

    attacks = families("detection_rate")
    detection = [("detection_rate", f, f"DR {f}") for f in ("all", *attacks)]
    detection += [("false_positive_rate", f, f"FPR {f}") for f in ("all", *families("false_positive_rate"))]
    separation = [(measure, "all", title) for measure, title in SEPARATION.items()]
    separation += [("auroc_missed", f, f"AUROC not refused, {f}") for f in attacks]
    causal = [(measure, "all", title) for measure, title in CAUSAL.items()]
    tables = [
        _wide("Detection, % of test prompts flagged", table, detection, percent=True),
        _wide("Separation on test prompts", table, separation, percent=False),
    ]
    if "attack_success" in set(table["measure"]):
        tables.append(_wide("With the detector's heads masked, % answered as expected", table, causal, percent=True))
    return [*tables, _ingredients_table(found.ingredients)]


def _table(title: str, names: Iterable[str], rows: Iterable[Iterable[object]], *, left: int) -> Table:
    """A table whose first `left` columns are words and the others numbers; every cell is shown as it is."""
    out = Table(title=title, title_justify="left")
    for number, name in enumerate(names):
        out.add_column(Text(plain(name)), justify="left" if number < left else "right", overflow="fold")
    for row in rows:
        out.add_row(*(Text(plain(cell)) for cell in row))
    return out


def _wide(title: str, table: pd.DataFrame, columns: Sequence[tuple[str, str, str]], *, percent: bool) -> Table:
    """One row a detector; columns that no detector has are left out."""
    present = [c for c in columns if ((table["measure"] == c[0]) & (table["family"] == c[1])).any()]
    rows = []
    for _, of in table.groupby(list(KEYS), sort=False):
        first = of.iloc[0]
        cells = [_cell(of[(of["measure"] == m) & (of["family"] == f)], percent) for m, f, _ in present]
        if any(cells):
            rows.append([first["criterion"] or "no head masked", first["rule"], first["projection"], first["heads"]])
            rows[-1] += cells
    names = ["criterion", "rule", "mask", "heads", *(name for _, _, name in present)]
    return _table(title, names, rows, left=4)


def _cell(row: pd.DataFrame, percent: bool) -> str:
    """A value and its interval; the value alone where there is no interval, and nothing where there is no value."""
    if row.empty:
        return ""
    numbers = [100 * float(row.iloc[0][name]) if percent else float(row.iloc[0][name]) for name in CELL]
    value, low, high = (f"{number:.0f}" if percent else f"{number:.2f}" for number in numbers)
    return f"{value} ({low}–{high})" if np.isfinite(numbers).all() else value


def _ingredients_table(ingredients: pd.DataFrame) -> Table:
    """Matched AUROC where there is one, for single heads under the query mask and for what concerns several heads."""
    measure = "auroc_matched" if (ingredients["measure"] == "auroc_matched").any() else "auroc"
    kind = "matched" if measure == "auroc_matched" else "pooled"
    rows = [
        [row.ingredient, row.criterion, row.rule, row.projection, row.n_heads, kind, _interval(row)]
        for row in ingredients[ingredients["measure"] == measure].itertuples()
    ]
    names = ("ingredient", "criterion", "rule", "mask", "heads", "AUROC", "difference")
    return _table("What each ingredient adds to AUROC (first minus second, paired bootstrap)", names, rows, left=7)


def _interval(row: Any) -> str:
    return f"{row.difference:+.2f} ({row.ci_low:+.2f} to {row.ci_high:+.2f})"


def measures_table(measures: pd.DataFrame) -> Table:
    """A detector's measures, as `workbench.detectors.evaluate` gives them."""
    rows = [
        [row.measure.replace("_", " "), row.family, f"{row.value:.3f}", f"{row.ci_low:.3f}–{row.ci_high:.3f}", row.n]
        for row in measures.itertuples()
    ]
    return _table("On test prompts", ("measure", "family", "value", "95 % interval", "prompts"), rows, left=2)


def graded_table(graded: pd.DataFrame) -> Table:
    """Graded scores, as `workbench.detectors.graded_scores` gives them."""
    rows = [
        [row.label, row.family, row.category, row.n, f"{100 * row.flagged:.0f} %"]
        + [f"{100 * row.low:.0f}–{100 * row.high:.0f} %"]
        + [f"{value:.3g}" for value in (row.score_25, row.score_50, row.score_75)]
        for row in graded.itertuples()
    ]
    names = ("label", "family", "category", "prompts", "flagged", "95 % interval", "25 %", "median", "75 %")
    return _table("Graded scores (quartiles), by family and category", names, rows, left=3)


def left_out_table(table: pd.DataFrame) -> Table:
    """What a head detects of a family that neither its choice nor its threshold has seen, family by family."""
    rows = []
    for family, of in table.groupby("held_out", sort=False):
        mine = of[of["family"] == (family or "all")]
        cells = [_cell(mine[mine["measure"] == m], m == "detection_rate") for m in LEFT_OUT]
        rows.append([family or "none", head_name(of.iloc[0]["layer"], of.iloc[0]["head"]), *cells])
    title = "Leaving one attack family out of selection and threshold"
    return _table(title, ("family left out", "head", *LEFT_OUT.values()), rows, left=5)
