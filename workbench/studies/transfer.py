"""`transfer`: probes trained on one data set (or source, or family), tested on another."""

from typing import Any

import pandas as pd

from workbench.comparison.differences import tested
from workbench.criteria.thresholds import fpr_threshold
from workbench.errors import StudyError
from workbench.runs.pairs import tie_names
from workbench.runs.splits import in_split
from workbench.studies import needs
from workbench.studies.material import Material
from workbench.studies.measuring import is_unsafe, of_area, percent, rate, separations
from workbench.studies.probe_curves import Probes, random_labels
from workbench.studies.record import Beside, Findings, StudyRecord
from workbench.views.figures import studies as figures

K, FPR = 16, 0.05
AREA, CAUGHT = "AUROC", "detected at 5 % false alarms"
CONTROL = "random labels"


def find(material: Material) -> Findings:
    """SAHs' detector for every pair of data sets (or families): heads and regression from one, tested on the other."""
    sources = material.sources
    run, names = sources.run, sources.names
    unsafe, test = is_unsafe(run), in_split(run, "test")
    train = in_split(run, "selection") | in_split(run, "threshold")
    rows, tests = [], []
    for a in [*names, CONTROL]:
        labels = random_labels(tie_names(run), test, seed=material.seed) if a == CONTROL else unsafe
        seen = train if a == CONTROL else train & sources.of(a)
        if min(labels[seen].sum(), (~labels[seen]).sum()) < 3:
            continue
        probes = Probes(run, labels, seen, material.seed)
        heads = probes.heads(min(K, int(probes.known.sum())))
        decisions = probes.decisions(heads)
        for b in names:
            attack, benign = (test & sources.of(b) & side for side in (unsafe, ~unsafe))
            bound = fpr_threshold(decisions[benign], FPR)
            area = separations(decisions[:, None], run, attack | benign, seed=material.seed).iloc[0]
            about = {"trained_on": a, "tested_on": b, "heads": len(heads)}
            rows.append(about | {"measure": AREA} | of_area(area))
            rows.append(about | {"measure": CAUGHT} | rate(decisions[attack] > bound))
            if a != CONTROL:
                tests.append({"test": f"trained on {a}, tested on {b}", "p_value": area["p_value"]})
    if not tests:
        raise StudyError(f"transfer: no {sources.by} has three prompts of each label to train on. Give more prompts.")
    table = pd.DataFrame(rows)
    return Findings(table, _says(table, sources.by), tested(tests), _beside(table, material))


def _pairs(table: pd.DataFrame, measure: str, *, own: bool) -> pd.DataFrame:
    of = table[(table["measure"] == measure) & (table["trained_on"] != CONTROL)]
    return of[(of["trained_on"] == of["tested_on"]) == own]


def _says(table: pd.DataFrame, by: str) -> str:
    own, other = (_pairs(table, AREA, own=own) for own in (True, False))
    control = table[(table["trained_on"] == CONTROL) & (table["measure"] == AREA)]
    caught = _pairs(table, CAUGHT, own=False)
    told = (
        f"Tested on the {by} that they were trained on, probes have an AUROC of {own['value'].mean():.2f} (mean over "
        f"{len(own)})"
    )
    if other["value"].notna().any():
        told += f"; elsewhere {other['value'].mean():.2f}, {other['value'].min():.2f} at worst"
    if caught["value"].notna().any():
        worst = caught.loc[caught["value"].idxmin()]
        told += (
            f". At 5 % false alarms the worst transfer, {worst['trained_on']} to {worst['tested_on']}, detects "
            f"{percent(worst)}"
        )
    return f"{told}. Trained on random labels: {control['value'].mean():.2f}."


def _beside(table: pd.DataFrame, material: Material) -> tuple[Beside, ...]:
    caught = _pairs(table, CAUGHT, own=False).dropna(subset="value")
    ours = "not known"
    if len(caught):
        least, most = (100 * caught["value"].agg(end) for end in ("min", "max"))
        ours = f"{least:.0f} to {most:.0f} % over {len(caught)} pairs at 5 % false alarms"
    return (
        Beside(
            "SAHs' detection rate by attack",
            "99.72 | 0 | 78.35 | 93.68 % (VLSafe, FigStep, query-relevant, LLM transfer; LLaVA-1.5-7B): nothing on "
            "FigStep",
            ours,
            f"model ({material.model.name}), data ({material.sources.by}s), and false alarms held at 5 % here",
            "SAHs' numbers in the rebuttal of 'One Head to Rule Them All' (NeurIPS 2025)",
        ),
    )


def draw(findings: Findings) -> Any:
    words = {"rows": "trained on", "columns": "tested on", "value": "AUROC, or share"}
    shown = findings.table
    return figures.matrix(
        shown, rows="trained_on", columns="tested_on", panels="measure", words=words, low=0.0, high=1.0
    )


STUDY = StudyRecord(
    "transfer",
    asks="Does a probe learn danger, or the look of the attack it was trained on?",
    source="SAHs (arXiv 2501.02029); False Sense of Security (arXiv 2509.03888)",
    runs="the sweep's head outputs; SAHs' probes from each data set (others=), source or family, tested on each",
    fails="Families share their safe prompts, so that an easy half of them lifts all numbers; data sets are held "
    "against their own.",
    find=find,
    draw=draw,
    needs=(needs.KINDS,),
)
