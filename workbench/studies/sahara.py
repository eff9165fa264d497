"""`sahara`: groups of heads by Ships' published objective over a data set, beside the KL one."""

from typing import Any

import numpy as np
import pandas as pd

from workbench.axes import Head, head_names
from workbench.comparison.differences import tested
from workbench.criteria import statistics
from workbench.detectors.calibration import unsafe_array
from workbench.finding.head_sets import greedy_groups, group_effects
from workbench.prompts.ties import tie_names
from workbench.studies.material import Material
from workbench.studies.measuring import PERMUTATIONS, mean_of
from workbench.studies.record import Beside, Findings, StudyRecord
from workbench.views.figures import studies as figures

STEPS, MOST_PROMPTS, DRAWS = 3, 100, 10  # their search reads about a hundred prompts
OBJECTIVES = {"subspace": "angle between sets of states (degrees)", "kl": "KL divergence (nats)"}
RANDOM = "random heads"


def find(material: Material) -> Findings:
    """Both greedy searches on the unsafe selection prompts; their groups' KL on unsafe and safe test prompts."""
    selection = material.prompts.where(split="selection")
    seek = material.sample(selection.where(label="unsafe"), MOST_PROMPTS)
    test = material.test_prompts()
    unsafe = unsafe_array(test)
    ties = tie_names([p.pair_id for p in test], [p.content_key() for p in test])
    contents = np.array([p.content_key() for p in test], dtype=object)
    rows, tests = [], []
    groups: dict[tuple[str, int], tuple[Head, ...]] = {}
    for objective in material.track(OBJECTIVES, "objectives", total=len(OBJECTIVES)):
        found = greedy_groups(material.model, seek, objective=objective, steps=STEPS)
        for row in found.to_dict("records"):
            step = int(row["step"])
            groups[objective, step] = found.attrs["group"][:step]
            about = {"objective": objective, "step": step, "heads": head_names(groups[objective, step])}
            about |= {"ci_low": np.nan, "ci_high": np.nan, "n": len(seek)}
            rows.append(about | {"measure": OBJECTIVES[objective], "prompts": "search", "value": row["value"]})
    drawn = _random(material, DRAWS)
    named = [*groups.values(), *(heads[:step] for step in range(1, STEPS + 1) for heads in drawn)]
    effects = group_effects(material.model, test, named, measure="kl")
    shuffles = statistics.shuffled_labels(
        unsafe, ties, permutations=PERMUTATIONS, seed=material.seed, contents=contents
    )
    for i, ((objective, step), heads) in enumerate(groups.items()):
        about = {"objective": objective, "step": step, "heads": head_names(heads), "measure": "KL on test prompts"}
        for label, of in (("unsafe", unsafe), ("safe", ~unsafe)):
            rows.append(about | {"prompts": label} | mean_of(effects[of, i], ties[of], seed=material.seed))
        p = statistics.permutation_p(effects[:, i : i + 1], unsafe, shuffles)
        tests.append({"test": f"{objective}, {step}: more on unsafe prompts than on safe", "p_value": float(p[0])})
    for step in range(1, STEPS + 1):
        start = len(groups) + (step - 1) * len(drawn)
        for label, of in (("unsafe", unsafe), ("safe", ~unsafe)):
            means = effects[of, start : start + len(drawn)].mean(0)
            about = {"objective": RANDOM, "step": step, "heads": "", "measure": "KL on test prompts", "prompts": label}
            ends = {"value": means.mean(), "ci_low": means.min(), "ci_high": means.max(), "n": len(drawn)}
            rows.append(about | ends)
    table = pd.DataFrame(rows)
    return Findings(table, _says(table, groups), tested(tests), _beside(groups, material))


def _random(material: Material, draws: int) -> list[list[Head]]:
    every = [(layer, head) for layer in material.model.masked_layers for head in range(material.model.n_heads)]
    rng = np.random.default_rng(material.seed)
    return [[every[i] for i in rng.choice(len(every), STEPS, replace=False)] for _ in range(draws)]


def _says(table: pd.DataFrame, groups: dict[tuple[str, int], tuple[Head, ...]]) -> str:
    last = {objective: groups[objective, STEPS] for objective in OBJECTIVES}
    shared = set(last["subspace"]) & set(last["kl"])
    of = table[(table["measure"] == "KL on test prompts") & (table["step"] == STEPS)]
    kl = {(r.objective, r.prompts): r.value for r in of.itertuples()}
    return (
        f"By the angle between sets of states the search takes {head_names(last['subspace'])}, by the mean KL "
        f"divergence {head_names(last['kl'])}; they share {len(shared)} of {STEPS}. Masked together on unseen prompts "
        f"the first group moves the next token by {kl['subspace', 'unsafe']:.2f} nats on unsafe and "
        f"{kl['subspace', 'safe']:.2f} on safe prompts, the second by {kl['kl', 'unsafe']:.2f} and "
        f"{kl['kl', 'safe']:.2f}, {STEPS} random heads by {kl[RANDOM, 'unsafe']:.2f} and {kl[RANDOM, 'safe']:.2f}."
    )


def _beside(groups: dict[tuple[str, int], tuple[Head, ...]], material: Material) -> tuple[Beside, ...]:
    return (
        Beside(
            "heads of a group",
            "5 at most; attack success peaks near 3 (Llama-2-7b-chat: 0.72 with three heads)",
            f"{STEPS} heads: {head_names(groups['subspace', STEPS])} by the published objective",
            f"model ({material.model.name}), prompts; the effect is measured here on the next token",
            "Sahara, Ships (ICLR 2025, arXiv 2410.13708), section 4",
        ),
    )


def draw(findings: Findings) -> Any:
    table = findings.table[findings.table["measure"] == "KL on test prompts"]
    table = table.assign(
        panel=table["prompts"] + " prompts",
        objective=table["objective"].replace({"subspace": "angle of sets", "kl": "KL"}),
    )
    words: dict[str, Any] = {"x_words": "heads in the group", "y_words": "KL divergence (nats)"}
    return figures.lines(table, x="step", series="objective", panels="panel", **words)


STUDY = StudyRecord(
    "sahara",
    asks="Does the published group objective find other heads than the mean effect on the output?",
    source="Sahara, Ships (ICLR 2025, arXiv 2410.13708), section 4",
    runs="two greedy searches over all heads, three steps each, on the unsafe selection prompts",
    fails="Only harmful prompts are searched, as published: a head that does as much on safe prompts wins too.",
    find=find,
    draw=draw,
    cost=2.0,
)
