"""Unmasked passes of prompts that begin alike: the image tower runs once, and what is common is cut out and stacked."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from workbench.models.arguments import POS_AXIS, Arguments, at_positions, changed, joined, of_rows
from workbench.models.attention import Recording, causal_mask
from workbench.models.encode import Encoded
from workbench.models.hooked import HookedLVLM
from workbench.models.walk import BasePass, base_pass

# Axes of the decoder's own arguments that run over positions, counted from the end.
CALL_AXES = {"position_ids": (-1,), "cache_position": (-1,), "attention_mask": (-1, -2)}


def known_passes(model: HookedLVLM, encoded: Sequence[Encoded]) -> list[BasePass]:
    """The unmasked pass of every prompt, one row each; the image tower runs once for a picture at a place.

    Each prompt's decoder runs whole, so that its tables of positions are its own: they may depend on its length.
    """
    passes: dict[int, BasePass] = {}
    by_picture: dict[object, list[int]] = {}
    for prompt, e in enumerate(encoded):
        shown = (e.image_key, e.input_ids[0, : e.image_span[1]].numpy(force=True).tobytes()) if e.image_span else prompt
        by_picture.setdefault(shown, []).append(prompt)
    for prompts in by_picture.values():
        first = max(prompts, key=lambda p: encoded[p].n_tokens)
        passes[first] = base_pass(model, [encoded[first]])
        for prompt in set(prompts) - {first}:
            passes[prompt] = base_pass(model, [encoded[prompt]], decoder_call(model, passes[first], encoded[prompt]))
    return [passes[prompt] for prompt in range(len(encoded))]


@torch.no_grad()
def decoder_call(model: HookedLVLM, whole: BasePass, encoded: Encoded) -> Arguments | None:
    """What the decoder is called with for a prompt that shares the picture of `whole` and all before it.

    None where that cannot be told from the call of `whole`: unless what follows the picture are bare embeddings of
    text, and every other argument is known to be cut along its positions.
    """
    call, n_pos, n_new = whole.decoder_arguments, whole.n_pos, encoded.n_tokens
    embeds, (_, stop) = call.get("inputs_embeds"), encoded.image_span or (0, 0)
    embed = model.hf.get_input_embeddings()
    if embeds is None or not torch.equal(embeds[:, stop:], embed(whole.encoded[0].input_ids[:, stop:])):
        return None

    def cut(name: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: cut(name, part) for key, part in value.items()}
        if isinstance(value, Tensor):
            if name not in CALL_AXES and n_pos in value.shape:
                raise LookupError(name)
            for axis in CALL_AXES.get(name, ()):
                if value.ndim >= -axis and value.shape[axis] == n_pos:
                    value = value.narrow(axis, 0, n_new)
        return value

    try:
        rest = {name: cut(name, value) for name, value in call.items() if name != "inputs_embeds"}
    except LookupError:
        return None
    return rest | {"inputs_embeds": torch.cat([embeds[:, :stop], embed(encoded.input_ids[:, stop:])], 1)}


def position_marks(model: HookedLVLM, base: BasePass) -> list[bytes]:
    """For each position of a pass of one prompt, the bytes of all tables of positions and masks that it is given.

    Rotary tables may depend on the whole length of a prompt (longrope, dynamic NTK): where marks differ, a position is
    not the same one in two prompts, whatever its token. Of masks, the keys up to the position count.
    """
    n_pos, axes, tables = base.n_pos, {**POS_AXIS, **model.family.position_arguments}, dict[int, Tensor]()

    def keep(name: str, _: int, value: Tensor) -> Tensor:
        axis = axes.get(name)
        if id(value) not in tables and axis is not None and value.ndim >= -axis and value.shape[axis] == n_pos:
            own = value.tril() if name == "attention_mask" and value.shape[-1] == n_pos else value
            tables[id(value)] = own.movedim(axis, 0).flatten().contiguous().view(torch.uint8).view(n_pos, -1).cpu()
        return value

    for arguments in base.arguments.values():
        changed(keep, arguments)
    lines = torch.cat(list(tables.values()), 1) if tables else torch.empty(n_pos, 0, dtype=torch.uint8)
    return [line.tobytes() for line in lines.numpy()]


def segment(model: HookedLVLM, base: BasePass, start: int, stop: int) -> BasePass:
    """Positions `start:stop` of a pass of one prompt; keys and values from 0 on. Only a prompt's end has a state."""
    end = slice(None, None if stop == base.n_pos else 0)
    more = model.family.position_arguments
    return replace(
        base,
        inputs={n: t[:, start:stop] for n, t in base.inputs.items()},
        arguments={n: at_positions(a, base.n_pos, start, stop, more) for n, a in base.arguments.items()},
        attention_out={n: t[:, start:stop] for n, t in base.attention_out.items()},
        recordings={n: _cut_recording(r, start, stop) for n, r in base.recordings.items()},
        bound={},
        residual=base.residual[end],
        state=base.state[end],
        logits=base.logits[end],
    )


def _cut_recording(seen: Recording, start: int, stop: int) -> Recording:
    # Plain causal attention has no mask, which a query shorter than its keys has to spell out.
    mask = causal_mask(stop - start, stop, seen.key.device) if start else None
    if seen.mask is not None:
        mask = seen.mask[:, :, start:stop, :stop]
    query, key, value = seen.query[:, :, start:stop], seen.key[:, :, :stop], seen.value[:, :, :stop]
    return replace(seen, query=query, key=key, value=value, mask=mask, z=seen.z[:, start:stop])


def stack(parts: Sequence[BasePass]) -> BasePass:
    """Passes of one prompt each over the same positions, as one batch."""
    base = _each_tensor(lambda *tensors: torch.cat(tensors), *parts)
    base.arguments = {n: joined([part.arguments[n] for part in parts]) for n in base.arguments}
    base.encoded = [part.encoded[0] for part in parts]
    return base


def rows_of(base: BasePass, some: slice) -> BasePass:
    """Some rows of a batch."""
    n_rows = base.n_prompts
    chosen = _each_tensor(lambda tensor: tensor[some], base)
    chosen.arguments = {n: of_rows(a, n_rows, some) for n, a in base.arguments.items()}
    chosen.encoded = base.encoded[some]
    return chosen


def _each_tensor(change: Callable[..., Tensor], *bases: BasePass) -> BasePass:
    """A pass with `change(tensor, …)` in place of every tensor that has a line a prompt; masks are kept."""
    first = bases[0]

    def recording(number: int) -> Recording:
        seen = [base.recordings[number] for base in bases]
        own: dict[str, Any] = {n: change(*(getattr(s, n) for s in seen)) for n in ("query", "key", "value", "z")}
        return replace(seen[0], **own)

    end: dict[str, Any] = {n: change(*(getattr(b, n) for b in bases)) for n in ("residual", "state", "logits")}
    return replace(
        first,
        inputs={n: change(*(base.inputs[n] for base in bases)) for n in first.inputs},
        attention_out={n: change(*(base.attention_out[n] for base in bases)) for n in first.attention_out},
        recordings={n: recording(n) for n in first.recordings},
        bound={},
        **end,
    )
