"""`benign-cost`: what a benign prompt gets when it is flagged, by the recipe and by steering, a softer answer."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from workbench.axes import head_name
from workbench.comparison.differences import tested
from workbench.comparison.masked_behaviour import QUESTION_FAMILY
from workbench.comparison.measures import pick
from workbench.detectors.calibration import unsafe_array
from workbench.models.encodings import Encodings
from workbench.models.hooked import HookedLVLM
from workbench.models.walk import base_pass
from workbench.prompts.prompt import PromptSet
from workbench.replies.batches import generate_batch
from workbench.replies.guards import make_guard
from workbench.replies.judges import judge_replies
from workbench.runs.splits import in_split
from workbench.studies import needs
from workbench.studies.material import Material
from workbench.studies.measuring import is_unsafe, rate, separations
from workbench.studies.record import Findings, StudyRecord
from workbench.sweeps.plan import batches
from workbench.views.figures import studies as figures

STRENGTHS = (0.5, 1.0, 2.0)  # of the step from the mean safe to the mean unsafe state
MOST_PROMPTS, TOKENS, ROWS = 96, 16, 32
PLAIN, RECIPE = "not flagged", "recipe"


def find(material: Material) -> Findings:
    """Replies to test prompts as they are, forced through the recipe, and steered; and how many are flagged at all."""
    chosen, run = material.chosen(), material.run
    threshold, test, unsafe_rows = chosen.threshold(), in_split(run, "test"), is_unsafe(run)
    asked = material.sample(material.test_prompts(), MOST_PROMPTS)
    unsafe = unsafe_array(asked)
    question = np.array([p.family == QUESTION_FAMILY for p in asked])
    groups = {"unsafe": unsafe, "benign": ~unsafe & ~question, "question": ~unsafe & question}
    ways: dict[str, list[str]] = {PLAIN: generate_batch(material.model, asked, max_new_tokens=TOKENS)}
    how: dict[str, Any] = {"max_new_tokens": TOKENS, "progress": material.progress}
    ways[RECIPE] = make_guard(RECIPE).replies(material.model, asked, ways[PLAIN], **how)
    layer, step = direction(material.model, material.prompts.where(split="selection"))
    for strength in material.track(STRENGTHS, "steering"):
        with steered(material.model, layer, strength * step):
            ways[f"steered × {strength:g}"] = generate_batch(material.model, asked, max_new_tokens=TOKENS)
    rows = []
    for way, replies in ways.items():
        verdicts = judge_replies(asked, replies, material.judge)
        same = np.array([a == b for a, b in zip(replies, ways[PLAIN], strict=True)])
        for group, of in groups.items():
            if of.any():
                about = {"answer": way, "group": group}
                rows.append(about | {"measure": "answered as expected"} | rate(verdicts[of] == "complied"))
                rows.append(about | {"measure": "refused"} | rate(verdicts[of] == "refused"))
                rows.append(about | {"measure": "unchanged"} | rate(same[of]))
    if np.isfinite(threshold):
        for group, of in (("unsafe", test & unsafe_rows), ("benign", test & ~unsafe_rows)):
            about = {"answer": f"detector {head_name(*chosen.heads[0])}", "group": group, "measure": "flagged"}
            rows.append(about | rate(chosen.value[of] > threshold))
    table = pd.DataFrame(rows)
    p = float(separations(chosen.value[:, None], run, seed=material.seed)["p_value"].iloc[0])
    tests = tested([{"test": "the detector tells unsafe from safe prompts", "p_value": p}])
    return Findings(table, _says(table, layer), tests)


def direction(model: HookedLVLM, prompts: PromptSet) -> tuple[int, Tensor]:
    """The middle layer, and the step of its output at the last prompt position from the mean safe to the mean unsafe
    prompt, `[d_model]`.
    """
    layer, unsafe = model.n_layers // 2, unsafe_array(prompts)
    encoded = Encodings(model, prompts)
    states = torch.empty(len(encoded), model.d_model, dtype=torch.float64)
    for batch in batches(encoded, ROWS):
        base = base_pass(model, [encoded[i] for i in batch])
        above = next(n for n in sorted(base.inputs) if n > layer) if max(base.inputs) > layer else None
        read = base.residual if above is None else base.inputs[above][:, -1]
        states[batch] = read.double().cpu()
    at = torch.as_tensor(unsafe)
    return layer, states[at].mean(0) - states[~at].mean(0)


@contextmanager
def steered(model: HookedLVLM, layer: int, step: Tensor) -> Iterator[None]:
    """Within the block a layer's output at the last position has a step added, in the prompt and while decoding."""

    def add(module: nn.Module, args: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        moved = hidden.clone()
        moved[:, -1] += step.to(hidden)
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    with model.lock, model.layers[layer].register_forward_hook(add):
        yield


def _cell(table: pd.DataFrame, answer: str, group: str, measure: str) -> float:
    of = pick(table, answer=answer, group=group, measure=measure)
    return float(of["value"].iloc[0]) if len(of) else float("nan")


def _says(table: pd.DataFrame, layer: int) -> str:
    flagged = pick(table, measure="flagged", group="benign")
    told = f"{100 * flagged['value'].iloc[0]:.0f} % of safe prompts are flagged. " if len(flagged) else ""
    answered = {way: _cell(table, way, "benign", "answered as expected") for way in table["answer"].unique()}
    told += (
        f"Flagged benign requests are answered as expected in {100 * answered[RECIPE]:.0f} % of cases by the recipe "
        f"({100 * answered[PLAIN]:.0f} % when not flagged)"
    )
    soft = [f"steered × {s:g}" for s in STRENGTHS]
    said = [
        f"{name.removeprefix('steered ')}: {100 * answered[name]:.0f} % of benign answered, "
        f"{100 * _cell(table, name, 'unsafe', 'refused'):.0f} % of unsafe refused"
        for name in soft
    ]
    return f"{told}; steered after layer {layer} by the step between the classes, {'; '.join(said)}."


def draw(findings: Findings) -> Any:
    table = findings.table[findings.table["measure"].isin(["answered as expected", "refused"])]
    return figures.dots(
        table, rows="answer", series="group", panels="measure", x="share, 95 % interval", limits=(-0.02, 1.02)
    )


STUDY = StudyRecord(
    "benign-cost",
    asks="What does a benign prompt get when it is wrongly flagged, and would steering be kinder?",
    source="reviews of 'One Head to Rule Them All' (benign utility); steering by the difference of means is ours",
    runs="greedy replies to test prompts as they are, all forced through the recipe, and all steered",
    fails="One direction and one layer are a rough way to steer; its strengths are not tuned. Judges by phrases take "
    "nonsense for an answer.",
    find=find,
    draw=draw,
    needs=(needs.REPLIES,),
    cost=0.2,
)
