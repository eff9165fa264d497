"""`projections`: masking a head's query against masking its value, by depth."""

from typing import Any

import numpy as np
import pandas as pd

from workbench.comparison.differences import tested
from workbench.criteria import get_criterion, statistics
from workbench.criteria.values import prompt_values
from workbench.runs.pairs import tie_names
from workbench.runs.reading import prompt_coord
from workbench.runs.splits import in_split
from workbench.studies.material import Material
from workbench.studies.measuring import PERMUTATIONS, is_unsafe, mean_of
from workbench.studies.record import Beside, Findings, StudyRecord
from workbench.views.figures import studies as figures

ANGLE, ALIKE = "angle (degrees)", "rank correlation"


def find(material: Material) -> Findings:
    """Per layer: the mean angle under either mask, and how alike the two rank the layer's heads."""
    from scipy.stats import spearmanr

    run = material.run.isel(prompt=np.flatnonzero(in_split(material.run, "selection")))
    values, unsafe, ties = prompt_values(run, get_criterion("deflection")), is_unsafe(run), tie_names(run)
    contents = prompt_coord(run, "content")
    shuffles = statistics.shuffled_labels(
        unsafe, ties, permutations=PERMUTATIONS, seed=material.seed, contents=contents
    )
    rows, tests = [], []
    for layer in values["layer"].values:
        for projection in values["projection"].values:
            at = values.sel(layer=layer, projection=projection)
            mean = at.mean("head").values
            for label, of in (("safe", ~unsafe), ("unsafe", unsafe)):
                row = {"layer": int(layer), "mask": str(projection), "prompts": label, "measure": ANGLE}
                rows.append(row | mean_of(mean[of], ties[of], seed=material.seed))
            p = statistics.permutation_p(mean[:, None], unsafe, shuffles)[0]
            tests.append({"test": f"layer {layer}, {projection} masked", "p_value": p})
        for label, of in (("safe", ~unsafe), ("unsafe", unsafe)):
            q, v = (values.sel(layer=layer, projection=p).values[of].mean(0) for p in ("query", "value"))
            varied = len(q) > 2 and np.ptp(q) > 0 and np.ptp(v) > 0
            alike = float(spearmanr(q, v).statistic) if varied else np.nan
            row = {"layer": int(layer), "mask": "query against value", "prompts": label, "measure": ALIKE}
            rows.append(row | {"value": alike, "ci_low": np.nan, "ci_high": np.nan, "n": len(q)})
    table = pd.DataFrame(rows)
    third = (table["layer"].max() + 1) / 3
    early, late = (_gap(table[of]) for of in (table["layer"] < third, table["layer"] >= 2 * third))
    ranks = table[(table["measure"] == ALIKE) & (table["prompts"] == "unsafe")]["value"]
    more = "more" if early > late else "less"
    says = (
        f"On unsafe prompts the two masks differ by a factor of {early:.2f} in the first third of the layers and "
        f"{late:.2f} in the last (mean ratio of the larger angle to the smaller): {more} in early layers. Within a "
        f"layer they rank the heads with a Spearman correlation of {ranks.median():.2f} (median over layers)."
    )
    beside = Beside(
        "query and value masks differ most in early layers",
        "so described; no numbers were found",
        f"ratio of angles {early:.2f} in the first third of the layers, {late:.2f} in the last",
        f"model ({material.model.name}), prompts, and the ratio as a measure of ours",
        "'One Head to Rule Them All' (NeurIPS 2025), Figure 4",
    )
    return Findings(table, says, tested(tests), (beside,))


def _gap(table: pd.DataFrame) -> float:
    of = table[(table["measure"] == ANGLE) & (table["prompts"] == "unsafe")]
    wide = of.pivot_table(index="layer", columns="mask", values="value")
    high, low = wide.max(axis=1), wide.min(axis=1)
    return float((high / low.clip(lower=1e-9)).mean())


def draw(findings: Findings) -> Any:
    angles = findings.table[findings.table["measure"] == ANGLE]
    angles = angles.assign(panel=angles["prompts"] + " prompts", mask=angles["mask"] + " masked")
    return figures.lines(angles, x="layer", series="mask", panels="panel", x_words="layer", y_words=ANGLE)


STUDY = StudyRecord(
    "projections",
    asks="Does masking a head's query do the same as masking its value, early and late?",
    source="'One Head to Rule Them All' (NeurIPS 2025), Figure 4; Ships (ICLR 2025): the two barely share heads",
    runs="the sweep of all heads under both masks",
    fails="A mean over the heads of a layer hides single heads; see maps for those.",
    find=find,
    draw=draw,
)
