"""Run a prompt once, remember what each decoder layer was given, and go on from any layer with some heads masked.

Masking a head of layer l leaves everything below l as it was: the image tower, the embedding and layers 0..l-1. The
masked layer's own attention is known in closed form (`workbench.models.masks.masked_z`), so all that is left is one
product with W_O, the layer's MLP, and the layers above; in the last layer only the last position is needed. `walk` is
that road, and every engine takes it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from workbench.errors import MaskError, ModelError
from workbench.models.arguments import Arguments, at_positions, for_rows, repeated
from workbench.models.attention import (
    LastPosition,
    Recording,
    allowed_keys,
    sites_set,
)
from workbench.models.decoder import Decoder
from workbench.models.encode import Encoded
from workbench.models.precision import double_kept

NOTHING = torch.empty(0)
KeysValues = tuple[Tensor, Tensor]


@dataclass(eq=False)
class BasePass:
    """The unmasked pass of a batch of equally long prompts.

    Attributes:
        encoded: The prompts, in row order.
        inputs: Input of each decoder layer that ran, `[prompt, pos, d_model]`; by layer.
        arguments: The keyword arguments each decoder layer was called with; by layer.
        attention_out: Output of each layer's self-attention (after W_O), `[prompt, pos, d_model]`; by layer.
        recordings: Queries, keys, values, mask and z of each layer with maskable heads; by layer.
        decoder_arguments: What the decoder itself was called with.
        residual: Residual stream at the last position, before the final norm, `[prompt, d_model]`.
        state: The same after the final norm.
        logits: Next-token logits at the last position, float32 or wider, `[prompt, vocab]`.
        bound: What masks put into these prompts, once it is known (`workbench.models.sources`); by mask.
    """

    encoded: list[Encoded]
    inputs: dict[int, Tensor] = field(default_factory=dict)
    arguments: dict[int, Arguments] = field(default_factory=dict)
    attention_out: dict[int, Tensor] = field(default_factory=dict)
    recordings: dict[int, Recording] = field(default_factory=dict)
    decoder_arguments: dict[str, Any] = field(default_factory=dict)
    residual: Tensor = NOTHING
    state: Tensor = NOTHING
    logits: Tensor = NOTHING
    bound: dict[Any, Any] = field(default_factory=dict)

    @property
    def n_prompts(self) -> int:
        return len(self.encoded)

    @property
    def n_pos(self) -> int:
        return next(iter(self.inputs.values())).shape[1]

    def end_at(self, model: Decoder, residual: Tensor) -> "BasePass":
        """Set what is read from the residual stream at the last position."""
        self.residual, self.state = residual, NOTHING
        self.state, self.logits = self.read(model, model.n_layers - 1)
        return self

    def read(self, model: Decoder, layer: int) -> tuple[Tensor, Tensor]:
        """State and logits read from the residual stream after a layer, at the last position: `[prompt, …]`."""
        above = next((n for n in sorted(self.inputs) if n > layer), None)
        if above is None and len(self.state):
            return self.state, self.logits
        residual = self.residual if above is None else self.inputs[above][:, -1]
        state = model.normed(residual)
        return state, model.unembed(state)


def batch_key(encoded: Encoded) -> tuple[Any, ...]:
    """Prompts with equal keys can share a batch without padding: same length, and inputs of the same shapes."""
    tensors = [(name, v) for name, v in sorted(encoded.model_inputs.items()) if isinstance(v, Tensor)]
    # Of tensors with four axes and more the first counts the tiles of a picture.
    shapes = tuple((name, *v.shape[v.ndim < 4 :]) for name, v in tensors)
    return (encoded.n_tokens, encoded.image_span, shapes)


def join(batch: Sequence[Encoded]) -> dict[str, Any]:
    """Model inputs of several prompts with the same `batch_key`, stacked along the first axis."""
    first = batch[0].model_inputs
    return {
        name: torch.cat([e.model_inputs[name] for e in batch]) if isinstance(value, Tensor) else value
        for name, value in first.items()
    }


@contextmanager
def recorded(model: Decoder, base: BasePass) -> Iterator[None]:
    """Write into `base` what the decoder's layers and their attention are given and give within a block."""

    def keep_input(number: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kwargs = dict(kwargs)
        base.inputs[number] = args[0] if args else kwargs.pop("hidden_states")
        base.arguments[number] = kwargs

    def keep_output(number: int, module: nn.Module, args: Any, output: Any) -> None:
        base.attention_out[number] = output[0] if isinstance(output, tuple) else output

    with ExitStack() as stack:
        for number, layer in enumerate(model.layers):
            stack.enter_context(layer.register_forward_pre_hook(partial(keep_input, number), with_kwargs=True))
        for number, attention in model.attentions.items():
            stack.enter_context(attention.register_forward_hook(partial(keep_output, number)))
        stack.enter_context(sites_set(list(model.sites.values()), record=True, recording=None))
        yield
        base.recordings.update({n: site.recording for n, site in model.sites.items() if site.recording is not None})


def base_pass(
    model: Decoder, batch: Sequence[Encoded], call: Arguments | None = None, *, gradients: bool = False
) -> BasePass:
    """Run the unmasked model once and record what `walk` needs. The image tower runs here and nowhere else.

    Args:
        call: What the decoder is to be called with, where that is known: then nothing before it runs.
        gradients: Keep the way back to inputs that ask for gradients.
    """
    base = BasePass(list(batch))
    residual: list[Tensor] = []

    def keep_arguments(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        base.decoder_arguments = dict.fromkeys(model.family.decoder_record) | kwargs

    with (
        torch.set_grad_enabled(gradients),
        model.lock,
        recorded(model, base),
        model.decoder.register_forward_pre_hook(keep_arguments, with_kwargs=True),
        model.final_norm.register_forward_pre_hook(lambda module, args: residual.append(args[0][:, -1])),
        double_kept(model.dtype),
    ):
        model.work.count(model.n_layers, len(batch), batch[0].n_tokens)
        if call is None:
            model.work.vision_passes += sum(e.image_span is not None for e in batch)
            model.hf(**join(batch), use_cache=False, logits_to_keep=1)
        else:
            model.decoder(**call)
    if silent := [n for n in model.sites if n not in base.recordings or n not in base.attention_out]:
        raise ModelError(
            f"{model.name!r}: the attention of layers {silent} did not run through the workbench's attention function, "
            f"so masks there could not act. Family {model.family.name!r} needs an adapter that says where it is."
        )
    with torch.set_grad_enabled(gradients):
        return base.end_at(model, residual[-1])


def call_layer(
    model: Decoder, layer: int, hidden: Tensor, arguments: Arguments, attention_out: Tensor | None = None
) -> Tensor:
    """One decoder layer; with `attention_out`, its self-attention returns that instead of being computed."""
    with ExitStack() as stack:
        if attention_out is not None:
            attention = model.attentions[layer]
            before = attention.__dict__.get("forward")
            stack.callback(setattr if before else delattr, attention, "forward", *filter(None, [before]))
            attention.forward = lambda *args, **kwargs: (attention_out, None)
        output = model.layers[layer](hidden, **arguments)
    return output[0] if isinstance(output, tuple) else output


class Known:
    """Keys and values of the positions before `start`, which each layer finds as its cache.

    Args:
        before: From a layer to blocks `[row, kv_head, pos, d_head]` of keys and values, one under the other along the
            rows; none for a layer whose keys are no positions of the prompt (cross-attention).
        found: Where to keep, by layer, what is known once a layer has run.
    """

    def __init__(
        self, start: int, before: Callable[[int], Sequence[KeysValues]], found: dict[int, KeysValues] | None = None
    ) -> None:
        self.start, self.before, self.found = start, before, found

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """transformers asks how many positions are known."""
        return self.start

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> KeysValues:
        """transformers hands over the new keys and values and takes all of them."""
        if blocks := self.before(layer_idx):
            keys, values = (torch.cat(part) for part in zip(*blocks, strict=True))
            key, value = torch.cat([keys, key], 2), torch.cat([values, value], 2)
        if self.found is not None:
            self.found[layer_idx] = key, value
        return key, value


def _before(base: BasePass, start: int, n_rows: int, layer: int) -> list[KeysValues]:
    """What a pass knows of a layer's keys and values before `start`, for `n_rows` rows a prompt."""
    if (seen := base.recordings.get(layer)) is None:
        return []
    return [(repeated(seen.key[:, :, :start], n_rows), repeated(seen.value[:, :, :start], n_rows))]


def sees_ahead(base: BasePass, cut: int, layer: int = -1) -> bool:
    """Whether, in a layer above `layer`, some position before `cut` sees a key at or after it."""
    masks = {id(seen.mask): seen.mask for number, seen in base.recordings.items() if number > layer}
    return any(m is not None and bool(allowed_keys(m)[:, :, :cut, cut:].any()) for m in masks.values())


def walk(
    model: Decoder,
    base: BasePass,
    layer: int = 0,
    n_rows: int = 1,
    *,
    writes: Float[Tensor, "prompt row pos d_model"] | None = None,
    start: int = 0,
    read: Sequence[int] = (),
    known: Known | None = None,
    taps: Mapping[int, Tensor] | None = None,
    thrifty: bool = False,
) -> dict[int, Float[Tensor, "line d_model"]]:
    """Go on from `layer` with `n_rows` rows a prompt (lines are prompt-major), under whatever edits the sites hold.

    Args:
        writes: Added to the attention output of `layer`, row by row; covers positions `start`.. only. Without it
            the layer runs as it is.
        start: Positions before it are not walked.
        read: Layers after which the residual stream is wanted; by default the last. Nothing above them runs, and in
            the highest only the last position.
        known: Keys and values of what comes before; by default those of the pass before `start`.
        taps: Added to z of layers at the positions walked: zeros through which gradients are read.
        thrifty: Keep only layer inputs for a way back, and compute each layer again there.
    Returns: The residual stream at the last position, by layer.
    """
    read, taps = read or (model.n_layers - 1,), taps or {}
    if known is None and start:
        known = Known(start, partial(_before, base, start, n_rows))
    top, numbers, found = max(read), sorted(n for n in base.inputs if n >= layer), {}
    hidden = repeated(base.inputs[numbers[0]][:, start:], n_rows)
    for number in range(layer, top + 1):
        if number in base.inputs:
            cut = at_positions(base.arguments[number], base.n_pos, start, base.n_pos, model.family.position_arguments)
            arguments = for_rows(cut, base.n_prompts, n_rows)
            if known is not None:
                arguments["past_key_values"] = known
            given = None
            if number == layer and writes is not None:
                given = repeated(base.attention_out[number][:, start:], n_rows) + writes.flatten(0, 1)
            last_only = number == top and number in model.sites
            step = partial(_step, model, number, arguments, last_only)
            run = partial(checkpoint, step, use_reentrant=False) if thrifty else step
            hidden = run(hidden, given, taps.get(number))
            model.work.count(1, hidden.shape[0], hidden.shape[1])
            hidden = model.family.after_layer(number, hidden, base.decoder_arguments, n_rows, start)
        if number in read:
            found[number] = hidden[:, -1]
    return found


def _step(
    model: Decoder,
    number: int,
    arguments: Arguments,
    last_only: bool,
    hidden: Tensor,
    given: Tensor | None,
    tap: Tensor | None,
) -> Tensor:
    """One layer of a walk: its attention computed or `given`; all positions or the last one only."""
    sites = [model.sites[number]] if tap is not None else []
    with double_kept(model.dtype), sites_set(sites, tap=tap):
        if last_only:
            given = last_attention_out(model, number, hidden, arguments) if given is None else given[:, -1:]
            hidden = hidden[:, -1:]
        return call_layer(model, number, hidden, arguments, given)


@torch.no_grad()
def read_out(
    model: Decoder, base: BasePass, layer: int, n_rows: int, *, start: int = 0, **options: Any
) -> dict[int, Float[Tensor, "prompt row d_model"]]:
    """States (after the final norm, last position) of `n_rows` continuations of each prompt, by layer read.

    Args:
        start: Positions before it are unmasked, hence known: their keys and values come from the base pass. Where
            they look ahead (a prompt that sees itself in both directions) they are recomputed all the same.
        options: Of `walk`.
    """
    if start and sees_ahead(base, start, layer):
        if (writes := options.get("writes")) is not None:
            options["writes"] = nn.functional.pad(writes, (0, 0, start, 0))
        start = 0
    with model.lock:
        found = walk(model, base, layer, n_rows, start=start, **options)
    return {at: model.normed(residual).unflatten(0, (base.n_prompts, n_rows)) for at, residual in found.items()}


def resume(
    model: Decoder, base: BasePass, layer: int, n_rows: int, **options: Any
) -> Float[Tensor, "prompt row d_model"]:
    """Final states of `n_rows` continuations of each prompt from `layer`; arguments as `read_out`."""
    return read_out(model, base, layer, n_rows, **options)[model.n_layers - 1]


def last_attention_out(model: Decoder, layer: int, hidden: Tensor, arguments: Arguments) -> Tensor:
    """A layer's attention output at the last position alone: all keys and values, but one query."""
    try:
        with sites_set([model.sites[layer]], last_only=True):
            call_layer(model, layer, hidden, arguments)
    except LastPosition as stop:
        return model.output(layer)(stop.z.flatten(-2))
    raise MaskError(f"{model.name!r}: the attention of layer {layer} did not run, so a mask could not be followed.")
