"""`time`: what judging one prompt costs, in passes and, measured apart, in milliseconds."""

from typing import Any

from workbench.comparison.arena import TIMED
from workbench.studies.detection import left_out, whole
from workbench.studies.material import Material
from workbench.studies.record import Beside, Findings, StudyRecord
from workbench.views.figures import studies as figures

PASSES = "passes"


def find(material: Material) -> Findings:
    """Passes and times of every detector of the arena, on a few test prompts, one at a time."""
    arena = material.arena
    table = whole(arena, PASSES).reset_index(drop=True)
    times = whole(arena, TIMED).reset_index(drop=True)
    passes = ", ".join(f"{r.detector} {r.value:.2f}" for r in table.itertuples())
    beside = Beside(
        "time of one query",
        "0.22 s (one head) against 0.53 s (Llama-Guard-3-Vision), LLaVA-1.5-7B",
        f"in times.csv; passes: {passes}",
        f"model ({material.model.name}), machine; a judge here is the model itself",
        "'One Head to Rule Them All' (NeurIPS 2025), Figure 9",
    )
    cheapest = table.sort_values("value", kind="stable")
    told = ", ".join(f"{r.detector} {r.value:.2f}" for r in cheapest.itertuples())
    says = f"Judging one prompt costs, in unmasked forward passes: {told}. Milliseconds lie in times.csv."
    return Findings(table, says + left_out(arena), beside=(beside,), apart={"times": times})


def draw(findings: Findings) -> Any:
    table = findings.table.sort_values("value", kind="stable")
    ends = (0.0, 1.05 * float(table["value"].max()))
    return figures.dots(table, rows="detector", x="forward passes a prompt, 95 % interval", limits=ends)


STUDY = StudyRecord(
    "time",
    asks="What does each detector cost at query time?",
    source="'One Head to Rule Them All' (NeurIPS 2025), Figure 9",
    runs="every detector of the arena, on 8 test prompts, one at a time",
    fails="Milliseconds are of this machine and what else it did; passes count layers and positions, not memory.",
    find=find,
    draw=draw,
    cost=0.1,
)
