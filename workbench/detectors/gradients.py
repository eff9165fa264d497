"""Detectors' scores in torch, from a pass that keeps its gradients: what an attack that knows the detector goes down.

A detector is one that can be attacked this way if its class stands in `SCORES`: the masked-head detectors, whose score
is a smooth measure of the masked state, and the readers of states, of heads' outputs and of logits. The others (a vote,
a trained projection with nearest neighbours, gradients of a loss, a judge) are refused by name; pictures made against
one detector are tried on all of them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.axes import Head
from workbench.detectors.detector import Detector
from workbench.detectors.direction import DirectionDetector
from workbench.detectors.fused_heads import FusedHeadsDetector
from workbench.detectors.hidden_detect import HiddenDetect
from workbench.detectors.looks import after_layer
from workbench.detectors.masked_heads import MaskedHeadsDetector
from workbench.detectors.one_head import OneHeadDetector
from workbench.detectors.probed_states import ProbedStateDetector
from workbench.detectors.sahs import SAHsDetector
from workbench.errors import DetectorError
from workbench.models.hooked import HookedLVLM
from workbench.models.masks import head_writes, masked_z
from workbench.models.walk import BasePass, walk
from workbench.runs.effects import angle_degrees
from workbench.runs.vocabulary import refusal_log_odds, wide

Score = Callable[[Any, HookedLVLM, BasePass], Float[Tensor, "part prompt"]]  # of a detector of its own kind
Strength = Callable[[HookedLVLM, Tensor, Tensor, Tensor, Tensor], Tensor]


def next_token_kl(logits: Tensor, other: Tensor) -> Tensor:
    """KL(p ‖ q) of next-token distributions in nats, over the last axis."""
    p, q = wide(logits).log_softmax(-1), wide(other).log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


# By criterion, as a strength: from (model, base state, base logits, masked states, masked logits).
STRENGTHS: dict[str, Strength] = {
    "deflection": lambda model, state, logits, states, masked: angle_degrees(
        wide(state).expand_as(states), wide(states)
    ),
    "ships": lambda model, state, logits, states, masked: next_token_kl(logits, masked),
    "l2": lambda model, state, logits, states, masked: (wide(states) - wide(state)).norm(dim=-1),
    "tv": lambda model, state, logits, states, masked: (
        0.5 * (wide(masked).softmax(-1) - wide(logits).softmax(-1)).abs().sum(-1)
    ),
    "refusal_change": lambda model, state, logits, states, masked: (
        refusal_log_odds(model, wide(logits)) - refusal_log_odds(model, wide(masked))
    ),
}


def score_parts(detector: Detector, model: HookedLVLM, base: BasePass) -> Float[Tensor, "part prompt"]:
    """A detector's score of each prompt of a pass, float64, with its gradients.

    One part for most; for a detector that draws one of its heads for every prompt, the score under each draw, so that
    whoever evades all parts evades it whatever it draws.

    Raises:
        DetectorError: For a detector whose score has no gradient here; it says which have.
    """
    for kind in type(detector).__mro__:
        if kind in SCORES:
            return SCORES[kind](detector, model, base)
    names = ", ".join(one.name for one in SCORES)
    raise DetectorError(
        f"The score of {type(detector).__name__} has no gradient to go down. Those that have: {names}. Others are "
        "attacked by transfer: name them in scored_by."
    )


def _one_head(detector: OneHeadDetector, model: HookedLVLM, base: BasePass) -> Tensor:
    return _masked(detector, model, base, detector.heads_in_use())


def _fused(detector: FusedHeadsDetector, model: HookedLVLM, base: BasePass) -> Tensor:
    if detector.fuse == "vote":
        raise DetectorError(
            "A vote counts heads over their thresholds, which has no gradient to go down. Attack the mean of the same "
            "heads (fuse='mean'), and name the vote in scored_by."
        )
    by_head = _masked(detector, model, base, detector.heads)
    centre, scale = (by_head.new_tensor(of)[:, None] for of in (detector.centres, detector.scales))
    scaled = (by_head - centre) / scale
    if detector.fuse == "random":
        return scaled
    return scaled.mean(0)[None] if detector.fuse == "mean" else scaled.amax(0)[None]


def _masked(detector: MaskedHeadsDetector, model: HookedLVLM, base: BasePass, heads: Sequence[Head]) -> Tensor:
    """The detector's criterion at each of some heads, as a strength, `[head, prompt]`."""
    if detector.criterion not in STRENGTHS:
        raise DetectorError(
            f"The criterion {detector.criterion!r} has no gradient here; those that have: {', '.join(STRENGTHS)}."
        )
    strength = STRENGTHS[detector.criterion]
    found: dict[Head, Tensor] = {}
    rows = detector.mask.row_heads(model.n_heads, model.n_kv_heads)
    start = detector.mask.start(base.encoded[0])
    for layer in dict.fromkeys(layer for layer, _ in heads):
        mine = [head for at, head in heads if at == layer]
        delta = masked_z(model, base, layer, detector.projection, detector.mask) - base.recordings[layer].z
        delta = torch.cat([torch.zeros_like(delta[:, :start]), delta[:, start:]], dim=1)
        writes = head_writes(model, layer, delta, [rows[head] for head in mine])
        with model.lock:
            residual = walk(model, base, layer, len(mine), writes=writes)[model.n_layers - 1]
        states = model.normed(residual).unflatten(0, (base.n_prompts, len(mine)))
        values = strength(model, base.state[:, None], base.logits[:, None], states, model.unembed(states))
        found |= {(layer, head): values[:, row] for row, head in enumerate(mine)}
    return torch.stack([found[head] for head in heads])


def _linear(features: Tensor, coef: np.ndarray, intercept: float = 0.0) -> Tensor:
    wide_features = wide(features)
    return (wide_features @ wide_features.new_tensor(coef) + intercept)[None]


def _sahs(detector: SAHsDetector, model: HookedLVLM, base: BasePass) -> Tensor:
    outputs = [base.recordings[layer].z[:, -1, head] for layer, head in detector.heads]
    return _linear(torch.cat(outputs, dim=1), detector.coef, detector.intercept)


def _direction(detector: DirectionDetector, model: HookedLVLM, base: BasePass) -> Tensor:
    return _linear(after_layer(base, int(detector.at)), detector.direction)


def _probed(detector: ProbedStateDetector, model: HookedLVLM, base: BasePass) -> Tensor:
    return _linear(base.state if detector.site == "state" else base.logits, detector.coef, detector.intercept)


def _hidden_detect(detector: HiddenDetect, model: HookedLVLM, base: BasePass) -> Tensor:
    first, last = detector.layers
    strength = []
    for layer in range(first, last + 1):
        logits = wide(model.unembed(model.normed(after_layer(base, layer))))
        tokens = list(detector.tokens or ())
        strength.append(logits[:, tokens].sum(-1) / (logits.norm(dim=-1) * len(tokens) ** 0.5))
    return (torch.trapezoid(torch.stack(strength), dim=0) if last > first else strength[0])[None]


SCORES: Mapping[type[Detector], Score] = {
    OneHeadDetector: _one_head,
    FusedHeadsDetector: _fused,
    SAHsDetector: _sahs,
    DirectionDetector: _direction,
    ProbedStateDetector: _probed,
    HiddenDetect: _hidden_detect,
}
