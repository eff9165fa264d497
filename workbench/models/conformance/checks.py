"""The checks of `workbench check`, one function each (see `workbench.models.conformance.probe.check`)."""

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from PIL import ImageOps
from torch import Tensor

from workbench.errors import ModelError, PromptError
from workbench.models.conformance.at_load import eager_attention, movement_bound
from workbench.models.conformance.probe import Failed, NotApplicable, Probe, check, spread
from workbench.models.masks import Mask, head_writes, masked_z, published_queries
from workbench.models.probes import eager_tolerance, relative_error
from workbench.models.walk import base_pass, batch_key, resume

LIMIT, HALF, NOTHING = Mask(), Mask(form="scale", factor=0.5), Mask(form="scale", factor=0.0)
BOTH = ("query", "value")


@check("parity with transformers: logits")
def check_logits(probe: Probe) -> Iterator[tuple[Any, ...]]:
    """Our final state, unembedded, gives the logits of transformers' own forward with eager attention."""
    with eager_attention(probe.model), torch.no_grad():
        theirs = probe.model.hf(**probe.encoded.model_inputs, use_cache=False).logits[0, -1]
    yield "logits", probe.model.logits(probe.prompt), theirs.to(probe.model.dtype)


@check("parity with transformers: layer inputs")
def check_states(probe: Probe) -> Any:
    """What each decoder layer is given is what transformers' eager forward gives it."""
    model, base, seen = probe.model, probe.base, {}

    def keep(number: int) -> Any:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen[number] = args[0] if args else kwargs["hidden_states"]

        return hook

    with ExitStack() as hooks, eager_attention(model), torch.no_grad():
        for number, layer in enumerate(model.layers):
            hooks.callback(layer.register_forward_pre_hook(keep(number), with_kwargs=True).remove)
        model.hf(**probe.encoded.model_inputs, use_cache=False)
    if set(seen) != set(base.inputs):
        raise Failed(f"layers {sorted(set(seen) ^ set(base.inputs))} ran on one road only")
    for number, theirs in seen.items():
        yield f"input of layer {number}", base.inputs[number], theirs
    return f"{len(seen)} layers, "


@check("every site runs")
def check_sites(probe: Probe) -> str:
    """Each maskable layer's attention passes the door once; z has its heads, and W_O turns it into the output."""
    model, base = probe.model, probe.base
    before = {number: site.calls for number, site in model.sites.items()}
    probe.full()
    for number, site in model.sites.items():
        if (calls := site.calls - before[number]) != 1:
            raise Failed(f"the attention of layer {number} ran {calls} times in one forward, wanted 1")
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


@check("looking changes nothing")
def check_looking(probe: Probe) -> str:
    """Recording leaves the logits bit for bit as they were."""
    if not torch.equal(probe.base.logits[0], probe.model.logits(probe.prompt)):
        raise Failed("recording changed the logits")
    return "bit-identical"


@check("edits move the state")
def check_edits(probe: Probe) -> str:
    """Masking every other head moves the final state from every layer, with the factor used and with half of it.

    A layer in which the mask changes nothing that is written is passed over, but for each mask some layer must act.
    """
    model, base = probe.model, probe.base
    bound = movement_bound(model, relative_error(resume(model, base, 0, 1)[:, 0], base.state))
    movements = []
    for projection, mask in ((p, m) for p in BOTH for m in (LIMIT, HALF)):
        what = f"the {projection} mask (factor {mask.factor}) on every other head"
        acted = 0
        for layer in probe.layers:
            writes = head_writes(model, layer, probe.delta(layer, projection, mask), [probe.half_the_heads])
            if relative_error(writes[:, 0], base.inputs[layer]) < bound:
                continue
            moved = relative_error(resume(model, base, layer, 1, writes=writes)[:, 0], base.state)
            movements.append(moved)
            acted += moved > bound
            if not moved > bound and model.truth is None:
                raise Failed(f"{what} of layer {layer} moves the final state by {moved:.1e}, wanted over {bound:.1e}")
        if not acted:
            raise Failed(f"{what} moves the final state from no layer")
    return f"smallest movement {min(movements):.1e}"


@check("going on from any layer")
def check_resume(probe: Probe) -> Any:
    """Going on from any layer gives the state of the whole forward."""
    model, whole = probe.model, probe.full()
    for layer in spread(range(model.n_layers)):
        yield f"from layer {layer}", resume(model, probe.base, layer, 1)[0, 0], whole
    return f"{model.n_layers} depths, "


