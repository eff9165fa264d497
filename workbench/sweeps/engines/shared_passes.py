"""Unmasked passes of prompts that begin alike: the image tower and the shared beginning run once."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from workbench.models.attention import Recording, allowed_keys, causal_mask, sites_set
from workbench.models.encode import Encoded
from workbench.models.hooked import HookedLVLM
from workbench.models.precision import double_kept
from workbench.models.walk import BATCH_AXIS, POS_AXIS, BasePass, Prefix, base_pass, call_layer
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


def sees_ahead(base: BasePass, cut: int) -> bool:
    """Whether a position before `cut` sees a key at or after it, in any layer."""
    masks = {id(seen.mask): seen.mask for seen in base.recordings.values() if seen.mask is not None}
    return any(bool(allowed_keys(mask)[:, :, :cut, cut:].any()) for mask in masks.values())


def _plain_embedding(model: HookedLVLM, base: BasePass, cut: int) -> bool:
    """Whether the first layer is given the bare embeddings of text after `cut`."""
    with torch.no_grad():
        bare = model.hf.get_input_embeddings()(base.encoded[0].input_ids[:, cut:])
    return torch.equal(bare, base.inputs[min(base.inputs)][:, cut:])


@torch.no_grad()
def _go_on(model: HookedLVLM, whole: BasePass, encoded: Encoded, cut: int) -> BasePass:
    """The pass of a prompt that equals `whole` before `cut` and has only text after it."""
    n_pos = encoded.n_tokens
    before = segment(model, whole, 0, n_pos, last=False)
    hidden = model.hf.get_input_embeddings()(encoded.input_ids[:, cut:])
    prefix = Prefix(whole, 1, cut)
    inputs, attention_out, recordings = {}, {}, {}
    for number in sorted(whole.inputs):
        arguments = cut_arguments(model, whole.arguments[number], whole.n_pos, cut, n_pos)
        arguments["past_key_values"] = prefix
        inputs[number] = torch.cat([whole.inputs[number][:, :cut], hidden], 1)
        out: list[Tensor] = []
        handle = model.attentions[number].register_forward_hook(
            lambda module, args, output, out=out: out.append(output[0])
        )
        try:
            with sites_set([model.sites[number]], record=True), double_kept(model.dtype):
                hidden = call_layer(model, number, hidden, arguments)
            seen = model.sites[number].recording
        finally:
            handle.remove()
            model.sites[number].recording = None
        assert seen is not None
        old = whole.recordings[number]
        attention_out[number] = torch.cat([whole.attention_out[number][:, :cut], out[0]], 1)
        recordings[number] = Recording(
            torch.cat([old.query[:, :, :cut], seen.query], 2),
            seen.key,
            seen.value,
            before.recordings[number].mask,
            seen.scaling,
            seen.extras,
            torch.cat([old.z[:, :cut], seen.z], 1),
        )
    model.work.count(len(inputs), 1, n_pos - cut)
    residual = hidden[:, -1]
    state = model.normed(residual)
    return BasePass(
        [encoded],
        inputs,
        before.arguments,
        attention_out,
        recordings,
        whole.decoder_arguments,
        residual,
        state,
        model.unembed(state),
    )


def segment(model: HookedLVLM, base: BasePass, start: int, stop: int, *, last: bool) -> BasePass:
    """Positions `start:stop` of a pass of one prompt; keys and values from 0 on. Only the last has a final state."""
    end = slice(None, None if last else 0)
    return replace(
        base,
        inputs={n: t[:, start:stop] for n, t in base.inputs.items()},
        arguments={n: cut_arguments(model, a, base.n_pos, start, stop) for n, a in base.arguments.items()},
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
    return replace(
        seen,
        query=seen.query[:, :, start:stop],
        key=seen.key[:, :, :stop],
        value=seen.value[:, :, :stop],
        mask=mask,
        z=seen.z[:, start:stop],
    )


def cut_arguments(model: HookedLVLM, arguments: dict[str, Any], n_pos: int, start: int, stop: int) -> dict[str, Any]:
    """A layer's arguments for the positions `start:stop`; masks see the keys up to `stop`."""
    axes = {**POS_AXIS, **model.family.position_arguments}

    def cut(name: str, value: Any) -> Any:
        if isinstance(value, tuple | list):
            return type(value)(cut(name, v) for v in value)
        axis = axes.get(name)
        if not isinstance(value, Tensor) or axis is None or value.ndim < -axis or value.shape[axis] != n_pos:
            return value
        value = value.narrow(axis, start, stop - start)
        return value.narrow(-1, 0, stop) if name == "attention_mask" else value

    return {name: cut(name, value) for name, value in arguments.items()}


def stack(parts: Sequence[BasePass]) -> BasePass:
    """Passes of one prompt each over the same positions, as one batch."""
    first = parts[0]

    def recording(number: int) -> Recording:
        seen = [part.recordings[number] for part in parts]
        return replace(
            seen[0],
            query=torch.cat([s.query for s in seen]),
            key=torch.cat([s.key for s in seen]),
            value=torch.cat([s.value for s in seen]),
            z=torch.cat([s.z for s in seen]),
        )

    return BasePass(
        [part.encoded[0] for part in parts],
        {n: torch.cat([part.inputs[n] for part in parts]) for n in first.inputs},
        {n: _join([part.arguments[n] for part in parts]) for n in first.arguments},
        {n: torch.cat([part.attention_out[n] for part in parts]) for n in first.attention_out},
        {n: recording(n) for n in first.recordings},
        first.decoder_arguments,
        torch.cat([part.residual for part in parts]),
        torch.cat([part.state for part in parts]),
        torch.cat([part.logits for part in parts]),
    )


def _join(arguments: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One set of arguments for all: tables that are equal broadcast, others lie along the batch axis."""

    def join(name: str, values: list[Any]) -> Any:
        first = values[0]
        if isinstance(first, tuple | list):
            return type(first)(join(name, list(v)) for v in zip(*values, strict=True))
        if not isinstance(first, Tensor) or all(torch.equal(first, v) for v in values[1:]):
            return first
        return torch.cat(values, BATCH_AXIS.get(name, -first.ndim))

    return {name: join(name, [a[name] for a in arguments]) for name in arguments[0]}


def rows_of(base: BasePass, some: slice) -> BasePass:
    """Some rows of a batch; arguments that are tensors with a row each are cut, too."""
    n_rows = base.state.shape[0] or next(iter(base.inputs.values())).shape[0]

    def cut(name: str, value: Any) -> Any:
        if isinstance(value, tuple | list):
            return type(value)(cut(name, v) for v in value)
        axis = BATCH_AXIS.get(name, -value.ndim if isinstance(value, Tensor) else 0)
        if not isinstance(value, Tensor) or n_rows == 1 or value.ndim < -axis or value.shape[axis] != n_rows:
            return value
        return value.movedim(axis, 0)[some].movedim(0, axis)

    def cut_recording(r: Recording) -> Recording:
        return replace(r, query=r.query[some], key=r.key[some], value=r.value[some], z=r.z[some])

    return replace(
        base,
        encoded=base.encoded[some],
        inputs={n: t[some] for n, t in base.inputs.items()},
        arguments={n: {k: cut(k, v) for k, v in a.items()} for n, a in base.arguments.items()},
        attention_out={n: t[some] for n, t in base.attention_out.items()},
        recordings={n: cut_recording(r) for n, r in base.recordings.items()},
        residual=base.residual[some],
        state=base.state[some],
        logits=base.logits[some],
    )
