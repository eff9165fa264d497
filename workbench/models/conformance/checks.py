"""The checks of `workbench check`, one function each: it returns the numbers that convince, or raises `Failed`."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from PIL import ImageOps
from torch import Tensor

from workbench.errors import ModelError
from workbench.models.conformance.at_load import (
    eager_attention,
    movement_bound,
    probe_prompt,
    relative_error,
    tolerance,
)
from workbench.models.encode import Encoded
from workbench.models.hooked import HookedLVLM
from workbench.models.masks import Mask, head_writes, masked_z, published_queries
from workbench.models.walk import BasePass, base_pass, batch_key, resume
from workbench.prompts.prompt import Prompt

LIMIT, HALF, NOTHING = Mask(), Mask(form="scale", factor=0.5), Mask(form="scale", factor=0.0)
# Above this many layers or heads, a spread of them stands for all, so that a real model is checked in minutes.
MOST = 6


class Failed(Exception):
    """The check did not hold."""


class NotApplicable(Exception):
    """The family gives this check nothing to look at."""


class Probe:
    """The model under check, a prompt, and its base pass."""

    def __init__(self, model: HookedLVLM) -> None:
        self.model = model
        self.prompt: Prompt = probe_prompt(model)
        if self.prompt.image is not None:
            # Not square, so that rows and columns cannot be mistaken for each other.
            self.prompt = dataclasses.replace(self.prompt, image=self.prompt.image.resize((64, 40)))
        self.limit = tolerance(model)

    @cached_property
    def encoded(self) -> Encoded:
        return self.model.encode(self.prompt)

    @cached_property
    def base(self) -> BasePass:
        return base_pass(self.model, [self.encoded])

    @cached_property
    def other_prompt(self) -> Prompt:
        """As long as the prompt, but with other words and, where there is one, another picture."""
        image = ImageOps.invert(self.prompt.image) if self.prompt.image is not None else None
        return dataclasses.replace(self.prompt, id="self-check-2", text="this is what", image=image)

    @property
    def layers(self) -> list[int]:
        return spread(self.model.masked_layers)

    @property
    def heads(self) -> list[int]:
        return spread(range(self.model.n_heads))

    @property
    def half_the_heads(self) -> tuple[int, ...]:
        return tuple(range(0, self.model.n_heads, 2))

    def full(self, prompt: Prompt | None = None) -> Tensor:
        """Final state of a whole forward under whatever is held on the model, `[d_model]`."""
        return self.model.state(prompt or self.prompt)

    def near(self, what: str, found: Tensor, wanted: Tensor, limit: float | None = None) -> float:
        limit = self.limit if limit is None else limit
        error = relative_error(found, wanted)
        if not error <= limit:
            raise Failed(f"{what}: differ by {error:.1e} of the largest value, wanted at most {limit:.1e}")
        return error


def spread(numbers: Sequence[int]) -> list[int]:
    """All of a short list; of a long one, `MOST` from first to last."""
    if len(numbers) <= MOST:
        return list(numbers)
    return sorted({numbers[round(i * (len(numbers) - 1) / (MOST - 1))] for i in range(MOST)})


def check_logits(probe: Probe) -> str:
    """Our final state, unembedded, gives the logits of transformers' own forward with eager attention."""
    with eager_attention(probe.model), torch.no_grad():
        theirs = probe.model.hf(**probe.encoded.model_inputs, use_cache=False).logits[0, -1]
    return (
        f"largest difference {probe.near('logits', probe.model.logits(probe.prompt), theirs.to(probe.model.dtype)):.1e}"
    )


