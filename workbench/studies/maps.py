"""`maps`: what masking every head does, on safe prompts and on unsafe ones."""

from typing import Any

import numpy as np

from workbench.axes import head_name
from workbench.criteria import SCORE_COLUMNS
from workbench.studies.material import Material
from workbench.studies.measuring import listed
from workbench.studies.record import Beside, Findings, StudyRecord
from workbench.views import charts, theme
from workbench.views.figures import pages, style

CRITERION, PROJECTION = "deflection", "query"


def find(material: Material) -> Findings:
    """Every head's mean deflection under the query mask, safe and unsafe, with the difference tested."""
    from scipy.stats import spearmanr

    scores = material.scores
    table = scores[(scores["criterion"] == CRITERION) & (scores["projection"] == PROJECTION)]
    table = table[list(SCORE_COLUMNS)].reset_index(drop=True)
    names = theme.names(table)
    tests = table[["p_value"]].assign(test=names, p_corrected=table["q_value"])[["test", "p_value", "p_corrected"]]
    early = table[table["layer"] < (table["layer"].max() + 1) / 3]
    share = {label: _share(early[label], table[label]) for label in ("unsafe", "safe")}
    alike = float(spearmanr(table["unsafe"], table["safe"]).statistic)
    more = int((table["q_value"] < 0.05).sum())
    picked = [head_name(*head) for head in _picks(table).selective][:3]
    says = (
        f"{more} of {len(table)} heads turn the state further on unsafe prompts than on safe ones (one-sided "
        f"permutation, false discoveries held at 5 %). The two maps' rank correlation is {alike:.2f}; of the ten "
        f"heads that turn it most, {100 * share['unsafe']:.0f} % on unsafe and {100 * share['safe']:.0f} % on safe "
        f"prompts lie in the first third of the layers. Selectivity puts {listed(picked) or 'no head'} first."
    )
    beside = Beside(
        "heads of early layers have large angles on both kinds of prompts",
        "so described for LLaVA-1.5-7B, Qwen2-VL-7B, Phi-3.5-Vision and Aya-Vision-8B; no numbers were found",
        f"first third of the layers among the ten largest: {100 * share['unsafe']:.0f} % unsafe, "
        f"{100 * share['safe']:.0f} % safe",
        f"model ({material.model.name}), prompts, and a count of ours in place of a look at the map",
        "'One Head to Rule Them All' (NeurIPS 2025), Figure 2",
    )
    return Findings(table, says, tests, (beside,))


def _share(some: Any, every: Any) -> float:
    first = every.sort_values(ascending=False, kind="stable").index[:10]
    return float(np.isin(first, some.index).mean())


def _picks(table: Any) -> charts.Picks:
    return charts.picks(table, criterion=CRITERION, projection=PROJECTION)


def draw(findings: Findings) -> Any:
    with style.house_style():
        return pages.safe_and_unsafe(
            findings.table, criterion=CRITERION, projection=PROJECTION, picks=_picks(findings.table)
        )


STUDY = StudyRecord(
    "maps",
    asks="Which heads turn the model's last state when their queries are masked, on safe and on unsafe prompts?",
    source="'One Head to Rule Them All' (NeurIPS 2025), Figure 2",
    runs="the sweep of all heads; angles per prompt, averaged over the selection prompts",
    fails="Where safe and unsafe prompts differ in more than safety (length, pictures, sources), so does the map.",
    find=find,
    draw=draw,
    cost=1.0,
)