@check("heads as rows")
def check_rows(probe: Probe) -> Any:
    """Heads as rows of one batch, for two prompts at once, give what each gives alone in a whole forward."""
    model = probe.model
    prompts = [probe.prompt, probe.other_prompt]
    encoded = [model.encode(p) for p in prompts]
    if batch_key(encoded[0]) != batch_key(encoded[1]):
        raise Failed(f"two prompts of equal shape got different batch keys: {[batch_key(e) for e in encoded]}")
    base = base_pass(model, encoded)
    for prompt, state in zip(prompts, base.state, strict=True):
        yield f"{prompt.id} in a batch", state, probe.full(prompt)
    rows = [(head,) for head in probe.heads]
    for layer, projection in ((x, p) for x in probe.layers for p in BOTH):
        delta = masked_z(model, base, layer, projection, LIMIT) - base.recordings[layer].z
        batched = resume(model, base, layer, len(rows), writes=head_writes(model, layer, delta, rows))
        for row, (head,) in enumerate(rows):
            number = (layer + head) % 2
            alone = model.state(prompts[number], heads=[(layer, head)], projection=projection)
            yield f"{projection} mask on L{layer}H{head}", batched[number, row], alone
    return f"{len(probe.layers)} layers x {len(rows)} heads x 2 projections, "


@check("value heads")
def check_value_heads(probe: Probe) -> Iterator[tuple[Any, ...]]:
    """A value mask equals zeroing that query head's channels at the input of W_O, with no help from us."""
    model = probe.model
    for layer, head in ((x, h) for x in probe.layers for h in probe.heads):
        with channels_zeroed(getattr(model.attentions[layer], model.family.output), head, model.n_heads):
            theirs = probe.full()
        ours = model.state(probe.prompt, heads=[(layer, head)], projection="value")
        yield f"value mask on L{layer}H{head}", ours, theirs


def zeroed(value: Tensor, head: int, n_heads: int) -> Tensor:
    """`[row, pos, head, d_head]`, or the same with the last two flattened, with one head's channels at 0."""
    heads = value.clone() if value.ndim == 4 else value.unflatten(-1, (n_heads, -1)).clone()
    heads[:, :, head] = 0
    return heads.view(value.shape)


@contextmanager
def channels_zeroed(module: Any, head: int, n_heads: int) -> Iterator[None]:
    """Zero one of `n_heads` equal slices of a module's input."""
    handle = module.register_forward_pre_hook(lambda _, args: (zeroed(args[0], head, n_heads), *args[1:]))
    try:
        yield
    finally:
        handle.remove()


@check("query mask in closed form")
def check_query_limit(probe: Probe) -> Iterator[tuple[Any, ...]]:
    """The closed form of the query mask equals queries times 0, through the layer's real attention."""
    for layer in probe.model.masked_layers:
        closed, scaled = (masked_z(probe.model, probe.base, layer, "query", mask) for mask in (LIMIT, NOTHING))
        yield f"closed form of layer {layer}", closed, scaled


@check("query norm")
def check_query_norm(probe: Probe) -> str:
    """Halving W_q halves the scores where no norm follows, and does next to nothing where the family says one does."""
    model, base = probe.model, probe.base
    if model.family.query_weights is None and not hasattr(model.attentions[model.masked_layers[0]], "q_proj"):
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


@check("published mask")
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


@check("masks at some positions")
def check_positions(probe: Probe) -> Any:
    """A mask from some position on: going on from the masked layer equals the whole forward."""
    model, heads = probe.model, (0, probe.model.n_heads - 1)
    kinds = ("last", "after_image") if probe.encoded.image_span else ("last",)
    for positions in kinds:
        mask = Mask(positions=positions)  # type: ignore[arg-type]
        start = mask.start(probe.encoded)
        for layer, projection in ((x, p) for x in probe.layers[:-1] or probe.layers for p in BOTH):
            delta = probe.delta(layer, projection, mask)[:, start:]
            writes = head_writes(model, layer, delta, [(head,) for head in heads])
            rows = resume(model, probe.base, layer, 2, writes=writes, start=start)[0]
            for row, head in zip(rows, heads, strict=True):
                whole = model.state(probe.prompt, heads=[(layer, head)], projection=projection, mask=mask)
                yield f"{projection} mask, {positions}, L{layer}H{head}", row, whole
    return f"{', '.join(kinds)}: "


