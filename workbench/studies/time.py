"""`time`: what judging one prompt costs, in passes and, measured apart, in milliseconds."""

from typing import Any

import numpy as np
import pandas as pd

from workbench.detectors import list_detectors, make_detector
from workbench.errors import WorkbenchError
from workbench.prompts.prompt import PromptSet
from workbench.studies.material import Material
from workbench.studies.record import Beside, Findings, StudyRecord
from workbench.views.figures import studies as figures

COSTED, FITTED = 8, 48  # prompts that are timed; prompts of each label that a detector is fitted on
TOKENS = 32


def find(material: Material) -> Findings:
    """Every detector fitted on a few prompts and costed one prompt at a time; those that cannot be fitted are named."""
    test = material.sample(material.test_prompts(), COSTED)
    few = _few(material)
    rows, times, left_out = [], [], []
    records = list_detectors()
    for record in material.track(records, "detectors", total=len(records)):
        try:
            detector = make_detector(record.name, seed=material.seed).fit(material.model, few)
            cost = detector.cost(material.model, test, max_new_tokens=TOKENS)
        except WorkbenchError as error:
            left_out.append(f"{record.name} ({str(error).split('. ')[0]})")
            continue
        about = {"detector": record.name}
        nothing = {"ci_low": np.nan, "ci_high": np.nan, "n": cost.n_prompts}
        rows.append(about | {"measure": "forward_passes", "value": cost.forward_passes} | nothing)
        milliseconds = {"detect_ms": 1000 * cost.detect_s, "reply_ms": 1000 * cost.generate_s}
        times.append(about | milliseconds | {"share_of_a_reply": cost.latency_ratio, "n": cost.n_prompts})
    table = pd.DataFrame(rows, columns=["detector", "measure", "value", "ci_low", "ci_high", "n"])
    beside = Beside(
        "time of one query",
        "0.22 s (one head) against 0.53 s (Llama-Guard-3-Vision), LLaVA-1.5-7B",
        "in times.csv; passes: " + ", ".join(f"{r.detector} {r.value:.2f}" for r in table.itertuples()),
        f"model ({material.model.name}), machine; a judge model here is the model itself",
        "'One Head to Rule Them All' (NeurIPS 2025), Figure 9",
    )
    says = _says(table) + (f" Left out: {'; '.join(left_out)}." if left_out else "")
    return Findings(table, says, beside=(beside,), apart={"times": pd.DataFrame(times)})


def _few(material: Material) -> PromptSet:
    """Prompts to fit on, none of them test prompts."""
    return material.sample(material.prompts.where(lambda p: p.split != "test"), 2 * FITTED).with_split("")


def _says(table: pd.DataFrame) -> str:
    known = table[table["value"].notna()].sort_values("value", kind="stable")
    if known.empty:
        return "No detector could be costed."
    told = ", ".join(f"{r.detector} {r.value:.2f}" for r in known.itertuples())
    return f"Judging one prompt costs, in unmasked forward passes: {told}. Milliseconds lie in times.csv."


def draw(findings: Findings) -> Any:
    table = findings.table.sort_values("value", kind="stable")
    most = float(table["value"].max())
    ends = (0.0, 1.05 * most) if most > 0 else None
    return figures.dots(table, rows="detector", x="forward passes a prompt", limits=ends)


STUDY = StudyRecord(
    "time",
    asks="What does each detector cost at query time?",
    source="'One Head to Rule Them All' (NeurIPS 2025), Figure 9",
    runs="every detector of the registry, fitted on up to 96 prompts, timed on 8",
    fails="Milliseconds are of this machine and what else it did; passes count layers and positions, not memory.",
    find=find,
    draw=draw,
    cost=0.7,
)
