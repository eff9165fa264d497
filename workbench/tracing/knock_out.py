"""Attention knock-out: in a window of layers, some positions may no longer look at some others.

The layers' own masks of allowed keys are cut, for all heads alike; what lies below the window, and before the first
position that is cut, is known.

Source: Geva et al., arXiv 2304.14767 (attention knock-out in windows of layers); for pictures, "Cross-modal Information
Flow in Multimodal Large Language Models", arXiv 2411.18620.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool
from torch import Tensor

from workbench.models.attention import allowed_keys, causal_mask
from workbench.models.walk import BasePass, read_out
from workbench.tracing.pairs import Pair
from workbench.tracing.passes import TwinPass
from workbench.tracing.records import FLOWS

Window = tuple[int, ...]  # layers


def windows(layers: Sequence[int], width: int) -> list[Window]:
    """Every `width` consecutive ones of some layers."""
    width = min(width, len(layers))
    return [tuple(layers[first : first + width]) for first in range(len(layers) - width + 1)]


def blocked(twins: Pair, flow: str) -> Bool[Tensor, "pos key"] | None:
    """Which keys each position may no longer see; None where the prompts lack one of the two groups."""
    keys, queries = (twins.of(groups) for groups in FLOWS[flow])
    if not keys.any() or not queries.any():
        return None
    return queries[:, None] & keys[None, :]


def cut_window(passes: TwinPass, window: Window, most_tokens: int) -> dict[str, dict[str, Tensor]]:
    """For each flow that the prompts have, the measures `[prompt]` of a pass without it in a window."""
    cuts = {flow: cut for flow in FLOWS if (cut := blocked(passes.twins, flow)) is not None}
    if not cuts:
        return {}
    states = passes.state[:, None].repeat(1, len(cuts), 1)
    acting = [i for i, cut in enumerate(cuts.values()) if any(_acts(passes.base, n, cut) for n in window)]
    # Of what is cut, only what lies before a position is seen from it.
    firsts = [cut.tril().any(1).nonzero() for cut in cuts.values()]
    starts = [int(first[0]) if len(first) else 0 for first in firsts]
    acting.sort(key=starts.__getitem__)
    while acting:
        start = starts[acting[0]]
        count = max(1, most_tokens // (2 * (passes.base.n_pos - start)))
        some, acting = acting[:count], acting[count:]
        without = without_keys(passes.base, window, torch.stack([list(cuts.values())[i] for i in some]))
        top = passes.model.n_layers - 1
        states[:, some] = read_out(passes.model, without, window[0], len(some), start=start)[top]
    first, last = window[0], window[-1]
    found = passes.measured(states, [f"{flow} cut in layers {first} to {last}" for flow in cuts], towards=False)
    return {flow: {name: value[:, i] for name, value in found.items()} for i, flow in enumerate(cuts)}


def _allowed(base: BasePass, layer: int) -> Bool[Tensor, "line one pos key"]:
    seen = base.recordings[layer]
    if seen.mask is None:
        return causal_mask(base.n_pos, seen.key.shape[2], seen.key.device)
    return allowed_keys(seen.mask)


def _acts(base: BasePass, layer: int, cut: Tensor) -> bool:
    """Whether a layer lets any position see what is cut."""
    return bool((_allowed(base, layer) & cut.to(base.inputs[layer].device)).any())


def without_keys(base: BasePass, window: Window, cuts: Bool[Tensor, "row pos key"]) -> BasePass:
    """A pass to go on from in which, in the layers of a window, some keys may not be seen, row by row.

    A position that would see nothing at all keeps sight of itself: no attention weights sum to 1 over no keys.
    """
    own = torch.eye(base.n_pos, dtype=torch.bool, device=cuts.device)
    arguments = dict(base.arguments)
    for layer in window:
        may = _allowed(base, layer).expand(base.n_prompts, -1, -1, -1)
        kept = may[:, None] & ~cuts[None, :, None].to(may.device)  # prompt row 1 pos key
        kept = kept | (~kept.any(-1, keepdim=True) & own.to(may.device) & may[:, None])
        arguments[layer] = base.arguments[layer] | {"attention_mask": kept.flatten(0, 1)}
    return replace(base, arguments=arguments)
