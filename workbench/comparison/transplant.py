"""Attention against MLP: which tuned weights carry refusal, by moving them part by part between two models."""

import copy
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from torch import nn

from workbench.comparison.causal_rows import more_than_each
from workbench.comparison.differences import tested
from workbench.comparison.masked_behaviour import outcome_groups
from workbench.detectors.calibration import unsafe_array
from workbench.errors import ModelError
from workbench.models.hooked import HookedLVLM
from workbench.prompts.prompt import Prompt
from workbench.replies.batches import generate_batch
from workbench.replies.judges import Judge, judge_replies

PARTS = ("attention", "mlp", "rest")
WHOLE = "everything"


def _names(model: HookedLVLM) -> dict[str, str]:
    prefixes = {id(module): name for name, module in model.hf.named_modules()}
    found: dict[str, str] = {}
    for layer in model.layers:
        for child, module in layer.named_children():
            matrices = any(p.ndim > 1 for p in module.parameters())
            if not matrices:
                continue
            part = "attention" if child == model.family.attention else "mlp"
            found |= {f"{prefixes[id(module)]}.{name}": part for name, _ in module.named_parameters()}
    return found


def transplanted(into: HookedLVLM, donor: HookedLVLM, parts: Sequence[str]) -> HookedLVLM:
    """`into` with some parts of its weights taken from `donor`; both stay as they are, and weights are shared.

    Raises:
        ModelError: The two are not of one shape.
    """
    theirs = dict(donor.hf.named_parameters())
    mine = dict(into.hf.named_parameters())
    if {n: p.shape for n, p in mine.items()} != {n: p.shape for n, p in theirs.items()}:
        raise ModelError(
            f"{donor.name!r} has other parameters than {into.name!r}, so none can be moved. Take a model and the base "
            "it was tuned from."
        )
    names = _names(into)
    moved = {id(p): theirs[name] for name, p in mine.items() if names.get(name, "rest") in parts}
    shared: dict[int, Any] = {id(t): moved.get(id(t), t) for t in (*into.hf.parameters(), *into.hf.buffers())}
    hf: nn.Module = copy.deepcopy(into.hf, memo=shared)
    name = f"{into.name} with {' and '.join(parts)} of {donor.name}"
    twin = HookedLVLM(hf, into.family, name=name, tokenizer=into.tokenizer, processor=into.processor)
    twin.template = into.template
    return twin


@torch.no_grad()
def transplant(
    tuned: HookedLVLM,
    base: HookedLVLM,
    prompts: Sequence[Prompt],
    *,
    judge: str | Judge = "exact",
    max_new_tokens: int = 16,
) -> pd.DataFrame:
    """Refusals, attack success and benign answers of the base model with tuned parts, and the other way round.

    Args:
        tuned: The model whose safety is in question.
        base: What it was tuned from, or its twin without safety tuning.
        prompts: Of both labels.
        judge: Of replies; `"exact"` where they are known.
        max_new_tokens: Length of a reply at most.

    Returns:
        One row a model × group of prompts: `into` (`base` or `tuned`), `moved` (what came from the other: nothing,
        attention, mlp, rest, everything), group (unsafe, its families, benign, question), n, complied with its exact
        95 % interval (low, high), refused and other. `.attrs["tests"]`: does the base refuse more with a tuned
        part, and the tuned model less with a part of the base (McNemar, one-sided, Holm).

    Source:
        After arXiv 2608.11583, of which the abstract alone was read: aligned weights into the matched base.
    """
    rows, refused = [], {}
    unsafe = unsafe_array(prompts)
    for into, one, other in (("base", base, tuned), ("tuned", tuned, base)):
        for moved in ("nothing", *PARTS, WHOLE):
            parts = PARTS if moved == WHOLE else () if moved == "nothing" else (moved,)
            model = transplanted(one, other, parts) if parts else one
            verdicts = judge_replies(prompts, generate_batch(model, prompts, max_new_tokens=max_new_tokens), judge)
            refused[into, moved] = (verdicts == "refused")[unsafe]
            rows.append(outcome_groups(prompts, verdicts).assign(into=into, moved=moved))
    table = pd.concat(rows, ignore_index=True)
    tests = []
    for part in PARTS:
        more, few = (refused["base", name] for name in (part, "nothing"))
        tests.append((f"{part} into base: refuses more", more_than_each(more, [few])))
        most, less = (refused["tuned", name] for name in ("nothing", part))
        tests.append((f"base's {part} into tuned: refuses less", more_than_each(most, [less])))
    table = table[["into", "moved", "group", "n", "complied", "low", "high", "refused", "other"]]
    table.attrs = {"tests": tested(tests).to_dict("records")}
    return table
