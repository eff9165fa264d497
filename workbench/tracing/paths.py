"""Paths: what one head's change does to later heads, straight through the residual stream, and through all between.

The source head is given its twin's z at every position. Then, of each later head at the last position:

- **total**: everything between the two is computed anew;
- **direct**: everything between stays as it was; only the source's change is added to what the later head reads;
- **indirect**: everything between is as under *total*, but the source's own change is taken back from what is read.

Where the later head answers linearly, total = direct + indirect. Always, total − direct is the indirect effect in the
pass that has the direct change already, and total − indirect the direct one likewise.

Sources: path patching after Wang et al., arXiv 2211.00593; direct and indirect effects as Pearl, "Direct and indirect
effects" (UAI 2001).
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from workbench.models.arguments import for_rows, repeated
from workbench.models.attention import sites_set
from workbench.models.masks import head_writes
from workbench.models.precision import double_kept
from workbench.models.walk import call_layer, last_attention_out, read_out
from workbench.sweeps.engines.cells import refusal_gradient
from workbench.tracing.passes import TwinPass, mlp_of, put_in
from workbench.tracing.records import EFFECTS


def head_paths(passes: TwinPass, layer: int, heads: Sequence[int]) -> Iterator[tuple[int, str, dict[str, Tensor]]]:
    """(later layer, effect, measures) of some source heads of a layer.

    The measures are `write`, the length of the change of what the later head writes (state units), and `refusal`, that
    change along the gradient of the refusal log-odds at the last position (log-odds, to first order): each
    `[prompt, source, head]`.
    """
    model, base = passes.model, passes.base
    later = [n for n in model.masked_layers if n > layer]
    z = base.recordings[layer].z
    writes = head_writes(model, layer, z.flip(0) - z, [(h,) for h in heads])
    if not later or not writes.any():
        zeros = passes.state.new_zeros(2, len(heads), model.n_heads)
        for number in later:
            for effect in EFFECTS:
                yield number, effect, {"write": zeros, "refusal": zeros}
        return
    straight = _straight(passes, layer, writes)
    walked, streams = _walked(passes, layer, writes)
    gradient = refusal_gradient(model, passes.residual)
    for number in later:
        frozen = repeated(base.inputs[number], len(heads))
        last = {
            "total": walked[number],
            "direct": _z_at_last(passes, number, frozen + straight, len(heads)),
            "indirect": _z_at_last(passes, number, streams[number] - straight, len(heads)),
        }
        own = repeated(base.recordings[number].z[:, -1], len(heads))
        for effect in EFFECTS:
            yield number, effect, _told(passes, number, last[effect] - own, gradient)


def _straight(passes: TwinPass, layer: int, writes: Tensor) -> Float[Tensor, "line pos d_model"]:
    """What the heads' changes add to the residual stream of the layer, its MLP held as it was.

    The layer itself is asked, since some norm what attention writes, or scale it.
    """
    model, base, n_rows = passes.model, passes.base, writes.shape[1]
    out = repeated(base.attention_out[layer], n_rows)
    hidden = repeated(base.inputs[layer], n_rows)
    arguments = for_rows(base.arguments[layer], base.n_prompts, n_rows)
    held = torch.ones(n_rows, base.n_pos, dtype=torch.bool)
    with put_in(mlp_of(model, layer), passes.mlp_out[layer], held, at="output"), double_kept(model.dtype):
        changed, same = (
            call_layer(model, layer, hidden, arguments, attention_out=given)
            for given in (out + writes.flatten(0, 1), out)
        )
    model.work.count(2, *hidden.shape[:2])
    return changed - same


def _walked(passes: TwinPass, layer: int, writes: Tensor) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """z at the last position `[line, head, d_head]` and the input of every later layer, everything computed anew."""
    model = passes.model
    z: dict[int, Tensor] = {}
    streams: dict[int, Tensor] = {}

    def keep_input(number: int, module: nn.Module, args: tuple[Any, ...]) -> None:
        streams.setdefault(number, args[0])  # the highest layer is called again, on the last position

    later = {n: site for n, site in model.sites.items() if n > layer}
    with ExitStack() as stack:
        for number in later:
            hook = model.layers[number].register_forward_pre_hook(partial(keep_input, number))
            stack.callback(hook.remove)
        stack.enter_context(sites_set(list(later.values()), record=True, recording=None))
        read_out(model, passes.base, layer, writes.shape[1], writes=writes)
        for number, site in later.items():
            assert site.recording is not None
            z[number] = site.recording.z[:, -1]
    return z, streams


def _z_at_last(passes: TwinPass, layer: int, hidden: Tensor, n_rows: int) -> Float[Tensor, "line head d_head"]:
    """Head outputs of a layer at the last position, from another residual stream."""
    model = passes.model
    arguments = for_rows(passes.base.arguments[layer], passes.base.n_prompts, n_rows)
    site = model.sites[layer]
    with sites_set([site], record=True, recording=None), double_kept(model.dtype):
        last_attention_out(model, layer, hidden, arguments)
        assert site.recording is not None
        z = site.recording.z[:, -1]
    model.work.count(1, *hidden.shape[:2])
    return z


def _told(passes: TwinPass, layer: int, change: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    """Of changes of z `[line, head, d_head]`."""
    model = passes.model
    every = [(h,) for h in range(model.n_heads)]
    write = head_writes(model, layer, change[:, None], every)[:, :, 0].unflatten(0, (2, -1))
    # Prompt, source, head, d_model.
    towards = torch.einsum("pshd,pd->psh", write.double(), gradient.double())
    return {"write": write.double().norm(dim=-1), "refusal": towards}
