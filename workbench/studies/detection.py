"""`detection`: every detector on the same test prompts, by data set and family."""

from typing import Any

import pandas as pd

from workbench.comparison.arena import TIMED
from workbench.comparison.differences import CHANCE, differences_of
from workbench.studies.material import Material
from workbench.studies.measuring import span
from workbench.studies.record import Beside, Findings, StudyRecord
from workbench.views.figures import studies as figures

SHOWN = {"auroc": "AUROC", "detection_rate_kde": "unsafe flagged", "fpr_kde": "safe flagged"}
ALL = "all"


def find(material: Material) -> Findings:
    """The arena with every detector of the registry; those that cannot be fitted are named."""
    arena = material.arena
    table = arena[~arena["measure"].isin(["passes", TIMED])].reset_index(drop=True)
    found = differences_of(arena)
    tests = found[(found["other"] == CHANCE) & (found["measure"] == "auroc")]
    tests = tests.rename(columns={"detector": "test"})[["test", "p_value", "p_corrected"]].reset_index(drop=True)
    says = _says(table, found, len(tests)) + left_out(arena)
    return Findings(table, says, tests, _beside(table, material))


def left_out(arena: pd.DataFrame) -> str:
    """A sentence about who could not enter, and why; empty where all could."""
    said = [f"{name} ({why.split('. ')[0].rstrip('.')})" for name, why in arena.attrs["left_out"].items()]
    return f" Left out: {'; '.join(said)}." if said else ""


def whole(table: pd.DataFrame, measure: str) -> pd.DataFrame:
    """One row a detector: a measure over all test prompts."""
    return table[(table["source"] == ALL) & (table["family"] == ALL) & (table["measure"] == measure)]


def by_family(table: pd.DataFrame, measure: str) -> pd.DataFrame:
    """A measure by family, and over all; with several sources, by source."""
    sources = [source for source in dict.fromkeys(table["source"]) if source != ALL]
    of = table[table["measure"] == measure]
    if len(sources) > 1:
        return of[of["family"] == ALL].assign(set=of["source"])
    return of[(of["family"] != ALL) | (of["source"] == ALL)].assign(set=of["family"])


def _says(table: pd.DataFrame, differences: pd.DataFrame, entered: int) -> str:
    areas = whole(table, "auroc").sort_values("value", ascending=False, kind="stable")
    best, last = areas.iloc[0], areas.iloc[-1]
    against = differences[(differences["other"] != CHANCE) & (differences["measure"] == "auroc")]
    better = int((against["p_corrected"] < 0.05).sum())
    told = f"Of {entered} detectors on the same prompts, {best['detector']} separates best (AUROC {span(best)})"
    if entered > 1:
        told += f", {last['detector']} worst ({span(last)}); {better} of {len(against)} pairs differ (corrected)"
    mine = {m: whole(table, m).set_index("detector") for m in ("detection_rate_kde", "fpr_kde")}
    if all("one-head" in of.index for of in mine.values()):
        caught, alarms = (of.loc["one-head"] for of in mine.values())
        told += f". One head flags {100 * caught['value']:.0f} % of unsafe and {100 * alarms['value']:.0f} % of safe"
    return told + "."


def _beside(table: pd.DataFrame, material: Material) -> tuple[Beside, ...]:
    def ours(detector: str) -> str:
        cells = []
        for measure, words in (("detection_rate_kde", "unsafe"), ("fpr_kde", "safe")):
            of = by_family(table, measure)
            of = of[of["detector"] == detector]
            cells.append(f"{words}: " + ", ".join(f"{r.set} {100 * r.value:.0f}" for r in of.itertuples()))
        return "; ".join(cells) + " %" if len(table[table["detector"] == detector]) else "not fitted"

    judge = "judge" if "judge" in set(table["detector"]) else "judge-stand-in"  # embedded models judge by a stand-in
    differs = f"model ({material.model.name}), data sets (families of one world here), prompts a set"
    source, sets = (
        "'One Head to Rule Them All' (NeurIPS 2025), Table 1",
        "VLSafe | FigStep | query-relevant | LLM transfer",
    )
    sets += " | LLaVA-Instruct | ShareGPT4V, % flagged, LLaVA-1.5-7B"
    return (
        Beside(f"one head ({sets})", "99.91 | 100 | 98.47 | 99.92 | 2 | 0", ours("one-head"), differs, source),
        Beside(f"SAHs ({sets})", "99.72 | 0 | 78.35 | 93.68 | 3 | 0", ours("sahs"), differs, source),
        Beside(
            f"judge ({sets})",
            "91.44 | 54.90 | 40.80 | 85.97 | 0 | 8.80 (Llama-Guard-3-Vision)",
            ours(judge),
            differs + "; the judge is the model itself, asked about the picture",
            source,
        ),
        Beside(
            "Ships' head under the same detector",
            "65.50 | 10 | 6 | 19.85 | 10 | 0 (Qwen2-VL-7B, its head (0,7))",
            ours("ships"),
            differs,
            "rebuttal of 'One Head to Rule Them All' (NeurIPS 2025)",
        ),
    )


def draw(findings: Findings) -> Any:
    parts = [by_family(findings.table, m).assign(measure=words) for m, words in SHOWN.items()]
    table = pd.concat(parts, ignore_index=True)
    words = {"rows": "", "columns": "", "value": "AUROC, or share"}
    return figures.matrix(table, rows="detector", columns="set", panels="measure", words=words, low=0.0, high=1.0)


STUDY = StudyRecord(
    "detection",
    asks="Which detector tells unsafe from safe prompts, set by set, with how many false alarms?",
    source="'One Head to Rule Them All' (NeurIPS 2025), Table 1; the table its reviewers asked for",
    runs="the arena: every detector of the registry fitted on the same prompts, tested on the same others",
    fails="Sets that differ in source are told apart by source; read AUROC within a family. Detectors are fitted on "
    "the attacks that they are tested on; transfer shows what they do on others.",
    find=find,
    draw=draw,
    cost=0.4,
)