@check("mask while generating")
def check_generation(probe: Probe) -> Any:
    """A mask held while decoding gives, token by token, the logits of recomputing everything under the mask."""
    model = probe.model
    heads = [(layer, head) for layer in probe.layers[:2] for head in probe.half_the_heads]
    wide = eager_tolerance(model)  # transformers hands out generation logits in float32
    for projection in BOTH:
        asked: dict[str, Any] = {"heads": heads, "projection": projection, "max_new_tokens": 5, "min_new_tokens": 5}
        # A placeholder generated as text would be taken for a picture that is not there.
        asked |= {"output_logits": True, "suppress_tokens": sorted(set(probe.encoded.input_ids[0].tolist()))}
        cached = model.generated(probe.prompt, **asked)
        anew = model.generated(probe.prompt, **asked, use_cache=False, past_key_values=None)
        for step, (ours, theirs) in enumerate(zip(cached.logits, anew.logits, strict=True)):
            yield f"{projection} mask, generated token {step}", ours[0], theirs[0], wide
        first = model.logits(probe.prompt, heads=heads, projection=projection)
        probe.near(f"{projection} mask, first token", cached.logits[0][0], first.to(cached.logits[0]), wide)
    return "5 tokens, "


@check("image tokens")
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
    if (stray := moved & ~placed).any():
        raise Failed(f"the picture reaches positions {stray.nonzero().flatten().tolist()} that are no placeholders")
    if encoded.patch_boxes is None:
        if moved.any():
            raise Failed("the family's layout does not account for the image tokens")
        return f"{int(placed.sum())} placeholder; the picture enters by cross-attention"
    in_picture = ~encoded.patch_boxes.isnan().any(-1)
    separators = int((~in_picture).sum())
    # The planted models' towers are written by hand and blind to most pictures.
    if not torch.equal(moved[placed], in_picture) and model.truth is None:
        raise Failed(
            f"{int(moved.sum())} positions carry the picture, but {int(placed.sum())} placeholders less "
            f"{separators} separators were laid out"
        )
    start, stop = encoded.image_span
    return f"{int(placed.sum())} placeholders from {start} to {stop}, {separators} separators"


@check("prompt without a picture")
def check_text(probe: Probe) -> Any:
    """A prompt without a picture works too, from any layer."""
    model = probe.model
    if probe.prompt.image is None:
        raise NotApplicable("no image tower: every prompt is one")
    prompt = dataclasses.replace(probe.prompt, image=None)
    try:
        encoded = model.encode(prompt)
    except (ModelError, PromptError) as error:
        raise NotApplicable(f"refused: {error}") from error
    base, whole = base_pass(model, [encoded]), probe.full(prompt)
    for layer in probe.layers:
        yield f"from layer {layer}", resume(model, base, layer, 1)[0, 0], whole


@check("TransformerLens bridge")
def check_bridge(probe: Probe) -> str:
    """TransformerLens' bridge gives the same logits, and a head zeroed at its hook gives our value mask."""
    model = probe.model
    from workbench.models.families.adapters import has_adapter

    if not has_adapter(model.family.architecture):
        raise NotApplicable(f"TransformerLens has no adapter for {model.family.architecture}")
    bridge = model.bridge
    logits = model.run_with_hooks(probe.prompt)[0, -1]
    difference = probe.near("bridge logits", logits, model.logits(probe.prompt).to(logits))
    layer, head = model.masked_layers[-1], model.n_heads - 1
    calls = []

    def zero(value: Tensor, hook: Any) -> Tensor:
        calls.append(hook)
        return zeroed(value, head, model.n_heads)

    masked = model.run_with_hooks(probe.prompt, fwd_hooks=[(f"blocks.{layer}.attn.o.hook_in", zero)])[0, -1]
    if not calls:
        raise Failed(f"the bridge's hook blocks.{layer}.attn.o.hook_in did not run")
    ours = model.logits(probe.prompt, heads=[(layer, head)], projection="value")
    probe.near(f"value mask on L{layer}H{head} through the bridge", masked, ours.to(masked))
    return f"{type(bridge.adapter).__name__}: largest difference {difference:.1e}"