def check_states(probe: Probe) -> str:
    """What each decoder layer is given is what transformers' eager forward gives it."""
    model, seen = probe.model, {}

    def keep(number: int) -> Any:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen[number] = args[0] if args else kwargs["hidden_states"]

        return hook

    handles = [layer.register_forward_pre_hook(keep(n), with_kwargs=True) for n, layer in enumerate(model.layers)]
    try:
        with eager_attention(model), torch.no_grad():
            model.hf(**probe.encoded.model_inputs, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    if set(seen) != set(probe.base.inputs):
        raise Failed(f"layers {sorted(set(seen) ^ set(probe.base.inputs))} ran on one road only")
    worst = max(probe.near(f"input of layer {n}", probe.base.inputs[n], seen[n]) for n in seen)
    return f"{len(seen)} layers, largest difference {worst:.1e}"


def check_sites(probe: Probe) -> str:
    """Each maskable layer's attention passes the door once; z has its heads, and W_O turns it into the output."""
    model, base = probe.model, probe.base
    before = {number: site.calls for number, site in model.sites.items()}
    probe.full()
    for number, site in model.sites.items():
        if site.calls - before[number] != 1:
            raise Failed(
                f"the attention of layer {number} ran {site.calls - before[number]} times in one forward, wanted 1"
            )
        recorded = base.recordings[number]
        wanted = (1, base.n_pos, model.n_heads, model.d_head)
        if tuple(recorded.z.shape) != wanted or recorded.value.shape[1] != model.n_kv_heads:
            raise Failed(
                f"layer {number}: z is {tuple(recorded.z.shape)} with {recorded.value.shape[1]} value heads, wanted "
                f"{wanted} (row, pos, head, d_head) and {model.n_kv_heads}"
            )
        written = getattr(model.attentions[number], model.family.output)(recorded.z.flatten(-2))
        probe.near(f"z · W_O of layer {number}", written, base.attention_out[number])
    skipped = sorted(set(range(model.n_layers)) - set(model.sites))
    note = f"; layers {', '.join(map(str, skipped))} have no maskable heads" if skipped else ""
    return f"{len(model.sites)} layers x {model.n_heads} heads ({model.n_kv_heads} key/value) x {model.d_head}{note}"


def check_looking(probe: Probe) -> str:
    """Recording leaves the logits bit for bit as they were."""
    if not torch.equal(probe.base.logits[0], probe.model.logits(probe.prompt)):
        raise Failed("recording changed the logits")
    return "bit-identical"


def check_edits(probe: Probe) -> str:
    """Masking every other head moves the final state from every layer, with the factor used and with half of it.

    A layer in which the mask changes nothing that is written is passed over, but for each mask some layer must act.
    """
    model, base = probe.model, probe.base
    bound = movement_bound(model, relative_error(resume(model, base, 0, 1)[:, 0], base.state))
    movements = []
    for projection in ("query", "value"):
        for mask in (LIMIT, HALF):
            what = f"the {projection} mask (factor {mask.factor}) on every other head"
            acted = 0
            for layer in probe.layers:
                delta = masked_z(model, base, layer, projection, mask) - base.recordings[layer].z
                writes = head_writes(model, layer, delta, [probe.half_the_heads])
                if relative_error(writes[:, 0], base.inputs[layer]) < bound:
                    continue
                moved = relative_error(resume(model, base, layer, 1, writes=writes)[:, 0], base.state)
                movements.append(moved)
                acted += moved > bound
                if not moved > bound and model.truth is None:
                    raise Failed(
                        f"{what} of layer {layer} moves the final state by {moved:.1e}, wanted over {bound:.1e}"
                    )
            if not acted:
                raise Failed(f"{what} moves the final state from no layer")
    return f"smallest movement {min(movements):.1e}"


def check_resume(probe: Probe) -> str:
    """Going on from any layer gives the state of the whole forward."""
    model, base = probe.model, probe.base
    whole = probe.full()
    worst = max(
        probe.near(f"from layer {n}", resume(model, base, n, 1)[0, 0], whole) for n in spread(range(model.n_layers))
    )
    return f"{model.n_layers} depths, largest difference {worst:.1e}"


def check_rows(probe: Probe) -> str:
    """Heads as rows of one batch, for two prompts at once, give what each gives alone in a whole forward."""
    model = probe.model
    prompts = [probe.prompt, probe.other_prompt]
    encoded = [model.encode(p) for p in prompts]
    if batch_key(encoded[0]) != batch_key(encoded[1]):
        raise Failed(f"two prompts of equal shape got different batch keys: {[batch_key(e) for e in encoded]}")
    base = base_pass(model, encoded)
    worst = max(probe.near(f"{p.id} in a batch", base.state[i], probe.full(p)) for i, p in enumerate(prompts))
    rows = [(head,) for head in probe.heads]
    for layer in probe.layers:
        for projection in ("query", "value"):
            delta = masked_z(model, base, layer, projection, LIMIT) - base.recordings[layer].z
            batched = resume(model, base, layer, len(rows), writes=head_writes(model, layer, delta, rows))
            for row, (head,) in enumerate(rows):
                number = (layer + head) % 2
                alone = model.state(prompts[number], heads=[(layer, head)], projection=projection)
                what = f"{projection} mask on L{layer}H{head}"
                worst = max(worst, probe.near(what, batched[number, row], alone))
    return f"{len(probe.layers)} layers x {len(rows)} heads x 2 projections, largest difference {worst:.1e}"


def check_value_heads(probe: Probe) -> str:
    """A value mask equals zeroing that query head's channels at the input of W_O, with no help from us."""
    model, worst = probe.model, 0.0
    for layer in probe.layers:
        output = getattr(model.attentions[layer], model.family.output)
        for head in probe.heads:
            with channels_zeroed(output, head, model.n_heads):
                theirs = probe.full()
            ours = model.state(probe.prompt, heads=[(layer, head)], projection="value")
            worst = max(worst, probe.near(f"value mask on L{layer}H{head}", ours, theirs))
    return f"largest difference {worst:.1e}"


@contextmanager
def channels_zeroed(module: Any, head: int, n_heads: int) -> Iterator[None]:
    """Zero one of `n_heads` equal slices of a module's input."""

    def zero(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        kept = args[0].unflatten(-1, (n_heads, -1)).clone()
        kept[..., head, :] = 0
        return (kept.flatten(-2), *args[1:])

    handle = module.register_forward_pre_hook(zero)
    try:
        yield
    finally:
        handle.remove()


def check_query_limit(probe: Probe) -> str:
    """The closed form of the query mask equals queries times 0, through the layer's real attention."""
    model, base, worst = probe.model, probe.base, 0.0
    for layer in model.masked_layers:
        closed = masked_z(model, base, layer, "query", LIMIT)
        scaled = masked_z(model, base, layer, "query", NOTHING)
        worst = max(worst, probe.near(f"closed form of layer {layer}", closed, scaled))
    return f"largest difference {worst:.1e}"


def check_query_norm(probe: Probe) -> str:
    """Halving W_q halves the scores where no norm follows, and does next to nothing where the family says one does."""
    model, base = probe.model, probe.base
    if probe.model.family.query_weights is None and not hasattr(model.attentions[model.masked_layers[0]], "q_proj"):
        raise NotApplicable("no query projection to scale")
    undone = []
    for layer in probe.layers:
        published = masked_z(model, base, layer, "query", Mask(form="as_published", factor=0.5))
        halved = masked_z(model, base, layer, "query", HALF)
        full = base.recordings[layer].z
        if relative_error(published, full) < 0.1 * relative_error(halved, full):
            undone.append(layer)
        else:
            probe.near(f"half of W_q in layer {layer}", published, halved)
    if bool(undone) != model.family.query_norm:
        raise Failed(
            f"a norm undoes half of W_q in layers {undone or 'none'}, but the family says "
            f"query_norm={model.family.query_norm}"
        )
    return f"a norm undoes weight scaling in layers {undone}" if undone else "weight scaling is score scaling"


def check_published(probe: Probe) -> str:
    """The published mask acts on the heads named and on no other."""
    model, base = probe.model, probe.base
    for layer in probe.layers:
        head = model.n_heads - 1
        with published_queries(model, {layer: [head]}, 1e-5):
            z = base_pass(model, [probe.encoded]).recordings[layer].z
        before = base.recordings[layer].z
        probe.near(f"other heads of layer {layer}", z[:, :, :head], before[:, :, :head])
        if torch.equal(z[:, :, head], before[:, :, head]):
            raise Failed(f"W_q times 1e-5 changed nothing in L{layer}H{head}")
    return f"last head of {len(probe.layers)} layers"


def check_positions(probe: Probe) -> str:
    """A mask from some position on: going on from the masked layer equals the whole forward."""
    model, base, worst = probe.model, probe.base, 0.0
    kinds = ("last", "after_image") if probe.encoded.image_span else ("last",)
    for positions in kinds:
        mask = Mask(positions=positions)  # type: ignore[arg-type]
        start = mask.start(probe.encoded)
        for layer in probe.layers[:-1] or probe.layers:
            for projection in ("query", "value"):
                z = base.recordings[layer].z
                delta = (masked_z(model, base, layer, projection, mask) - z)[:, start:]
                writes = head_writes(model, layer, delta, [(0,), (model.n_heads - 1,)])
                rows = resume(model, base, layer, 2, writes=writes, start=start)[0]
                for row, head in enumerate((0, model.n_heads - 1)):
                    whole = model.state(probe.prompt, heads=[(layer, head)], projection=projection, mask=mask)
                    worst = max(worst, probe.near(f"{projection} mask, {positions}, L{layer}H{head}", rows[row], whole))
    return f"{', '.join(kinds)}: largest difference {worst:.1e}"


def check_generation(probe: Probe) -> str:
    """A mask held while decoding gives, token by token, the logits of recomputing everything under the mask."""
    model, worst = probe.model, 0.0
    heads = [(layer, head) for layer in probe.layers[:2] for head in probe.half_the_heads]
    wide = max(probe.limit, tolerance_of(torch.float32))  # transformers hands out generation logits in float32
    for projection in ("query", "value"):
        asked: dict[str, Any] = {"heads": heads, "projection": projection, "max_new_tokens": 5, "min_new_tokens": 5}
        # A placeholder generated as text would be taken for a picture that is not there.
        asked |= {"output_logits": True, "suppress_tokens": sorted(set(probe.encoded.input_ids[0].tolist()))}
        cached = model.generated(probe.prompt, **asked)
        anew = model.generated(probe.prompt, **asked, use_cache=False, past_key_values=None)
        for step, (ours, theirs) in enumerate(zip(cached.logits, anew.logits, strict=True)):
            worst = max(worst, probe.near(f"{projection} mask, generated token {step}", ours[0], theirs[0], wide))
        first = model.logits(probe.prompt, heads=heads, projection=projection)
        probe.near(f"{projection} mask, first token", cached.logits[0][0], first.to(cached.logits[0]), wide)
    return f"5 tokens, largest difference {worst:.1e}"


def tolerance_of(dtype: torch.dtype) -> float:
    return 300 * torch.finfo(dtype).eps


def check_image(probe: Probe) -> str:
    """Each placeholder stands for one feature of the picture, no other position does, and the layout knows them all."""
    model, encoded = probe.model, probe.encoded
    if probe.prompt.image is None or not encoded.image_span:
        raise NotApplicable("no image tower")
    other = model.encode(dataclasses.replace(probe.prompt, image=ImageOps.invert(probe.prompt.image)))
    base, changed = probe.base, base_pass(model, [other])
    if torch.equal(base.state, changed.state) and model.truth is None:
        raise Failed("another picture gives the same final state")
    placed = encoded.image_positions
    moved = (base.inputs[0] != changed.inputs[0]).any(-1)[0].cpu()
    if (moved & ~placed).any():
        raise Failed(
            f"the picture reaches positions {(moved & ~placed).nonzero().flatten().tolist()} that are no placeholders"
        )
    if encoded.patch_boxes is None:
        if moved.any():
            raise Failed("the family's layout does not account for the image tokens")
        return f"{int(placed.sum())} placeholder; the picture enters by cross-attention"
    in_picture = ~encoded.patch_boxes.isnan().any(-1)
    # The planted models' towers are written by hand and blind to most pictures.
    if not torch.equal(moved[placed], in_picture) and model.truth is None:
        raise Failed(
            f"{int(moved.sum())} positions carry the picture, but {int(placed.sum())} placeholders less "
            f"{int((~in_picture).sum())} separators were laid out"
        )
    start, stop = encoded.image_span
    return f"{int(placed.sum())} placeholders from {start} to {stop}, {int((~in_picture).sum())} separators"


def check_text(probe: Probe) -> str:
    """A prompt without a picture works too, from any layer."""
    model = probe.model
    if probe.prompt.image is None:
        raise NotApplicable("no image tower: every prompt is one")
    prompt = dataclasses.replace(probe.prompt, image=None)
    try:
        encoded = model.encode(prompt)
    except ModelError as error:
        raise NotApplicable(f"refused: {error}") from error
    base, whole = base_pass(model, [encoded]), probe.full(prompt)
    errors = [probe.near(f"from layer {n}", resume(model, base, n, 1)[0, 0], whole) for n in probe.layers]
    return f"largest difference {max(errors):.1e}"


def check_bridge(probe: Probe) -> str:
    """TransformerLens' bridge gives the same logits, and a head zeroed at its hook gives our value mask."""
    model = probe.model
    try:
        bridge = model.bridge
    except ModelError as error:
        raise NotApplicable(str(error)) from error
    logits = model.run_with_hooks(probe.prompt)[0, -1]
    difference = probe.near("bridge logits", logits, model.logits(probe.prompt).to(logits))
    layer, head = model.masked_layers[-1], model.n_heads - 1
    calls = []

    def zero(value: Tensor, hook: Any) -> Tensor:
        calls.append(hook)
        heads = value.clone() if value.ndim == 4 else value.unflatten(-1, (model.n_heads, -1)).clone()
        heads[:, :, head] = 0
        return heads.view(value.shape)

    masked = model.run_with_hooks(probe.prompt, fwd_hooks=[(f"blocks.{layer}.attn.o.hook_in", zero)])[0, -1]
    if not calls:
        raise Failed(f"the bridge's hook blocks.{layer}.attn.o.hook_in did not run")
    ours = model.logits(probe.prompt, heads=[(layer, head)], projection="value")
    probe.near(f"value mask on L{layer}H{head} through the bridge", masked, ours.to(masked))
    return f"{type(bridge.adapter).__name__}: largest difference {difference:.1e}"


CHECKS: dict[str, Callable[[Probe], str]] = {
    "parity with transformers: logits": check_logits,
    "parity with transformers: layer inputs": check_states,
    "every site runs": check_sites,
    "looking changes nothing": check_looking,
    "edits move the state": check_edits,
    "going on from any layer": check_resume,
    "heads as rows": check_rows,
    "value heads": check_value_heads,
    "query mask in closed form": check_query_limit,
    "query norm": check_query_norm,
    "published mask": check_published,
    "masks at some positions": check_positions,
    "mask while generating": check_generation,
    "image tokens": check_image,
    "prompt without a picture": check_text,
    "TransformerLens bridge": check_bridge,
}
