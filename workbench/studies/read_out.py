"""`read-out`: at which layer the angle is read."""

from typing import Any

import numpy as np
import pandas as pd

from workbench.axes import head_name
from workbench.comparison.differences import tested
from workbench.errors import CriterionError
from workbench.runs.splits import with_splits
from workbench.studies.material import Material
from workbench.studies.measuring import SHOWN, flagged, of_area, separations, span
from workbench.studies.record import Beside, Findings, StudyRecord
from workbench.views.figures import studies as figures

MOST_READ = 12  # layers read at most: every layer of a small model, evenly spaced ones of a large one


def find(material: Material) -> Findings:
    """For each layer read, the head that selectivity chooses there, and what it detects."""
    model = material.model
    layers = sorted({int(i) for i in np.linspace(0, model.n_layers - 1, min(model.n_layers, MOST_READ)).round()})
    read = (*layers[:-1], "final")
    options: dict[str, Any] = {"projections": ("query",), "keep_states": False}
    run = material.sweep(readout=read, **options)
    rows, tests = [], []
    for at in read:
        one = with_splits(run.sel(readout=str(at), drop=True), seed=material.seed)[0]
        place = model.n_layers - 1 if at == "final" else int(str(at))
        reached = one.sel(layer=one["layer"] <= place)
        try:
            chosen = material.chosen(reached)
        except CriterionError:
            continue
        about = {"layer_read": place, "head": head_name(*chosen.heads[0])}
        area = separations(chosen.value[:, None], reached, seed=material.seed).iloc[0]
        rows.append(about | {"measure": "auroc"} | of_area(area))
        tests.append({"test": f"read after layer {place}", "p_value": area["p_value"]})
        rows += [about | row for row in flagged(chosen.value, chosen.threshold(), reached)]
    table, checked = pd.DataFrame(rows), tested(tests)
    areas = table[table["measure"] == "auroc"].reset_index(drop=True)
    works = areas[checked["p_corrected"].to_numpy() < 0.05]
    best = areas.loc[areas["value"].idxmax()]
    seen = f"layer {int(works['layer_read'].min())}" if len(works) else "none"
    says = (
        f"The first of the layers 0 to {model.n_layers - 1} after which unsafe prompts are told from safe ones: {seen} "
        f"(one-sided permutation, Holm's correction over {len(areas)} read-outs). The final state gives an AUROC of "
        f"{span(areas.iloc[-1])}, the best read-out, layer {int(best['layer_read'])}, {span(best)}, with heads chosen "
        "anew at each."
    )
    beside = Beside(
        "which layer the state is read from",
        "any layer after about 20 of 32 works (LLaVA-1.5-7B); the final one by default",
        f"from {seen} on" if len(works) else seen,
        f"model ({model.name}, {model.n_layers} layers), prompts; states between go through the final norm here",
        "rebuttal of 'One Head to Rule Them All' (NeurIPS 2025)",
    )
    return Findings(table, says, checked, (beside,))


def draw(findings: Findings) -> Any:
    table = findings.table.assign(measure=findings.table["measure"].map(SHOWN))
    words: dict[str, Any] = {"x_words": "layer after which the state is read", "y_words": "share"}
    return figures.lines(table, x="layer_read", series="measure", limits=(-0.03, 1.03), line=0.5, **words)


STUDY = StudyRecord(
    "read-out",
    asks="From which layer on does the state show what the final one shows?",
    source="rebuttal of 'One Head to Rule Them All' (NeurIPS 2025)",
    runs="a sweep of the query mask that is read after every layer (twelve evenly spaced ones of a deep model)",
    fails="A state in the middle was not made for the final norm; a late read-out may gain from having more heads to "
    "choose from.",
    find=find,
    draw=draw,
    cost=0.6,
)
