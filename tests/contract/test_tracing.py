"""On every family a trace gives what whole forwards under plain PyTorch hooks give, in float64."""

import dataclasses
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
import torch
from PIL import ImageOps

import workbench as wb
from workbench.models.conformance.at_load import probe_prompt
from workbench.models.families import FAMILIES
from workbench.models.precision import double_kept
from workbench.tracing.pairs import line_up
from workbench.tracing.records import FLOWS

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # transformers' PaliGemma
# One of each kind that a trace could trip over: tiles, positions in three axes, pictures that come in again between
# layers or by cross-attention, norms behind attention and MLP, attention and MLP side by side, experts, fused queries.
KINDS = (
    "llava", "llava_next", "qwen2_vl", "qwen3_vl", "mllama", "gemma3", "cohere2", "llama4", "phi3_v", "llama"
)  # fmt: skip
# Two orders of summation in float64: relative to states of size about 10, and to angles in degrees.
CLOSE = {"rtol": 1e-8, "atol": 1e-8}


def twins_for(model):
    """Two prompts that differ in words and, where there are pictures, in the picture."""
    one = dataclasses.replace(probe_prompt(model), id="one", label="unsafe")
    words = " ".join(reversed(one.text.split()))
    picture = None if one.image is None else ImageOps.invert(one.image)
    return one, dataclasses.replace(one, id="other", label="safe", text=words, image=picture)


@contextmanager
def hooked(module, *, before=None, after=None, with_kwargs=False):
    hook = (
        module.register_forward_pre_hook(before, with_kwargs=with_kwargs)
        if before
        else module.register_forward_hook(after)
    )
    try:
        yield
    finally:
        hook.remove()


class ByHand:
    """Whole forwards of one prompt, with hooks on transformers' own modules."""

    def __init__(self, model):
        self.model, self.known = model, {}

    def places(self, layer):
        """(module, whether its input counts) of each component."""
        own = self.model.layers[layer]
        attention, mlp = getattr(own, self.model.family.attention), getattr(own, self.model.family.mlp)
        found = {"attention": (attention, False), "mlp": (mlp, False)}
        found["head"] = (getattr(attention, self.model.family.output), True)
        above = layer + 1
        found["residual"] = (self.model.layers[above] if above < self.model.n_layers else self.model.final_norm, True)
        return found

    def run(self, encoded, *contexts):
        kept = []
        with ExitStack() as stack, torch.no_grad(), double_kept(self.model.dtype):
            for context in contexts:
                stack.enter_context(context)
            keep = hooked(self.model.final_norm, after=lambda m, a, output: kept.append(output))
            stack.enter_context(keep)
            self.model.hf(**encoded.model_inputs, use_cache=False)
        return kept[-1].reshape(-1, self.model.d_model)[-1]

    def activation(self, encoded, module, is_input):
        if (id(encoded), id(module)) in self.known:
            return self.known[id(encoded), id(module)]
        kept = []
        if is_input:
            seen = hooked(module, before=lambda m, args, kwargs: kept.append(held(args, kwargs)), with_kwargs=True)
        else:
            seen = hooked(module, after=lambda m, a, output: kept.append(first(output)))
        self.run(encoded, seen)
        found = self.known[id(encoded), id(module)] = kept[0].reshape(encoded.n_tokens, -1)
        return found

    def patched(self, own, twin, layer, component, where, head=None):
        """The final state of `own` with the component's numbers of `twin` where `where` says so."""
        module, is_input = self.places(layer)[component]
        values = self.activation(twin, module, is_input)
        here = where[:, None].expand(values.shape).clone()
        if head is not None:
            width = self.model.d_head
            here[:, : head * width] = False
            here[:, (head + 1) * width :] = False

        def changed(now):
            return torch.where(here, values, now.reshape(values.shape)).view_as(now)

        def before(module, args, kwargs):
            if args:
                return (changed(args[0]), *args[1:]), kwargs
            return args, kwargs | {"hidden_states": changed(kwargs["hidden_states"])}

        def after(module, args, output):
            return (changed(output[0]), *output[1:]) if isinstance(output, tuple) else changed(output)

        how = {"before": before, "with_kwargs": True} if is_input else {"after": after}
        return self.run(own, hooked(module, **how))

    def cut(self, own, layers, keys, queries):
        """The final state of `own` whose attention in some layers has a mask made by hand."""
        n_pos = own.n_tokens

        def before(module, args, kwargs):
            mask = kwargs.get("attention_mask")
            if mask is None:
                mask = torch.ones(n_pos, n_pos, dtype=torch.bool).tril()[None, None]
            mask = mask.clone()
            for query in queries.nonzero().flatten().tolist():
                for key in keys.nonzero().flatten().tolist():
                    mask[..., query, key] = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
            return args, kwargs | {"attention_mask": mask}

        attentions = [self.model.attentions[layer] for layer in layers]
        return self.run(own, *(hooked(a, before=before, with_kwargs=True) for a in attentions))


