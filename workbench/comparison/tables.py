"""The tables of `workbench compare` and `detect`, for the terminal."""

from collections.abc import Sequence

import pandas as pd
from rich.markup import escape
from rich.table import Table

from workbench.comparison.breakdown import Breakdown
from workbench.comparison.candidates import KEYS

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


def breakdown_tables(found: Breakdown) -> list[Table]:
    """Detection by family; separation; with a model the causal columns; and what each ingredient adds."""
    table = found.table
    families = [f for f in sorted(table.loc[table["measure"] == "detection_rate", "family"].unique()) if f != "all"]
    benign = [f for f in sorted(table.loc[table["measure"] == "false_positive_rate", "family"].unique()) if f != "all"]
    detection = [("detection_rate", "all", "DR all"), *(("detection_rate", f, f"DR {f}") for f in families)]
    detection += [("false_positive_rate", "all", "FPR all"), *(("false_positive_rate", f, f"FPR {f}") for f in benign)]
    tables = [_wide("Detection, % of test prompts flagged", table, detection, percent=True)]
    separation = [(measure, "all", title) for measure, title in SEPARATION.items()]
    separation += [("auroc_missed", f, f"AUROC not refused, {f}") for f in families]
    tables.append(_wide("Separation on test prompts", table, separation, percent=False))
    causal = [(measure, "all", title) for measure, title in CAUSAL.items()]
    if "attack_success" in set(table["measure"]):
        tables.append(_wide("With the detector's heads masked, % answered as expected", table, causal, percent=True))
    return [*tables, _ingredients_table(found.ingredients)]


def _wide(title: str, table: pd.DataFrame, columns: Sequence[tuple[str, str, str]], *, percent: bool) -> Table:
    """One row a detector; columns that no detector has are left out."""
    out = Table(title=title, title_justify="left")
    present = [c for c in columns if ((table["measure"] == c[0]) & (table["family"] == c[1])).any()]
    for name in ("criterion", "rule", "mask", "heads"):
        out.add_column(name, overflow="fold")
    for _, _, name in present:
        out.add_column(name, justify="right", overflow="fold")
    for _, rows in table.groupby(list(KEYS), sort=False):
        first = rows.iloc[0]
        cells = [_cell(rows[(rows["measure"] == m) & (rows["family"] == f)], percent) for m, f, _ in present]
        if any(cells):
            about = [first["criterion"] or "no head masked", first["rule"], first["projection"], first["heads"]]
            out.add_row(*about, *cells)
    return out


def _cell(row: pd.DataFrame, percent: bool) -> str:
    if row.empty:
        return ""
    value, low, high = (float(row.iloc[0][name]) for name in ("value", "ci_low", "ci_high"))
    if percent:
        return f"{100 * value:.0f} ({100 * low:.0f}–{100 * high:.0f})"
    return f"{value:.2f} ({low:.2f}–{high:.2f})"


def _ingredients_table(ingredients: pd.DataFrame) -> Table:
    """Matched AUROC where there is one, for single heads under the query mask and for what concerns several heads."""
    out = Table(title="What each ingredient adds to AUROC (first minus second, paired bootstrap)", title_justify="left")
    for name in ("ingredient", "criterion", "rule", "mask", "heads", "AUROC", "difference"):
        out.add_column(name, overflow="fold")
    measure = "auroc_matched" if (ingredients["measure"] == "auroc_matched").any() else "auroc"
    for row in ingredients[ingredients["measure"] == measure].itertuples():
        shown = f"{row.difference:+.2f} ({row.ci_low:+.2f} to {row.ci_high:+.2f})"
        kind = "matched" if measure == "auroc_matched" else "pooled"
        out.add_row(row.ingredient, row.criterion, row.rule, row.projection, str(row.n_heads), kind, shown)
    return out


def measures_table(measures: pd.DataFrame) -> Table:
    out = Table(title="On test prompts", title_justify="left")
    for name in ("measure", "family", "value", "95 % interval", "prompts"):
        out.add_column(name, justify="left" if name in ("measure", "family") else "right")
    for row in measures.itertuples():
        interval = f"{row.ci_low:.3f}–{row.ci_high:.3f}"
        out.add_row(row.measure.replace("_", " "), escape(row.family), f"{row.value:.3f}", interval, str(row.n))
    return out


def graded_table(graded: pd.DataFrame) -> Table:
    out = Table(title="Graded scores (quartiles), by family and category", title_justify="left")
    for name in ("label", "family", "category", "prompts", "flagged", "95 % interval", "25 %", "median", "75 %"):
        out.add_column(name, justify="left" if name in ("label", "family", "category") else "right")
    for row in graded.itertuples():
        quartiles = (f"{value:.3g}" for value in (row.score_25, row.score_50, row.score_75))
        interval = f"{100 * row.low:.0f}–{100 * row.high:.0f} %"
        out.add_row(
            row.label,
            escape(row.family),
            escape(row.category),
            str(row.n),
            f"{100 * row.flagged:.0f} %",
            interval,
            *quartiles,
        )
    return out


def left_out_table(table: pd.DataFrame) -> Table:
    """What a head detects of a family that neither its choice nor its threshold has seen, family by family."""
    out = Table(title="Leaving one attack family out of selection and threshold", title_justify="left")
    for name in ("family left out", "head", "detection rate", "AUROC pooled", "AUROC matched"):
        out.add_column(name)
    for family, rows in table.groupby("held_out", sort=False):
        head = f"L{rows.iloc[0]['layer']}H{rows.iloc[0]['head']}"
        mine = rows[rows["family"] == family]
        cells = [
            _cell(mine[mine["measure"] == m], m == "detection_rate")
            for m in ("detection_rate", "auroc", "auroc_matched")
        ]
        out.add_row(escape(str(family)), head, *cells)
    return out
