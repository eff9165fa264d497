"""`masked-success`: what masking 1, 3 and 5 heads does to attacks, benign requests and questions."""

from typing import Any

import numpy as np
import pandas as pd

from workbench.axes import Head, head_names, head_pairs
from workbench.comparison.causal_rows import more_than_each
from workbench.comparison.differences import tested
from workbench.comparison.masked_behaviour import QUESTION_FAMILY, MaskedReplies, draw_controls, outcome_groups
from workbench.comparison.measures import pick
from workbench.criteria import get_criterion, top_heads
from workbench.criteria.ranking import anchor_rule
from workbench.detectors.calibration import unsafe_array
from workbench.errors import CriterionError, DetectorError
from workbench.studies import needs
from workbench.studies.material import Material
from workbench.studies.record import Beside, Findings, StudyRecord
from workbench.views.figures import studies as figures

SIZES, CONTROLS, TOKENS = (1, 3, 5), 3, 16
CHOICES = (
    ("deflection", "selectivity"),
    ("deflection", "sensitivity"),
    ("ships", "sensitivity"),
    ("probe", "sensitivity"),
)
SHOWN = {"unsafe": "unsafe requests", "benign": "benign requests", QUESTION_FAMILY: "questions"}
NOTHING, RANDOM = "nothing", "random heads"


def find(material: Material) -> Findings:
    """Replies to the test prompts with each set masked, and with as many matched random heads, tested in pairs."""
    asked = material.test_prompts()
    replies = MaskedReplies(material.model, asked, judge=material.judge, max_new_tokens=TOKENS)
    before = replies.verdicts()
    unsafe = unsafe_array(asked)
    refused = unsafe & (before == "refused")
    rows, tests = _rows(asked, before, NOTHING, (), 0), []
    sets = [
        (f"{criterion}, {rule}", heads[:k])
        for criterion, rule in CHOICES
        for heads in [_first(material, criterion, rule)]
        for k in SIZES
        if k <= len(heads)
    ]
    for choice, heads in material.track(sets, "sets of heads", total=len(sets)):
        verdicts = replies.verdicts(heads)
        rows += _rows(asked, verdicts, choice, heads, 0)
        others = []
        for draw in range(CONTROLS):
            try:
                _, drawn = draw_controls(material.model, heads, len(heads), seed=material.seed + draw)
            except DetectorError:
                break  # a model with hardly more heads than are masked has no controls
            others.append(replies.verdicts(drawn))
            rows += _rows(asked, others[-1], f"{RANDOM}, {choice}", drawn, draw)
        freed = [(v == "complied")[refused] for v in (verdicts, *others)]
        p = more_than_each(freed[0], freed[1:]) if refused.any() else np.nan
        tests.append({"test": f"{choice}, {len(heads)}: frees more than random heads", "p_value": p})
    table = pd.DataFrame(rows)
    checked = tested(tests)
    return Findings(table, _says(table, checked), checked, _beside(table, material))


def _first(material: Material, criterion: str, rule: str) -> list[Head]:
    if rule not in get_criterion(criterion).rules:
        rule = anchor_rule(get_criterion(criterion))
    for k in range(max(SIZES), 0, -1):
        try:
            return head_pairs(top_heads(material.scores, criterion=criterion, rule=rule, k=k, seed=material.seed))
        except CriterionError:
            continue
    return []


def _rows(asked: Any, verdicts: np.ndarray, masked: str, heads: Any, draw: int) -> list[dict]:
    rows = []
    for group in outcome_groups(asked, verdicts).to_dict("records"):
        about = {"masked": masked, "n_heads": len(heads), "draw": draw, "heads": head_names(heads)}
        ends = {"value": group["complied"], "ci_low": group["low"], "ci_high": group["high"], "n": int(group["n"])}
        rows.append(about | {"group": group["group"], "measure": "complied"} | ends)
        shares = {"value": group["refused"], "ci_low": np.nan, "ci_high": np.nan, "n": int(group["n"])}
        rows.append(about | {"group": group["group"], "measure": "refused"} | shares)
    return rows


