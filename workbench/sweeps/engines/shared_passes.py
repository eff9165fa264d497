"""Unmasked passes of prompts that begin alike: the image tower and the shared beginning run once."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from workbench.models.arguments import at_positions, joined, of_rows
from workbench.models.attention import Recording, causal_mask
from workbench.models.encode import Encoded
from workbench.models.hooked import HookedLVLM
from workbench.models.walk import BasePass, base_pass, known_before, recorded, sees_ahead, walk
from workbench.sweeps.engines.trie import Node


def known_passes(model: HookedLVLM, encoded: Sequence[Encoded], nodes: Sequence[Node]) -> list[BasePass]:
    """The unmasked pass of every prompt, one row each.

    The longest prompt with a picture at a place runs whole; the others with that picture there go on from where they
    part from it, under its tables of positions.
    """
    passes: dict[int, BasePass] = {}
    by_picture: dict[object, list[int]] = {}
    for prompt, e in enumerate(encoded):
        same = (
            (e.image_key, e.image_span, e.input_ids[0, : e.image_span[1]].numpy(force=True).tobytes())
            if e.image_span
            else prompt
        )
        by_picture.setdefault(same, []).append(prompt)
    parted = {tuple(sorted((a, b))): node.stop for node in nodes for a, b in _partings(node)}
    for prompts in by_picture.values():
        first = max(prompts, key=lambda p: encoded[p].n_tokens)
        whole = passes[first] = base_pass(model, [encoded[first]])
        for prompt in prompts:
            cut = parted.get(tuple(sorted((first, prompt))), 0)
            span = encoded[prompt].image_span
            if prompt == first:
                continue
            sound = span is not None and cut >= span[1] and not sees_ahead(whole, cut)
            if sound and _plain_embedding(model, whole, cut):
                passes[prompt] = _go_on(model, whole, encoded[prompt], cut)
            else:
                passes[prompt] = base_pass(model, [encoded[prompt]])
    return [passes[prompt] for prompt in range(len(encoded))]


def _partings(node: Node) -> list[tuple[int, int]]:
    """Pairs of prompts whose ways part at the end of this node."""
    groups = [child.prompts for child in node.children]
    return [(a, b) for i, one in enumerate(groups) for other in groups[i + 1 :] for a in one for b in other]


def _plain_embedding(model: HookedLVLM, base: BasePass, cut: int) -> bool:
    """Whether the first layer is given the bare embeddings of text after `cut`."""
    with torch.no_grad():
        bare = model.hf.get_input_embeddings()(base.encoded[0].input_ids[:, cut:])
    return torch.equal(bare, base.inputs[min(base.inputs)][:, cut:])


@torch.no_grad()
def _go_on(model: HookedLVLM, whole: BasePass, encoded: Encoded, cut: int) -> BasePass:
    """The pass of a prompt that equals `whole` before `cut` and has only text after it."""
    before = segment(model, whole, 0, encoded.n_tokens)
    hidden = model.hf.get_input_embeddings()(encoded.input_ids[:, cut:])
    new = BasePass([encoded], decoder_arguments=whole.decoder_arguments)
    with recorded(model, new):
        found = walk(model, before, start=cut, hidden=hidden, known=known_before(whole, cut), whole=True)
    new.arguments = before.arguments
    for number, seen in new.recordings.items():
        old = whole.recordings[number]
        new.attention_out[number] = torch.cat([whole.attention_out[number][:, :cut], new.attention_out[number]], 1)
        seen.query = torch.cat([old.query[:, :, :cut], seen.query], 2)
        seen.z = torch.cat([old.z[:, :cut], seen.z], 1)
        seen.mask = before.recordings[number].mask
    new.inputs = {n: torch.cat([whole.inputs[n][:, :cut], given], 1) for n, given in new.inputs.items()}
    return new.end_at(model, found[model.n_layers - 1])


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
        **end,
    )
