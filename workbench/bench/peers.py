"""The same map of heads as a user of each peer would write it: one forward a head, prompts batched, last position only.

Each function returns final states (after the final norm, last position) `[prompt, head, d_model]` of the given cells,
the unmasked one first; the mask is the canonical one (queries x 0; head outputs x 0).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from workbench.models.bridge import twin_of
from workbench.models.encode import Encoded
from workbench.models.hooked import HookedLVLM
from workbench.models.walk import join
from workbench.sweeps.plan import batches

# Projection, layer and head.
Cell = tuple[str, int, int]
# More prompts in a batch made the loops slower on CPU.
PROMPTS_AT_ONCE = 32


def _over_batches(encoded: Sequence[Encoded], n_cells: int, states: Any, like: Tensor) -> Tensor:
    found = like.new_full((len(encoded), n_cells + 1, like.shape[-1]), torch.nan)
    for batch in batches(encoded, PROMPTS_AT_ONCE):
        for number, state in enumerate(states(join([encoded[i] for i in batch]))):
            found[batch, number] = state
    return found


@torch.no_grad()
def transformer_lens(model: HookedLVLM, encoded: Sequence[Encoded], cells: Sequence[Cell]) -> Tensor:
    """A `run_with_hooks` loop on the bridge."""
    bridge = model.bridge
    kept: list[Tensor] = []

    def keep(value: Tensor, hook: Any) -> None:
        kept.append(value[:, -1])

    def silence(head: int) -> Any:
        def edit(value: Tensor, hook: Any) -> Tensor:
            value = value.clone()
            by_head = value.unflatten(-1, (model.n_heads, -1)) if value.ndim == 3 else value
            by_head[:, :, head] = 0
            return value

        return edit

    def states(inputs: dict[str, Any]) -> Any:
        ids = inputs.pop("input_ids")
        for cell in (None, *cells):
            hooks: list[tuple[str, Any]] = [("ln_final.hook_out", keep)]
            if cell is not None:
                site = "q.hook_out" if cell[0] == "query" else "o.hook_in"
                hooks.append((f"blocks.{cell[1]}.attn.{site}", silence(cell[2])))
            bridge.run_with_hooks(ids, fwd_hooks=hooks, return_type=None, **inputs)
            yield kept.pop()

    return _over_batches(encoded, len(cells), states, _state_like(model))


def _state_like(model: HookedLVLM) -> Tensor:
    return torch.empty(model.d_model, dtype=model.dtype, device=model.device)


def plain_twin(model: HookedLVLM) -> Any:
    """The transformers model as it loads: SDPA attention, no sites of ours, the same weights."""
    twin = twin_of(model)
    for attention in model.family.attentions(twin).values():
        attention.config._attn_implementation = "sdpa"
    model.family.decoder(twin).config._attn_implementation = "sdpa"
    return twin


@torch.no_grad()
def hooks(model: HookedLVLM, encoded: Sequence[Encoded], cells: Sequence[Cell], twin: Any = None) -> Tensor:
    """PyTorch hooks on the transformers model."""
    twin = twin or plain_twin(model)
    attentions = model.family.attentions(twin)
    kept: list[Tensor] = []
    norm = getattr(model.family.decoder(twin), model.family.norm)

    def silence(cell: Cell) -> Any:
        projection, layer, head = cell
        own = slice(head * model.d_head, (head + 1) * model.d_head)

        def after(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            output = output.clone()
            output[..., own] = 0
            return output

        def before(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            z = args[0].clone()
            z[..., own] = 0
            return (z,)

        if projection == "query":
            return attentions[layer].q_proj.register_forward_hook(after)
        return attentions[layer].o_proj.register_forward_pre_hook(before)

    def states(inputs: dict[str, Any]) -> Any:
        for cell in (None, *cells):
            handles = [norm.register_forward_hook(lambda module, args, output: kept.append(output[:, -1]))]
            if cell is not None:
                handles.append(silence(cell))
            try:
                twin(**inputs, use_cache=False, logits_to_keep=1)
            finally:
                for handle in handles:
                    handle.remove()
            yield kept.pop()

    return _over_batches(encoded, len(cells), states, _state_like(model))


def has_nnsight() -> bool:
    """Whether nnsight can be imported here."""
    from importlib.util import find_spec

    return find_spec("nnsight") is not None


@torch.no_grad()
def nnsight(model: HookedLVLM, encoded: Sequence[Encoded], cells: Sequence[Cell], twin: Any = None) -> Tensor:
    """One trace a head over the prompt batch, images included, as nnsight's documentation shows."""
    from nnsight import NNsight

    wrapped = NNsight(twin or plain_twin(model))
    decoder = wrapped.model.language_model
    width = model.d_head

    def states(inputs: dict[str, Any]) -> Any:
        for cell in (None, *cells):
            with wrapped.trace(**inputs, use_cache=False, logits_to_keep=1):
                if cell is not None:
                    attention = decoder.layers[cell[1]].self_attn
                    start = cell[2] * width
                    if cell[0] == "query":
                        attention.q_proj.output[:, :, start : start + width] = 0
                    else:
                        attention.o_proj.input[:, :, start : start + width] = 0
                state = decoder.norm.output[:, -1].save()
            yield state

    return _over_batches(encoded, len(cells), states, _state_like(model))
