"""`selection-set`: heads chosen on one data set (or source, or family), tested on another."""

from typing import Any

import numpy as np
import pandas as pd

from workbench.axes import head_name, head_names
from workbench.comparison.differences import tested
from workbench.errors import CriterionError, RunError, StudyError
from workbench.runs.splits import in_split
from workbench.studies import needs
from workbench.studies.material import Material
from workbench.studies.measuring import Chosen, crossing, is_unsafe, listed, of_area, rate, separations
from workbench.studies.record import Beside, Findings, StudyRecord
from workbench.views.figures import studies as figures

K = 5
EVERY = "all"
SHOWN = {"auroc": "AUROC of the first head", "overlap": "share of the first five"}


def find(material: Material) -> Findings:
    """Five heads a data set (or family), their overlaps against chance, and what the first of each detects of all."""
    sources = material.sources
    run, unsafe, names = sources.run, is_unsafe(sources.run), sources.names
    test, select = in_split(run, "test"), in_split(run, "selection")
    n_heads = run.sizes["layer"] * run.sizes["head"]
    chosen, rows, tests = {}, [], []
    among = {name: sources.of(name) for name in names} | {EVERY: unsafe | ~unsafe}
    for name, of in among.items():
        try:
            chosen[name] = material.chosen(run, k=K, among=select & of)
        except (CriterionError, RunError):
            continue  # too few prompts of that kind to choose on
    if len(chosen) < 2:
        raise StudyError(f"selection-set: no {sources.by} has enough prompts to choose on. Give more.")
    for a, of in chosen.items():
        values = of.value
        threshold = crossing(values, run, among[a] & in_split(run, "threshold"))
        for b in names:
            about = {"chosen_on": a, "against": b, "heads": head_names(of.heads)}
            area = separations(values[:, None], run, test & among[b], seed=material.seed).iloc[0]
            rows.append(about | {"measure": "auroc"} | of_area(area))
            tests.append({"test": f"chosen on {a}, tested on {b}", "p_value": area["p_value"]})
            if np.isfinite(threshold):
                for measure, side in (("detection_rate", unsafe), ("false_positive_rate", ~unsafe)):
                    rows.append(about | {"measure": measure} | rate(values[test & among[b] & side] > threshold))
        for b, other in chosen.items():
            shared = set(of.heads) & set(other.heads)
            about = {"chosen_on": a, "against": b, "heads": head_names(sorted(shared))}
            value = len(shared) / min(len(of.heads), len(other.heads))
            rows.append(
                about
                | {"measure": "overlap", "value": value, "ci_low": np.nan, "ci_high": np.nan, "n": len(of.heads)}
                | {"p_chance": overlap_p(of, other, n_heads) if a != b else np.nan}
            )
    table = pd.DataFrame(rows)
    return Findings(table, _says(table, chosen, sources.by), tested(tests), _beside(table, material))


def overlap_p(first: Chosen, second: Chosen, n_heads: int) -> float:
    """Chance that as many heads or more are shared when both sets are drawn from all heads (hypergeometric)."""
    from scipy.stats import hypergeom

    shared = len(set(first.heads) & set(second.heads))
    return float(hypergeom.sf(shared - 1, n_heads, len(first.heads), len(second.heads)))


def _off(table: pd.DataFrame, measure: str) -> pd.DataFrame:
    of = table[(table["measure"] == measure) & (table["chosen_on"] != EVERY) & (table["against"] != EVERY)]
    return of[of["chosen_on"] != of["against"]]


def _says(table: pd.DataFrame, chosen: dict[str, Chosen], by: str) -> str:
    first = {name: head_name(*of.heads[0]) for name, of in chosen.items() if name != EVERY}
    other, overlap = _off(table, "auroc"), _off(table, "overlap")
    areas = table[table["measure"] == "auroc"]
    own = areas[areas["chosen_on"] == areas["against"]]
    told = (
        f"Chosen on each {by} alone, the first head is {listed([f'{h} ({n})' for n, h in first.items()])}: "
        f"{len(set(first.values()))} different of {len(first)}. AUROC is {own['value'].mean():.2f} on the {by} that "
        "a head was chosen on (mean)"
    )
    if len(other):
        told += (
            f" and {other['value'].mean():.2f} on the others, {other['value'].min():.2f} at worst; two of them share "
            f"{K * overlap['value'].mean():.1f} of {K} heads on average."
        )
    return told if told.endswith(".") else told + "."


def _beside(table: pd.DataFrame, material: Material) -> tuple[Beside, ...]:
    overlap = _off(table, "overlap")["value"]
    caught, alarms = (_off(table, measure)["value"] for measure in ("detection_rate", "false_positive_rate"))
    crossed = "not known"
    if len(caught):
        crossed = (
            f"{100 * caught.min():.0f} to {100 * caught.max():.0f} %, false alarms {100 * alarms.min():.0f} to "
            f"{100 * alarms.max():.0f} %, over {len(caught)} pairs"
        )
    return (
        Beside(
            "what a head chosen on another set detects",
            "97.10 | 100 | 99.97 | 99.99 % (VLSafe, FigStep, query-relevant, LLM transfer), false alarms 3.80 and "
            "0.20 % (head (4,23) of VLGuard's set, LLaVA-1.5-7B)",
            crossed,
            f"model ({material.model.name}), prompts, and what is swapped (each {material.sources.by})",
            "rebuttal of 'One Head to Rule Them All' (NeurIPS 2025)",
        ),
        Beside(
            "heads among the first five that two selection sets share",
            "2 of 5: (8,2) and (5,28), VLSafe against VLGuard (LLaVA-1.5-7B)",
            f"{K * overlap.mean():.1f} of {K} on average over pairs" if len(overlap) else "not known",
            f"model ({material.model.name}; {material.model.n_layers} × {material.model.n_heads} heads, not 32 × 32, "
            f"so that chance is another), and what is swapped (each {material.sources.by})",
            "rebuttal of 'One Head to Rule Them All' (NeurIPS 2025)",
        ),
    )


def draw(findings: Findings) -> Any:
    table = findings.table[findings.table["measure"].isin(["auroc", "overlap"])]
    table = table[table["against"] != EVERY]
    table = table.assign(panel=table["measure"].map(SHOWN))
    words = {"rows": "chosen on", "columns": "tested on, or chosen on", "value": "AUROC, or share"}
    return figures.matrix(table, rows="chosen_on", columns="against", panels="panel", words=words, low=0.0, high=1.0)


STUDY = StudyRecord(
    "selection-set",
    asks="Do other selection prompts choose other heads, and do those heads detect what they were not chosen on?",
    source="rebuttal of 'One Head to Rule Them All' (NeurIPS 2025); reviews",
    runs="the sweep; a choice for each data set (others=), source or family, thresholded on it, tested on each",
    fails="Families of one set share pictures and style; sets of other sources (others=) are harder. Small families "
    "choose by chance.",
    find=find,
    draw=draw,
    needs=(needs.KINDS,),
)
