"""Run a prompt once, remember what each decoder layer was given, and go on from any layer with some heads masked.

Masking a head of layer l leaves everything below l as it was: the image tower, the embedding and layers 0..l-1. The
masked layer's own attention is known in closed form (`masked_z`), so all that is left is one product with W_O, the
layer's MLP, and the layers above; in the last layer only the last position is needed.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from workbench.errors import MaskError, ModelError
from workbench.models.attention import (
    LastPosition,
    Recording,
    allowed_keys,
    edited_attention,
    even_attention,
    sites_set,
)
from workbench.models.encode import Encoded
from workbench.models.masks import Mask
from workbench.models.precision import double_kept

if TYPE_CHECKING:
    from workbench.models.hooked import HookedLVLM


@dataclass(eq=False)
class BasePass:
    """The unmasked pass of a batch of equally long prompts.

    Attributes:
        encoded: The prompts, in row order.
        inputs: Input of each decoder layer that ran, `[prompt, pos, d_model]`; by layer.
        arguments: The keyword arguments each decoder layer was called with; by layer.
        attention_out: Output of each layer's self-attention (after W_O), `[prompt, pos, d_model]`; by layer.
        recordings: Queries, keys, values, mask and z of each layer with maskable heads; by layer.
        decoder_arguments: What the decoder itself was called with, where the family needs it between layers.
        residual: Residual stream at the last position, before the final norm, `[prompt, d_model]`.
        state: The same after the final norm.
        logits: Next-token logits at the last position, float32 or wider, `[prompt, vocab]`.
    """

    encoded: list[Encoded]
    inputs: dict[int, Tensor]
    arguments: dict[int, dict[str, Any]]
    attention_out: dict[int, Tensor]
    recordings: dict[int, Recording]
    decoder_arguments: dict[str, Any]
    residual: Tensor
    state: Tensor
    logits: Tensor

    @property
    def n_prompts(self) -> int:
        return len(self.encoded)

    @property
    def n_pos(self) -> int:
        return self.encoded[0].n_tokens


def batch_key(encoded: Encoded) -> tuple[Any, ...]:
    """Prompts with equal keys can share a batch without padding: same length, and inputs of the same shapes."""
    shapes = tuple((n, tuple(v.shape[1:])) for n, v in sorted(encoded.model_inputs.items()) if isinstance(v, Tensor))
    rows = tuple(
        (n, v.shape[0]) for n, v in sorted(encoded.model_inputs.items()) if isinstance(v, Tensor) and v.ndim > 3
    )
    return (encoded.n_tokens, encoded.image_span, shapes, rows)


def join(batch: Sequence[Encoded]) -> dict[str, Any]:
    """Model inputs of several prompts with the same `batch_key`, stacked along the first axis."""
    first = batch[0].model_inputs
    return {
        name: torch.cat([e.model_inputs[name] for e in batch]) if isinstance(value, Tensor) else value
        for name, value in first.items()
    }


@torch.no_grad()
def base_pass(model: "HookedLVLM", batch: Sequence[Encoded]) -> BasePass:
    """Run the unmasked model once and record what `resume` needs. The image tower runs here and nowhere else."""
    layers = model.layers
    inputs: dict[int, Tensor] = {}
    arguments: dict[int, dict[str, Any]] = {}
    attention_out: dict[int, Tensor] = {}
    decoder_arguments: dict[str, Any] = {}
    residual: list[Tensor] = []

    def layer_hook(number: int) -> Any:
        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            kwargs = dict(kwargs)
            inputs[number] = args[0] if args else kwargs.pop("hidden_states")
            arguments[number] = kwargs

        return keep

    def attention_hook(number: int) -> Any:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            attention_out[number] = output[0] if isinstance(output, tuple) else output

        return keep

    def decoder_hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        decoder_arguments.update({n: kwargs.get(n) for n in model.family.decoder_record})

    def norm_hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        residual.append(args[0][:, -1])

    with ExitStack() as stack:
        for number, layer in enumerate(layers):
            stack.enter_context(_removed(layer.register_forward_pre_hook(layer_hook(number), with_kwargs=True)))
        for number, attention in model.attentions.items():
            stack.enter_context(_removed(attention.register_forward_hook(attention_hook(number))))
        stack.enter_context(_removed(model.decoder.register_forward_pre_hook(decoder_hook, with_kwargs=True)))
        stack.enter_context(_removed(model.final_norm.register_forward_pre_hook(norm_hook)))
        stack.enter_context(sites_set(list(model.sites.values()), record=True))
        model.work.vision_passes += sum(e.image_span is not None for e in batch)
        model.work.count(len(layers), len(batch), batch[0].n_tokens)
        stack.enter_context(double_kept(model.dtype))
        model.hf(**join(batch), use_cache=False, logits_to_keep=1)
        recordings = {number: site.recording for number, site in model.sites.items()}
    for site in model.sites.values():
        site.recording = None
    state = model.normed(residual[-1])
    found = {number: r for number, r in recordings.items() if r is not None}
    base = BasePass(
        list(batch),
        inputs,
        arguments,
        attention_out,
        found,
        decoder_arguments,
        residual[-1],
        state,
        model.unembed(state),
    )
    _check_complete(model, base)
    return base


def _check_complete(model: "HookedLVLM", base: BasePass) -> None:
    silent = [n for n in model.sites if n not in base.recordings or n not in base.attention_out]
    if silent:
        raise ModelError(
            f"{model.name!r}: the attention of layers {silent} did not run through the workbench's attention function, "
            f"so masks there could not act. Family {model.family.name!r} needs an adapter that says where it is."
        )


@contextmanager
def _removed(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def masked_z(
    model: "HookedLVLM", base: BasePass, layer: int, projection: str, mask: Mask
) -> Float[Tensor, "prompt pos head d_head"]:
    """z of every head of a layer as if that head alone were masked, at all positions.

    Heads do not see each other inside a layer, so one call gives the masked z of all of them.
    """
    seen = base.recordings[layer]
    n_heads = seen.query.shape[1]
    if projection == "value":
        return seen.z * mask.factor
    if mask.form == "limit":
        return even_attention(seen.value, seen.mask, seen.query.shape[2], n_heads)
    if mask.form == "as_published":
        with (
            published_queries(model, {layer: range(n_heads)}, mask.factor),
            sites_set([model.sites[layer]], record=True),
        ):
            with double_kept(model.dtype):
                call_layer(model, layer, base.inputs[layer], base.arguments[layer])
            recording = model.sites[layer].recording
        model.sites[layer].recording = None
        assert recording is not None
        return recording.z
    every = mask.edit("query", [range(n_heads)], n_heads, 0, seen.query.device)
    return edited_attention(
        model.attentions[layer], every, seen.query, seen.key, seen.value, seen.mask, seen.scaling, seen.extras
    )


@contextmanager
def published_queries(model: "HookedLVLM", heads: Mapping[int, Sequence[int]], factor: float) -> Iterator[None]:
    """Scale rows of W_q (and its bias) of some heads, layer by layer, before any query norm: the published mask.

    Done on the projection's output, which is the same number and leaves the shared weights alone.
    """
    with ExitStack() as stack:
        for layer, chosen in heads.items():
            module, width = model.query_weights(layer)
            scale = torch.ones(width, device=model.device, dtype=model.dtype)
            for head in chosen:
                scale[head * model.d_head : (head + 1) * model.d_head] = factor

            def shrink(module: nn.Module, args: Any, output: Tensor, scale: Tensor = scale) -> Tensor:
                queries = output[..., : len(scale)] * scale.to(output.device)
                return (
                    queries if output.shape[-1] == len(scale) else torch.cat([queries, output[..., len(scale) :]], -1)
                )

            stack.enter_context(_removed(module.register_forward_hook(shrink)))
        yield


def head_writes(
    model: "HookedLVLM", layer: int, delta: Float[Tensor, "prompt pos head d_head"], rows: Sequence[Sequence[int]]
) -> Float[Tensor, "prompt row pos d_model"]:
    """What the changes `delta` of the heads in `rows[r]` add to the residual stream: delta · W_O, row by row."""
    index = torch.as_tensor(rows, device=delta.device)
    output = getattr(model.attentions[layer], model.family.output)
    if type(output) is nn.Linear and output.weight.is_floating_point():
        weight = output.weight.view(output.out_features, delta.shape[2], delta.shape[3])[:, index].to(delta.device)
        return torch.einsum("psrmk,drmk->prsd", delta[:, :, index], weight)
    # Quantised or wrapped projections have no plain weight to slice: send each row's change through the module.
    scattered = delta.new_zeros(len(rows), *delta.shape)
    for row, heads in enumerate(rows):
        scattered[row][:, :, list(heads)] = delta[:, :, list(heads)]
    flat = scattered.flatten(-2)
    return (output(flat) - output(torch.zeros_like(flat[:1]))).transpose(0, 1)


def call_layer(
    model: "HookedLVLM", layer: int, hidden: Tensor, arguments: dict[str, Any], attention_out: Tensor | None = None
) -> Tensor:
    """One decoder layer; with `attention_out`, its self-attention returns that instead of being computed."""
    module = model.layers[layer]
    if attention_out is None:
        output = module(hidden, **arguments)
        return output[0] if isinstance(output, tuple) else output
    attention = model.attentions[layer]
    before = attention.__dict__.get("forward")
    attention.forward = lambda *args, **kwargs: (attention_out, None)
    try:
        output = module(hidden, **arguments)
    finally:
        if before is None:
            del attention.forward
        else:
            attention.forward = before
    return output[0] if isinstance(output, tuple) else output


@torch.no_grad()
def resume(
    model: "HookedLVLM",
    base: BasePass,
    layer: int,
    n_rows: int,
    *,
    writes: Float[Tensor, "prompt row pos d_model"] | None = None,
    start: int = 0,
) -> Float[Tensor, "prompt row d_model"]:
    """Final states (after the final norm, last position) of `n_rows` continuations of each prompt from `layer`.

    Args:
        writes: Added to the attention output of `layer`, row by row; covers positions `start`.. only. Without it
            the layer runs as it is, under whatever edits the sites hold (a row is then prompt-major, row-minor).
        start: Positions before it are unmasked, hence known: their keys and values come from the base pass. Where
            they look ahead (a prompt that sees itself in both directions) they are recomputed all the same.
    """
    last_layer = len(model.layers) - 1
    n_prompts = base.n_prompts
    if start and looks_ahead(base, layer, start):
        if writes is not None:
            writes = torch.nn.functional.pad(writes, (0, 0, start, 0))
        start = 0
    numbers = [number for number in range(layer, len(model.layers)) if number in base.inputs]
    hidden = _rows(base.inputs[numbers[0]][:, start:], n_rows)
    prefix = Prefix(base, n_rows, start) if start else None
    with double_kept(model.dtype):
        for number in numbers:
            arguments = row_arguments(
                base.arguments[number], n_prompts, base.n_pos, n_rows, start, model.family.position_arguments
            )
            if prefix is not None:
                arguments["past_key_values"] = prefix
            given = None
            if number == layer and writes is not None:
                given = _rows(base.attention_out[number][:, start:], n_rows) + writes.flatten(0, 1)
            if number == last_layer and number in model.sites:
                if given is None:
                    given = last_attention_out(model, number, hidden, arguments)
                hidden, given = hidden[:, -1:], given[:, -1:]
            model.work.count(1, hidden.shape[0], hidden.shape[1])
            hidden = call_layer(model, number, hidden, arguments, given)
            hidden = model.family.after_layer(number, hidden, base.decoder_arguments, n_rows, start)
    return model.normed(hidden[:, -1]).view(n_prompts, n_rows, -1)


class Prefix:
    """Keys and values of the positions before `start`, handed to each layer as the cache it would find them in."""

    def __init__(self, base: BasePass, n_rows: int, start: int) -> None:
        self.base, self.n_rows, self.start = base, n_rows, start

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.start

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        seen = self.base.recordings.get(layer_idx)
        if seen is None:  # cross-attention: its keys are not positions of the prompt
            return key, value
        before = (_rows(t[:, :, : self.start], self.n_rows) for t in (seen.key, seen.value))
        key, value = (torch.cat([known, new], dim=2) for known, new in zip(before, (key, value), strict=True))
        return key, value


def looks_ahead(base: BasePass, layer: int, start: int) -> bool:
    """Whether, in a layer above, some position before `start` sees a key at or after it."""
    masks = {id(seen.mask): seen.mask for number, seen in base.recordings.items() if number > layer}
    return any(m is not None and bool(allowed_keys(m)[:, :, :start, start:].any()) for m in masks.values())


def last_attention_out(model: "HookedLVLM", layer: int, hidden: Tensor, arguments: dict[str, Any]) -> Tensor:
    """The last layer's attention output at the last position alone: all keys and values, but one query."""
    site = model.sites[layer]
    try:
        with sites_set([site], last_only=True):
            call_layer(model, layer, hidden, arguments)
    except LastPosition as stop:
        return getattr(model.attentions[layer], model.family.output)(stop.z.flatten(-2))
    raise MaskError(
        f"{model.name!r}: the last layer's attention did not run, so a mask below it could not be followed."
    )


