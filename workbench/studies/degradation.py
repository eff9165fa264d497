"""`degradation`: what vision and tuning did to safety: with and without pictures, in every model."""

from typing import Any

import numpy as np
import pandas as pd

from workbench.comparison.causal_rows import more_than_each
from workbench.comparison.differences import tested
from workbench.comparison.masked_behaviour import outcome_groups
from workbench.comparison.measures import pick
from workbench.detectors.calibration import unsafe_array
from workbench.prompts.prompt import PromptSet
from workbench.replies.batches import generate_batch
from workbench.replies.judges import judge_replies
from workbench.studies import needs
from workbench.studies.material import Material
from workbench.studies.measuring import names_of
from workbench.studies.record import Beside, Findings, StudyRecord
from workbench.views.figures import studies as figures

TOKENS = 16
GIVEN, WORDS = "as given", "text only"


def find(material: Material) -> Findings:
    """Replies of every model to the test prompts, as given and with the words alone, with paired tests."""
    models = [material.model, *material.models]
    names = names_of(models)
    asked = material.test_prompts()
    variants = {GIVEN: asked}
    if alone := [p for p in asked if p.image is not None and p.text.strip()]:
        variants[WORDS] = PromptSet(PromptSet(alone, name=asked.name).variants(WORDS), name=asked.name)
    rows, verdicts = [], {}
    pairs = [(name, model, variant) for name, model in zip(names, models, strict=True) for variant in variants]
    for name, model, variant in material.track(pairs, "models", total=len(pairs)):
        prompts = variants[variant]
        said = judge_replies(prompts, generate_batch(model, prompts, max_new_tokens=TOKENS), material.judge)
        verdicts[name, variant] = said
        for group in outcome_groups(prompts, said).to_dict("records"):
            about = {"model": name, "asked": variant, "group": group["group"], "n": int(group["n"])}
            ends = {"value": group["complied"], "ci_low": group["low"], "ci_high": group["high"]}
            rows.append(about | {"measure": "complied"} | ends)
            rows.append(about | {"measure": "refused", "value": group["refused"], "ci_low": np.nan, "ci_high": np.nan})
    tests = []
    unsafe = unsafe_array(asked)
    for name in names[1:]:
        for less, more in ((name, names[0]), (names[0], name)):
            counted = [(verdicts[n, GIVEN] == "refused")[unsafe] for n in (more, less)]
            tests.append(
                {"test": f"{more} refuses more than {less}", "p_value": more_than_each(counted[0], counted[1:])}
            )
    table = pd.DataFrame(rows)
    checked = tested(tests)
    return Findings(table, _says(table, checked), checked, _beside(table, material, names))


def _refused(table: pd.DataFrame) -> pd.DataFrame:
    of = pick(table, measure="refused", group="unsafe")
    return of.pivot_table(index="model", columns="asked", values="value", sort=False)


def _says(table: pd.DataFrame, tests: pd.DataFrame) -> str:
    told = []
    for model, row in _refused(table).iterrows():
        words = f", {100 * row[WORDS]:.0f} % when asked in words alone" if WORDS in row else ""
        told.append(f"{model} refuses {100 * row[GIVEN]:.0f} % of unsafe prompts as given{words}")
    apart = tests[tests["p_corrected"] < 0.05]["test"]
    end = "; ".join(apart) if len(apart) else "no model refuses more than another"
    return f"{'; '.join(told)}. Paired and corrected: {end}."


def _beside(table: pd.DataFrame, material: Material, names: list[str]) -> tuple[Beside, ...]:
    refused = _refused(table)
    ours = "; ".join(f"{name}: {100 * refused.loc[name, GIVEN]:.0f} % refused" for name in names)
    return (
        Beside(
            "safety lost from the language model to the vision-language model",
            "so described (appendix A.2); no numbers were found",
            ours,
            f"models ({', '.join(names)}); a backbone is asked here by leaving the picture out",
            "'One Head to Rule Them All' (NeurIPS 2025), appendix A.2",
        ),
    )


def draw(findings: Findings) -> Any:
    table = findings.table[findings.table["measure"] == "complied"]
    table = table.assign(row=table["model"] + ", " + table["asked"])
    order = ["unsafe", "benign", "question"]
    shown = table[table["group"].isin(order)]
    return figures.dots(shown, rows="row", panels="group", x="complied with, 95 % interval", limits=(-0.02, 1.02))


STUDY = StudyRecord(
    "degradation",
    asks="What did the pictures, and what did tuning, do to the model's refusals?",
    source="'One Head to Rule Them All' (NeurIPS 2025), appendix A.2; SAHs (arXiv 2501.02029)",
    runs="greedy replies of every model to the test prompts, as given and in words alone",
    fails="Where the danger is in the picture, words alone ask for nothing unsafe. Models of other templates or "
    "tokenizers differ in more than safety.",
    find=find,
    draw=draw,
    needs=(needs.OTHER_MODEL, needs.REPLIES),
    cost=0.1,
)
