"""`modality`: the same request as given, without its picture, in words, and drawn as print; paired by prompt."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from workbench.axes import head_name
from workbench.comparison.differences import tested
from workbench.comparison.measures import pick
from workbench.criteria import get_criterion
from workbench.criteria.values import prompt_values
from workbench.detectors.calibration import unsafe_array
from workbench.errors import PromptError
from workbench.prompts.prompt import Prompt, PromptSet
from workbench.prompts.variants import CARRIER, Given, Print, make_variant
from workbench.replies.batches import generate_batch
from workbench.replies.judges import judge_replies
from workbench.runs.splits import in_split
from workbench.studies import needs
from workbench.studies.material import Material
from workbench.studies.measuring import listed, mean_of, of_area, rate, separations, span
from workbench.studies.record import Beside, Findings, StudyRecord
from workbench.views.figures import studies as figures

VARIANTS = ("as given", "no image", "blank image", "noise image", "caption", "text only", "typographic")
CAPTION = "describe the picture ."  # in Pocket's words, and anybody's
TOKENS = 24
log = logging.getLogger(__name__)


def find(material: Material) -> Findings:
    """The chosen head's angle, its separation and the replies for every variant of the test prompts."""
    chosen = material.chosen()
    threshold = chosen.threshold()
    given = material.test_prompts()
    captions = _captions(material, given)
    rows, tests, before = [], [], pd.Series(dtype=float)
    for name in material.track(VARIANTS, "variants"):
        asked = _variant(given, name, captions)
        if len({p.label for p in asked}) < 2:
            continue
        options: dict[str, Any] = {"projections": ("query",), "heads": [chosen.heads[0]], "keep_states": False}
        run = material.sweep(prompts=asked, **options)
        layer, head = chosen.heads[0]
        value = prompt_values(run, get_criterion("deflection")).sel(projection="query", layer=layer, head=head).values
        unsafe, pair = unsafe_array(asked), [p.id.removesuffix(f" ({name})") for p in asked]
        series = pd.Series(value, index=pair)
        before = series if name == VARIANTS[0] else before
        alone = np.full(len(asked), "", dtype=object)
        area = separations(value[:, None], run, in_split(run, "test"), seed=material.seed).iloc[0]
        rows.append({"variant": name, "prompts": "all", "measure": "auroc"} | of_area(area))
        tests.append({"test": name, "p_value": area["p_value"]})
        verdicts = judge_replies(asked, _replies(material, asked), material.judge)
        for label, of in (("unsafe", unsafe), ("safe", ~unsafe)):
            about = {"variant": name, "prompts": label}
            rows.append(about | {"measure": "angle (degrees)"} | mean_of(value[of], alone[of], seed=material.seed))
            if np.isfinite(threshold):
                rows.append(about | {"measure": "flagged"} | rate(value[of] > threshold))
            rows.append(about | {"measure": "complied"} | rate(verdicts[of] == "complied"))
            both = series[of].index.intersection(before.index)
            moved = (series[both] - before[both]).to_numpy()
            change = mean_of(moved, alone[: len(moved)], seed=material.seed)
            rows.append(about | {"measure": "angle minus as given"} | change)
    table = pd.DataFrame(rows)
    return Findings(table, _says(table, head_name(*chosen.heads[0])), tested(tests), _beside(table, material))


def _captions(material: Material, given: PromptSet) -> Callable[[Prompt], str]:
    """What the model itself says that a picture shows; asked once for each prompt with one."""
    shown = [p for p in given if p.image is not None]
    asked = [Prompt(id=p.id, text=CAPTION, image=p.image) for p in shown]
    said = dict(zip((p.id for p in shown), generate_batch(material.model, asked, max_new_tokens=TOKENS), strict=True))
    return lambda prompt: said.get(prompt.id) or "a picture"


def _variant(given: PromptSet, name: str, captions: Callable[[Prompt], str]) -> PromptSet:
    """The prompts as one variant; those that have none, or whose text does not fit into a picture, are left out."""
    sides = [min(p.image.size) for p in given if p.image is not None]
    layout = Print() if not sides or min(sides) >= 200 else Print(side=760, size=96, numbered=0, margin=20)
    made: list[Prompt | None] = []
    for prompt in given:
        try:
            made.append(make_variant(name, prompt, Given(captions, None, CARRIER, layout, 0)))
        except PromptError as error:
            log.debug("%s has no variant %r: %s", prompt.id, name, error)
    return PromptSet((p for p in made if p is not None), name=f"{given.name}, {name}")


def _replies(material: Material, asked: PromptSet) -> list[str]:
    return generate_batch(material.model, asked, max_new_tokens=TOKENS)


def _says(table: pd.DataFrame, head: str) -> str:
    areas = table[table["measure"] == "auroc"].set_index("variant")
    complied = pick(table, measure="complied", prompts="unsafe").set_index("variant")
    others = [f"{name} {span(row)}" for name, row in areas.iterrows() if name != VARIANTS[0]]
    given = complied.loc[VARIANTS[0], "value"]
    least, most = complied["value"].idxmin(), complied["value"].idxmax()
    return (
        f"{head}, chosen on the prompts as given, has an AUROC of {span(areas.loc[VARIANTS[0]])} on them; on the same "
        f"requests otherwise: {listed(others)}. The model complies with {100 * given:.0f} % of unsafe prompts as "
        f"given, {100 * complied.loc[least, 'value']:.0f} % at least ({least}) and "
        f"{100 * complied.loc[most, 'value']:.0f} % at most ({most})."
    )


def _beside(table: pd.DataFrame, material: Material) -> tuple[Beside, ...]:
    complied = pick(table, measure="complied", prompts="unsafe").set_index("variant")["value"]

    def pair(name: str) -> str:
        there = name in complied
        return f"{100 * complied[VARIANTS[0]]:.0f} to {100 * complied[name]:.0f} %" if there else "not measured"

    differs = f"model ({material.model.name}), prompts, judge ({material.judge})"
    where = "rebuttal of 'One Head to Rule Them All' (NeurIPS 2025)"
    return (
        Beside("attack success, picture against caption", "32.45 to 2.05 % (FigStep)", pair("caption"), differs, where),
        Beside(
            "attack success with less of the request in words",
            "41.85 to 17.82 % (FigStep), 23.86 to 0 % (query-relevant), vision only",
            pair("typographic"),
            differs + "; here the text is drawn as print beside a carrier sentence",
            where,
        ),
    )


def draw(findings: Findings) -> Any:
    shown = {"auroc": "AUROC", "angle (degrees)": "angle (degrees)", "complied": "complied with"}
    table = findings.table[findings.table["measure"].isin(list(shown))]
    table = table.assign(panel=table["measure"].map(shown))
    return figures.dots(table, rows="variant", series="prompts", panels="panel", x="value, 95 % interval")


STUDY = StudyRecord(
    "modality",
    asks="Does the head see the danger in the picture, in the words, or only where both come together?",
    source="rebuttal of 'One Head to Rule Them All' (NeurIPS 2025); reviews (modality)",
    runs="the chosen head and the replies on seven variants of the test prompts",
    fails="Captions are the model's own: where it captions badly, or a picture holds the request, the request is lost. "
    "A small model may not read print.",
    find=find,
    draw=draw,
    needs=(needs.PICTURES, needs.REPLIES),
    cost=0.3,
)