def _rows(tensor: Tensor, n_rows: int) -> Tensor:
    """Repeat each prompt's line `n_rows` times: rows are prompt-major."""
    return tensor.repeat_interleave(n_rows, dim=0) if n_rows > 1 else tensor


# Where the batch axis and the position axis of a decoder layer's arguments lie, counted from the end. Rotary
# tables are (…, batch, pos, width) in every family, position ids (…, batch, pos), masks (batch, 1, pos, key).
BATCH_AXIS = {"position_embeddings": -3, "position_ids": -2, "attention_mask": -4}
POS_AXIS = {"position_embeddings": -2, "position_ids": -1, "attention_mask": -2, "cache_position": -1}


def row_arguments(
    arguments: dict[str, Any],
    n_prompts: int,
    n_pos: int,
    n_rows: int,
    start: int,
    more_positions: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """A layer's recorded arguments for `n_rows` rows a prompt, cut to the positions from `start` on."""
    pos_axes = {**POS_AXIS, **(more_positions or {})}

    def fit(name: str, value: Any) -> Any:
        if isinstance(value, tuple | list):
            return type(value)(fit(name, v) for v in value)
        if not isinstance(value, Tensor) or value.ndim == 0:
            return value
        batch_axis, pos_axis = BATCH_AXIS.get(name, -value.ndim), pos_axes.get(name)
        if start and pos_axis is not None and value.shape[pos_axis] == n_pos:
            value = value.narrow(pos_axis, start, n_pos - start)
        if n_rows == 1 or name == "cache_position" or value.ndim < -batch_axis:
            return value
        if name not in POS_AXIS:
            # What families add besides the usual may have several lines a prompt (mllama: its tiles), side by side.
            lines = value.unflatten(0, (n_prompts, -1)) if value.shape[0] % n_prompts == 0 else None
            return value if lines is None else lines.repeat_interleave(n_rows, dim=0).flatten(0, 1)
        # One prompt's tables and masks broadcast over its rows.
        return value.repeat_interleave(n_rows, dim=batch_axis) if value.shape[batch_axis] == n_prompts > 1 else value

    return {name: fit(name, value) for name, value in arguments.items()}