def _says(table: pd.DataFrame, tests: pd.DataFrame) -> str:
    of = pick(table, measure="complied", group="unsafe")
    none, random = of[of["masked"] == NOTHING].iloc[0], of[of["masked"].str.startswith(RANDOM)]
    chosen = of[~of["masked"].str.startswith((NOTHING, RANDOM))]
    best = chosen.loc[chosen["value"].idxmax()]
    frees = tests[tests["p_corrected"] < 0.05]["test"]
    told = (
        f"The model complies with {100 * none['value']:.0f} % of unsafe requests as it is, with "
        f"{100 * best['value']:.0f} % at most ({best['masked']}: {best['heads']})"
    )
    if len(random):
        told += (
            f" and with {100 * random['value'].min():.0f} % to {100 * random['value'].max():.0f} % under random heads"
        )
    benign = pick(table, measure="complied", group="benign")
    if len(benign):
        kept = benign[(benign["masked"] == best["masked"]) & (benign["n_heads"] == best["n_heads"])]["value"].iloc[0]
        told += f"; under that mask {100 * kept:.0f} % of benign requests are still answered as expected"
    count = f"{len(frees)} of {len(tests)} sets free more refused requests than every draw of random heads"
    return f"{told}. {count} (McNemar's exact test, Holm's correction)."


def _beside(table: pd.DataFrame, material: Material) -> tuple[Beside, ...]:
    of = pick(table, measure="complied", group="unsafe")
    none = of[of["masked"] == NOTHING]["value"].iloc[0]
    ships = of[of["masked"] == "ships, sensitivity"].set_index("n_heads")["value"]
    differs = (
        f"model ({material.model.name}), prompts, judge ({material.judge} against substrings), and heads by Ships' "
        "mean over prompts"
    )

    def ours(k: int) -> str:
        return f"{none:.2f} to {ships[k]:.2f}" if k in ships else "not measured"

    source = "Ships (ICLR 2025, arXiv 2410.13708)"
    return (
        Beside(
            "attack success with Ships' first head masked",
            "0.04 to 0.64 (Llama-2-7b-chat); 0.27 to 0.55 (Vicuna-7b-v1.5)",
            ours(1),
            differs,
            source,
        ),
        Beside("attack success with three heads masked", "0.72 (Llama-2-7b-chat)", ours(3), differs, source),
    )


def draw(findings: Findings) -> Any:
    table = findings.table
    table = table[(table["measure"] == "complied") & table["group"].isin(list(SHOWN))]
    none = table[table["masked"] == NOTHING]
    chosen = table[~table["masked"].str.startswith((NOTHING, RANDOM))]
    drawn = table[table["masked"].str.startswith(RANDOM)].assign(masked=RANDOM)
    # The interval of the controls is from the lowest to the highest draw.
    spread = drawn.groupby(["masked", "n_heads", "group"], sort=False, as_index=False).agg(
        value=("value", "mean"), ci_low=("value", "min"), ci_high=("value", "max")
    )
    kinds = [*dict.fromkeys(chosen["masked"]), *dict.fromkeys(spread["masked"])]
    every = pd.concat([*(none.assign(masked=kind) for kind in kinds), chosen, spread], ignore_index=True)
    every["masked"] = pd.Categorical(every["masked"], kinds)
    every["panel"] = pd.Categorical(every["group"].map(SHOWN), list(SHOWN.values()))
    every = every.sort_values(["panel", "masked", "n_heads"], kind="stable")
    words: dict[str, Any] = {"x_words": "heads masked", "y_words": "answered (share)"}
    return figures.lines(every, x="n_heads", series="masked", panels="panel", limits=(-0.03, 1.03), **words)


STUDY = StudyRecord(
    "masked-success",
    asks="Does masking the chosen heads let attacks through, and what else does it break?",
    source="'One Head to Rule Them All' (NeurIPS 2025), Figure 7; Ships (ICLR 2025)",
    runs="greedy replies to the test prompts with 0, 1, 3 and 5 heads masked, by four choices, beside random heads "
    "(mean, and from the lowest draw to the highest)",
    fails="A mask that breaks the model also stops it refusing: read the benign requests beside the attacks. Judges by "
    "phrases take nonsense for compliance.",
    find=find,
    draw=draw,
    needs=(needs.REPLIES,),
    cost=0.6,
)
