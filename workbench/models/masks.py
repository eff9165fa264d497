"""Masks on a model: z of masked heads in closed form, the published mask, and what a change of z writes.

What a mask is, form by form: `workbench.models.forms`.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from workbench.models.attention import acting_positions, edited_attention, even_attention, sites_set
from workbench.models.bound import bound
from workbench.models.decoder import Decoder
from workbench.models.forms import Mask, SomeMask, as_mask
from workbench.models.offloaded import at_hand
from workbench.models.precision import double_kept
from workbench.models.walk import BasePass, call_layer

__all__ = ["Mask", "SomeMask", "as_mask", "head_writes", "masked_z", "published_queries"]


def masked_z(
    model: Decoder, base: BasePass, layer: int, projection: str, mask: Mask
) -> Float[Tensor, "prompt pos head d_head"]:
    """z of every head of a layer as if that head alone were masked, at all positions up to where the mask stops.

    Heads do not see each other inside a layer, so one call gives the masked z of all of them. Of a mask that begins
    later than at the first position, only what it gives from there on counts.
    """
    mask.check(projection)
    z, seen = _masked_everywhere(model, base, layer, projection, mask), base.recordings[layer]
    stop, n_keys = mask.stop(base.encoded[0], projection), seen.key.shape[2]
    if stop is None or stop >= n_keys:
        return z
    acts = acting_positions(0, z.shape[1], n_keys, z.device, stop)
    return torch.where(acts[None, :, None, None], z, seen.z)


def _masked_everywhere(model: Decoder, base: BasePass, layer: int, projection: str, mask: Mask) -> Tensor:
    seen, site = base.recordings[layer], model.sites[layer]
    n_heads = seen.query.shape[1]
    if mask.puts_in(projection):
        return bound(model, mask, base).change(projection, layer)(model.attentions[layer], seen, seen.z)
    if projection == "value":
        return seen.z * mask.factor
    if mask.form == "limit":
        return even_attention(seen.value, seen.mask, seen.query.shape[2], n_heads)
    if mask.form == "as_published":
        with (
            published_queries(model, {layer: range(n_heads)}, mask.factor),
            sites_set([site], record=True, recording=None),
            double_kept(model.dtype),
        ):
            call_layer(model, layer, base.inputs[layer], base.arguments[layer])
            assert site.recording is not None
            return site.recording.z
    every = mask.edit("query", [range(n_heads)], n_heads, 0, seen.query.device)
    return edited_attention(model.attentions[layer], every, seen)


@contextmanager
def published_queries(model: Decoder, heads: Mapping[int, Sequence[int]], factor: float) -> Iterator[None]:
    """Scale rows of W_q (and its bias) of some heads, layer by layer, before any query norm: the published mask.

    Done on the projection's output, which is the same number and leaves the shared weights alone.
    """

    def shrink(scale: Tensor, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        queries = output[..., : len(scale)] * scale.to(output.device)
        return torch.cat([queries, output[..., len(scale) :]], -1)

    with model.lock, ExitStack() as stack:
        for layer, chosen in heads.items():
            module, width = model.query_weights(layer)
            scale = torch.ones(width, device=model.device, dtype=model.dtype)
            scale.view(-1, model.d_head)[list(chosen)] = factor
            stack.enter_context(module.register_forward_hook(partial(shrink, scale)))
        yield


def head_writes(
    model: Decoder, layer: int, delta: Float[Tensor, "prompt pos head d_head"], rows: Sequence[Sequence[int]]
) -> Float[Tensor, "prompt row pos d_model"]:
    """What the changes `delta` of the heads in `rows[r]` add to the residual stream: delta · W_O, row by row."""
    index = torch.as_tensor(rows, device=delta.device)
    output = model.output(layer)
    if type(output) is nn.Linear and output.weight.is_floating_point():
        with at_hand(output):
            weight = output.weight.view(output.out_features, delta.shape[2], delta.shape[3])[:, index].to(delta.device)
        return torch.einsum("psrmk,drmk->prsd", delta[:, :, index], weight)
    # Quantised or wrapped projections have no plain weight to slice: send each row's change through the module.
    scattered = delta.new_zeros(len(rows), *delta.shape)
    for row, heads in enumerate(rows):
        scattered[row][:, :, list(heads)] = delta[:, :, list(heads)]
    flat = scattered.flatten(-2)
    return (output(flat) - output(torch.zeros_like(flat[:1]))).transpose(0, 1)