def held(args, kwargs):
    return args[0] if args else kwargs["hidden_states"]


def first(output):
    return output[0] if isinstance(output, tuple) else output


def degrees(one, other):
    cos = (one @ other) / (one.norm() * other.norm())
    return float(torch.rad2deg(torch.arccos(cos.clamp(-1, 1))))


@pytest.mark.parametrize("name", [n for n in FAMILIES if n not in KINDS])
def test_the_whole_stream_and_the_mlps_of_every_family_are_the_twins(name, tiny):
    model = tiny(name)
    trace = wb.trace(model, twins_for(model), components=("residual", "mlp"), sources=0, window=0, progress=False)
    left = trace["patch_left"].sel(token_group="all").isel(layer=-1)
    assert (left.sel(component="residual") == 0.0).all()
    # Behind the last attention the MLP is a part of what is left to the twin's state, and not all of it.
    base = trace["patch_left"].sel(component="mlp").isel(layer=-1).sel(token_group="hazard")
    assert ((left.sel(component="mlp") != base) & (left.sel(component="mlp") > 0)).all()


@pytest.mark.parametrize("name", KINDS)
def test_a_trace_equals_whole_forwards_under_hooks(name, tiny):
    model, by_hand = tiny(name), ByHand(tiny(name))
    pair = twins_for(model)
    twins = line_up(model, "pair", pair)
    first_layer, *_, last_layer = model.masked_layers
    heads = [(first_layer, 1), (last_layer, 4)]
    trace = wb.trace(model, pair, heads=heads, sources=0, window=2, rows=16, progress=False)
    states = [by_hand.run(encoded) for encoded in twins.encoded]
    there = [group for group in ("picture", "hazard", "template", "last") if twins.groups[group].any()]
    assert there[-3:] == ["hazard", "template", "last"]
    moved = 0.0
    # Both layers, both directions and all groups in turn, and every component somewhere.
    components = ("residual", "attention", "mlp", "head")
    for turn, group in enumerate(there):
        own, other = (turn // 2 % 2, 1 - turn // 2 % 2)
        for place, layer in [(turn % 2, (first_layer, last_layer)[turn % 2])]:
            for component in (components[turn % 4], components[(turn + 1) % 4]):
                head = heads[place][1] if component == "head" else None
                state = by_hand.patched(
                    twins.encoded[own], twins.encoded[other], layer, component, twins.groups[group], head
                )
                at = {"pair": 0, "direction": own, "layer": layer}
                prefix = "head" if head is not None else "patch"
                cell = trace.isel(at).sel(token_group=group)
                cell = cell.sel(head=head) if head is not None else cell.sel(component=component)
                left = float((state - states[other]).norm())
                np.testing.assert_allclose(float(cell[f"{prefix}_left"]), left, err_msg=component, **CLOSE)
                angle = degrees(state, states[own])
                # The arc cosine of the hand-made value loses half its digits near 0.
                assert abs(float(cell[f"{prefix}_deflection"]) - angle) < 1e-5, (component, group)
                moved = max(moved, angle)
    assert moved > 0.5, "the patches hardly act: equal numbers would prove nothing"
    # The whole stream is all there is, unless the picture comes in again above: between layers, or by cross-attention.
    enters_above = model.family.decoder_record or len(model.masked_layers) < model.n_layers
    whole = trace["patch_left"].sel(token_group="all", component="residual")
    assert float(abs(whole[..., -1 if enters_above else 0 :]).max()) == 0.0
    width, moved = 2, 0.0
    for flow, (keys, queries) in FLOWS.items():
        if flow not in ("picture → text", "picture → last", "text → last"):
            continue
        where = [twins.of(groups) for groups in (keys, queries)]
        if not all(mask.any() for mask in where):
            assert trace["cut_kl"].sel(flow=flow).isnull().all()
            continue
        window = int(trace["window"][-1])
        assert trace["window_last"][-1] == last_layer
        layers = [n for n in model.masked_layers if n >= window]
        assert len(layers) == width
        state = by_hand.cut(twins.encoded[0], layers, *where)
        angle = degrees(state, states[0])
        assert abs(float(trace["cut_deflection"].sel(flow=flow)[0, 0, -1]) - angle) < 1e-5, flow
        moved = max(moved, angle)
    assert moved > 0.5, "the cuts hardly act"
