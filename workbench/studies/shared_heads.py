"""`shared-heads`: do models of one base, and of other training seeds, share their heads?"""

from typing import Any

import numpy as np
import pandas as pd

from workbench.axes import head_names, head_pairs
from workbench.comparison.differences import tested
from workbench.criteria import score, top_heads
from workbench.criteria.ranking import anchor_rule
from workbench.criteria.registry import get_criterion
from workbench.errors import CriterionError
from workbench.models.hooked import HookedLVLM
from workbench.studies import needs
from workbench.studies.material import Material
from workbench.studies.measuring import PERMUTATIONS, listed, names_of
from workbench.studies.record import Beside, Findings, StudyRecord
from workbench.views.figures import studies as figures

CRITERIA = ("deflection", "ships", "probe")
K = 5


def find(material: Material) -> Findings:
    """Rank correlation and overlap of the first heads for every two models of one shape, under three criteria."""
    from scipy.stats import hypergeom, spearmanr

    shape = (material.model.n_layers, material.model.n_heads)
    models = [material.model, *(m for m in material.models if (m.n_layers, m.n_heads) == shape)]
    names = names_of(models)
    tables = [_scores(material, model) for model in material.track(models, "models")]
    rows, tests = [], []
    for criterion in CRITERIA:
        known = [_ranking(table, criterion) for table in tables]
        for i, a in enumerate(models):
            for j, b in enumerate(models[:i]):
                both = known[i][0].index.intersection(known[j][0].index)
                x, y = known[i][0][both].to_numpy(), known[j][0][both].to_numpy()
                varied = len(both) > 2 and np.ptp(x) > 0 and np.ptp(y) > 0
                alike = float(spearmanr(x, y).statistic) if varied else np.nan
                shared = [head for head in known[i][1] if head in known[j][1]]
                sizes = [len(known[i][1]), len(known[j][1])]
                p = float(hypergeom.sf(len(shared) - 1, len(both), *sizes)) if min(sizes) and len(both) else np.nan
                about: dict[str, Any] = {"criterion": criterion, "a": names[i], "b": names[j]}
                about |= {"heads": head_names(shared), "ci_low": np.nan, "ci_high": np.nan, "n": len(both)}
                rows.append(about | {"measure": "rank correlation", "value": alike, "p_value": np.nan})
                overlap = len(shared) / min(sizes) if min(sizes) else np.nan
                rows.append(about | {"measure": "overlap", "value": overlap, "p_value": p})
                tests.append({"test": f"{criterion}, {a.name} and {b.name}", "p_value": p if shared else 1.0})
    table = pd.DataFrame(rows)
    return Findings(table, _says(table), tested(tests), _beside(table, material))


def _scores(material: Material, model: HookedLVLM) -> pd.DataFrame:
    if model is material.model:
        run = material.run
    else:  # on the selection prompts, which alone are scored
        run = material.sweep(model, material.prompts.where(split="selection"), projections=("query",))
    return score(run, CRITERIA, bootstrap=0, permutations=PERMUTATIONS, seed=material.seed)


def _ranking(scores: pd.DataFrame, criterion: str) -> tuple[pd.Series, list[tuple[int, int]]]:
    """Every head's value on unsafe prompts, and those of the first five that tell the labels apart (q < 0.05)."""
    projection = "query" if criterion != "probe" else "none"
    of = scores[(scores["criterion"] == criterion) & (scores["projection"] == projection)]
    of = of.set_index(["layer", "head"])
    try:
        how: dict[str, Any] = {
            "criterion": criterion,
            "projection": projection,
            "rule": anchor_rule(get_criterion(criterion)),
        }
        first = head_pairs(top_heads(scores, k=K, **how))
    except CriterionError:
        first = []
    sure = [head for head in first if not of.loc[head, "q_value"] >= 0.05]
    return of["unsafe"].dropna(), [head for head in sure if np.isfinite(of.loc[head, "q_value"])]


def _says(table: pd.DataFrame) -> str:
    told = []
    for criterion, of in table.groupby("criterion", sort=False):
        ranks = of[of["measure"] == "rank correlation"]["value"]
        shared = of[of["measure"] == "overlap"]
        if ranks.notna().any():
            heads = sorted({h for words in shared["heads"] for h in words.split()})
            told.append(
                f"{criterion}: rank correlation {ranks.min():.2f} to {ranks.max():.2f}, of the first {K} heads two "
                f"models share {listed(heads) if heads else 'none that is sure'}"
            )
    pairs = table.groupby(["a", "b"]).ngroups
    return (
        f"Over {pairs} {'pair' if pairs == 1 else 'pairs'} of models: " + ("; ".join(told) or "nothing to rank") + "."
    )


def _beside(table: pd.DataFrame, material: Material) -> tuple[Beside, ...]:
    ranks = table[table["measure"] == "rank correlation"]["value"].dropna()
    ours = f"rank correlation {ranks.min():.2f} to {ranks.max():.2f}" if len(ranks) else "not known"
    differs = f"models ({', '.join(sorted(set(table['a']) | set(table['b'])))}), which are trained here, and prompts"
    return (
        Beside(
            "heads shared by models of one base",
            "similar maps for models with one language model (section 4.3); heads overlap across models tuned from one "
            "base (Ships); no numbers were found",
            ours,
            differs,
            "'One Head to Rule Them All' (NeurIPS 2025), section 4.3; Ships (ICLR 2025)",
        ),
    )


def draw(findings: Findings) -> Any:
    table = findings.table[findings.table["measure"] == "rank correlation"]
    swapped = table.rename(columns={"a": "b", "b": "a"})
    names = list(dict.fromkeys([*table["b"], *table["a"]]))
    own = [{"criterion": c, "a": n, "b": n, "value": 1.0} for c in dict.fromkeys(table["criterion"]) for n in names]
    both = pd.concat([pd.DataFrame(own), table, swapped], ignore_index=True)
    words = {"rows": "", "columns": "", "value": "rank correlation"}
    return figures.matrix(both, rows="a", columns="b", panels="criterion", words=words, low=-1.0, high=1.0, signed=True)


STUDY = StudyRecord(
    "shared-heads",
    asks="Do models of one base, and of other training seeds, carry safety in the same heads?",
    source="'One Head to Rule Them All' (NeurIPS 2025), section 4.3; Ships (ICLR 2025); reviews",
    runs="a sweep of the query mask over the selection prompts for every model",
    fails="A rank correlation over all heads is made by the many that do nothing of interest; the overlap counts only "
    "heads among the first five that tell unsafe from safe prompts in both models.",
    find=find,
    draw=draw,
    needs=(needs.SAME_SHAPE,),
    cost=1.0,
)
