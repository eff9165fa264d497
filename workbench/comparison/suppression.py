"""Suppress and reselect: zero the chosen heads' weights, choose again, detect again."""

import copy
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from torch import nn

from workbench.axes import Head, head_name, head_names
from workbench.detectors.evaluation import evaluate
from workbench.detectors.one_head import OneHeadDetector
from workbench.errors import DetectorError, ModelError
from workbench.models.hooked import HookedLVLM
from workbench.prompts.prompt import Prompt


def suppress(model: HookedLVLM, heads: Sequence[Head]) -> HookedLVLM:
    """A second model in which some heads write nothing; it shares all weights but the changed ones, and `model` is
    untouched.

    Zeroed are the columns of W_O that read the heads' outputs, so that no mask of those heads changes anything any
    more.

    Raises:
        DetectorError: If there is no such head.
        ModelError: Where W_O is not a plain weight (quantised).
    """
    by_layer: dict[int, list[int]] = {}
    for layer, head in heads:
        if layer not in model.attentions or not 0 <= head < model.n_heads:
            raise DetectorError(f"There is no maskable head {head_name(layer, head)} in {model.name!r}.")
        by_layer.setdefault(int(layer), []).append(int(head))
    changed = {id(_output_weight(model, layer)) for layer in by_layer}
    shared = [*model.hf.parameters(), *model.hf.buffers()]
    hf = copy.deepcopy(model.hf, memo={id(t): t for t in shared if id(t) not in changed})
    twin = HookedLVLM(
        hf,
        model.family,
        name=f"{model.name} without {head_names(heads)}",
        tokenizer=model.tokenizer,
        processor=model.processor,
        revision=model.revision,
    )
    twin.template = model.template
    with torch.no_grad():
        for layer, chosen in by_layer.items():
            weight = _output_weight(twin, layer)
            for head in chosen:
                weight[:, head * model.d_head : (head + 1) * model.d_head] = 0
    return twin


def suppress_and_reselect(
    model: HookedLVLM,
    prompts: Sequence[Prompt],
    *,
    rounds: int = 2,
    k: int = 5,
    bootstrap: int = 1000,
    **detector: Any,
) -> pd.DataFrame:
    """Detect; then, round after round, suppress the k heads that were chosen, choose again, and detect again.

    Args:
        model: The model; it is not changed.
        prompts: Declaring selection, threshold and test splits.
        rounds: How often heads are suppressed; round 0 is the model as it is.
        k: How many heads are chosen, and then suppressed, in a round; the best of them detects.
        bootstrap: Resamples behind intervals.
        detector: Options of `OneHeadDetector`.

    Returns:
        One row a round × measure × family: round, `suppressed` (all heads silenced so far), `candidates`, `head`,
        threshold, and the columns of `evaluate`.

    Source:
        The rebuttal of "One Head to Rule Them All" reports one such round.
    """
    gone: list[Head] = []
    tables, current = [], model
    for number in range(rounds + 1):
        chosen = OneHeadDetector(k=k, **detector).fit(current, prompts).candidates
        best = OneHeadDetector(head=chosen[0], **detector).fit(current, prompts)
        table = evaluate(best, current, [p for p in prompts if p.split == "test"], bootstrap=bootstrap)
        tables.append(
            table.assign(
                round=number,
                suppressed=head_names(gone),
                candidates=head_names(chosen),
                head=head_name(*chosen[0]),
                threshold=best.threshold,
            )
        )
        gone = list(dict.fromkeys([*gone, *chosen]))
        if number < rounds:
            current = suppress(model, gone)
    first = ["round", "suppressed", "candidates", "head", "threshold"]
    whole = pd.concat(tables, ignore_index=True)
    return whole[first + [name for name in whole.columns if name not in first]]


def _output_weight(model: HookedLVLM, layer: int) -> nn.Parameter:
    weight = getattr(getattr(model.attentions[layer], model.family.output), "weight", None)
    if weight is None or not weight.is_floating_point():
        raise ModelError(
            f"{model.name!r}: W_O of layer {layer} is not a plain weight, so a head cannot be zeroed in it."
        )
    return weight
