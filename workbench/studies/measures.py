"""`measures`: does another measure than the angle detect as well?"""

from typing import Any

import numpy as np
import pandas as pd

from workbench.axes import head_name
from workbench.comparison.differences import tested
from workbench.criteria import get_criterion, list_criteria, statistics
from workbench.criteria.registry import PER_PROMPT
from workbench.errors import CriterionError
from workbench.runs.pairs import tie_names
from workbench.runs.splits import in_split
from workbench.studies.material import Material
from workbench.studies.measuring import BOOTSTRAP, SHOWN, flagged, is_unsafe, listed, of_area, separations, span
from workbench.studies.record import Beside, Findings, StudyRecord
from workbench.views.figures import studies as figures

ANCHOR = "deflection"


def find(material: Material) -> Findings:
    """One head a measure, chosen by selectivity over it; what it detects, and how it differs from the angle."""
    run = material.run
    test, unsafe = in_split(run, "test"), is_unsafe(run)
    chosen, names = {}, [c.name for c in list_criteria() if c.kind == PER_PROMPT and set(c.needs) <= set(run)]
    for name in sorted(names, key=lambda n: n != ANCHOR):
        try:
            found = material.chosen(criterion=name)
        except CriterionError:
            continue  # the rule keeps no head, or some prompts have no value: this measure has no detector
        if len(found.value) == run.sizes["prompt"] and np.isfinite(found.value).all():
            chosen[name] = found
    values = np.stack([c.value for c in chosen.values()], axis=1)
    areas = separations(values, run, seed=material.seed)
    weights = statistics.bootstrap_weights(unsafe[test], tie_names(run)[test], resamples=BOOTSTRAP, seed=material.seed)
    draws = np.stack([_areas(values[test][:, i], unsafe[test], weights) for i in range(len(chosen))])
    rows = []
    for i, (name, found) in enumerate(chosen.items()):
        about = {"measure_of_change": name, "head": head_name(*found.heads[0])}
        area = areas.iloc[i]
        rows.append(about | {"measure": "auroc"} | of_area(area))
        rows += [about | row for row in flagged(found.value, found.threshold(), run)]
        if name != ANCHOR:
            low, high = statistics.percentile_interval(draws[i] - draws[0])
            more = {"value": area["auroc"] - areas.iloc[0]["auroc"], "ci_low": low, "ci_high": high, "n": area["n"]}
            rows.append(about | {"measure": "auroc_minus_angle"} | more)
    table = pd.DataFrame(rows)
    other = table[table["measure"] == "auroc_minus_angle"]
    apart = other[(other["ci_low"] > 0) | (other["ci_high"] < 0)]
    how = [f"{r.measure_of_change} ({r.value:+.2f}, {r.ci_low:+.2f} to {r.ci_high:+.2f})" for r in apart.itertuples()]
    says = (
        f"The angle's head ({head_name(*chosen[ANCHOR].heads[0])}) has an AUROC of {span(areas.iloc[0])} on unseen "
        f"prompts. Of {len(other)} other measures, each with its own head, {len(apart)} "
        f"{'differs' if len(apart) == 1 else 'differ'} from it (95 % paired bootstrap, not corrected for looking at "
        f"{len(other)})" + (f": {listed(how)}." if how else ".")
    )
    tests = tested([{"test": name, "p_value": p} for name, p in zip(chosen, areas["p_value"], strict=True)])
    beside = Beside(
        "other measures than the angle",
        "no significant difference; which measures was not found",
        f"{len(apart)} of {len(other)} differ in AUROC",
        f"model ({material.model.name}), prompts, and which measures",
        "'One Head to Rule Them All' (NeurIPS 2025), Figure 12",
    )
    return Findings(table, says, tests, (beside,))


def _areas(values: np.ndarray, unsafe: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUROC under each bootstrap weight, [resample]; the same weights for every measure pair their draws."""
    above = (values[unsafe][:, None] > values[~unsafe]) + 0.5 * (values[unsafe][:, None] == values[~unsafe])
    a, b = weights[:, unsafe], weights[:, ~unsafe]
    return np.einsum("ri,ij,rj->r", a, above, b) / (a.sum(1) * b.sum(1))


def draw(findings: Findings) -> Any:
    table = findings.table[findings.table["measure"].isin(list(SHOWN))]
    words = [f"{_title(name)}, {head}" for name, head in zip(table["measure_of_change"], table["head"], strict=True)]
    table = table.assign(row=words, measure=table["measure"].map(SHOWN))
    return figures.dots(table, rows="row", panels="measure", x="share, 95 % interval", limits=(-0.02, 1.02))


def _title(name: str) -> str:
    try:
        return get_criterion(name).label.split(" (")[0]
    except CriterionError:
        return name


STUDY = StudyRecord(
    "measures",
    asks="Is the angle the measure that matters, or would the KL divergence, the norm or a projection do as well?",
    source="'One Head to Rule Them All' (NeurIPS 2025), Figure 12; reviews",
    runs="the sweep; a head a measure, chosen on the selection prompts, thresholded and tested on the others",
    fails="A measure is compared with its own head: the head and the measure change together.",
    find=find,
    draw=draw,
)
