"""The same map of heads as a user of each peer would write it: one forward a head, prompts batched, last position only.

Each function returns final states (after the final norm, last position) `[prompt, head, d_model]` of the given cells,
the unmasked one first; the mask is the canonical one (queries x 0; head outputs x 0).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from workbench.models.bridge import twin_of
from workbench.models.conformance.checks import zeroed
from workbench.models.encode import Encoded
from workbench.models.hooked import HookedLVLM
from workbench.models.walk import join
from workbench.sweeps.plan import batches

# Projection, layer and head.
Cell = tuple[str, int, int]
# More prompts in a batch made the loops slower on CPU.
PROMPTS_AT_ONCE = 32


def _over_batches(model: HookedLVLM, encoded: Sequence[Encoded], n_cells: int, states: Any) -> Tensor:
    shape = (len(encoded), n_cells + 1, model.d_model)
    found = torch.full(shape, torch.nan, dtype=model.dtype, device=model.device)
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
        return lambda value, hook: zeroed(value, head, model.n_heads)

    def states(inputs: dict[str, Any]) -> Any:
        ids = inputs.pop("input_ids")
        for cell in (None, *cells):
            hooks: list[tuple[str, Any]] = [("ln_final.hook_out", keep)]
            if cell is not None:
                site = "q.hook_out" if cell[0] == "query" else "o.hook_in"
                hooks.append((f"blocks.{cell[1]}.attn.{site}", silence(cell[2])))
            bridge.run_with_hooks(ids, fwd_hooks=hooks, return_type=None, **inputs)
            yield kept.pop()

    return _over_batches(model, encoded, len(cells), states)


def plain_twin(model: HookedLVLM) -> Any:
    """The transformers model as it loads: SDPA attention, no sites of ours, the same weights."""
    twin = twin_of(model)
    for attention in model.family.attentions(twin).values():
        attention.config._attn_implementation = "sdpa"
    model.family.decoder(twin).config._attn_implementation = "sdpa"
    return twin


@torch.no_grad()
def hooks(model: HookedLVLM, encoded: Sequence[Encoded], cells: Sequence[Cell], twin: Any) -> Tensor:
    """PyTorch hooks on the transformers model."""
    attentions = model.family.attentions(twin)
    kept: list[Tensor] = []
    norm = getattr(model.family.decoder(twin), model.family.norm)

    def silence(cell: Cell) -> Any:
        projection, layer, head = cell
        if projection == "query":
            return attentions[layer].q_proj.register_forward_hook(lambda m, a, out: zeroed(out, head, model.n_heads))
        return attentions[layer].o_proj.register_forward_pre_hook(lambda m, a: (zeroed(a[0], head, model.n_heads),))

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

    return _over_batches(model, encoded, len(cells), states)


def available() -> list[str]:
    """The peers that can be run here."""
    from importlib.util import find_spec

    return ["transformer_lens", "hooks", *(["nnsight"] if find_spec("nnsight") else [])]


@torch.no_grad()
def nnsight(model: HookedLVLM, encoded: Sequence[Encoded], cells: Sequence[Cell], twin: Any) -> Tensor:
    """One trace a head over the prompt batch, images included, as nnsight's documentation shows."""
    from nnsight import NNsight

    wrapped = NNsight(twin)
    decoder, width = getattr(wrapped.model, "language_model", wrapped.model), model.d_head

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

    return _over_batches(model, encoded, len(cells), states)
