"""Tracing: paths against hooks by hand, knock-outs, what lines up, what is stored, and how much work it is."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

import workbench as wb
from tests.builders.models import seeded, tiny
from tests.builders.prompts import pictures
from workbench.errors import ArgumentError, MaskError, PromptError, RunError
from workbench.models.hooked import HookedLVLM
from workbench.models.precision import double_kept
from workbench.models.walk import base_pass
from workbench.prompts.prompt import Prompt
from workbench.tracing import job as tracing
from workbench.tracing.behaviour import Patch, patched_replies
from workbench.tracing.lens import projections
from workbench.tracing.pairs import line_up, pairs_of
from workbench.tracing.passes import TwinPass, put_in
from workbench.tracing.paths import head_paths

CLOSE = {"rtol": 1e-8, "atol": 1e-9}  # float64


def twins(n: int = 1, *, image: bool = False) -> list[Prompt]:
    """Pairs of texts of one length."""
    shown = pictures(2 * n) if image else [None] * (2 * n)
    words = [("a bomb", "the cat"), ("is this a bomb", "is this a cat"), ("what is a bomb here", "what is a cat here")]
    return [
        Prompt(id=f"{k}-{label}", text=words[k % 3][side], image=shown[2 * k + side], label=label, pair_id=f"pair {k}")
        for k in range(n)
        for side, label in enumerate(("unsafe", "safe"))
    ]


@pytest.fixture(scope="module")
def double() -> HookedLVLM:
    return tiny("llama", torch.float64)


@pytest.fixture(scope="module")
def trace(double):
    return wb.trace(double, twins(3), progress=False)


def z_under(model, encoded, layer, change=None):
    """z of every layer at the last position of a whole forward in which one layer's z is changed."""
    kept = {}
    hooks = [
        model.output(n).register_forward_pre_hook(
            lambda m, args, n=n: kept.__setitem__(n, args[0][0, -1].view(model.n_heads, model.d_head))
        )
        for n in model.masked_layers
    ]
    if change is not None:
        hooks.insert(0, model.output(layer).register_forward_pre_hook(lambda m, args: (change(args[0]),)))
    try:
        with torch.no_grad(), double_kept(model.dtype):
            model.hf(**encoded.model_inputs, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return kept


def test_total_and_direct_effects_equal_whole_forwards_under_hooks(double):
    model, (unsafe, safe) = double, twins(1)
    passes = TwinPass(model, line_up(model, "pair", (unsafe, safe)))
    layer, head = 0, 2
    found = {(n, e): told["write"][:, 0] for n, e, told in head_paths(passes, layer, [head])}
    own = slice(head * model.d_head, (head + 1) * model.d_head)
    for side in (0, 1):
        encoded, before = passes.twins.encoded[side], z_under(model, passes.twins.encoded[side], layer)
        z = passes.base.recordings[layer].z.flatten(2)

        def swapped(now, z=z, side=side):
            return torch.cat([now[..., : own.start], z[1 - side][None, :, own], now[..., own.stop :]], -1)

        after = z_under(model, encoded, layer, swapped)
        written = torch.zeros_like(z[side])
        written[:, own] = (z[1 - side] - z[side])[:, own]
        straight = model.output(layer)(written) - model.output(layer)(torch.zeros_like(written))
        for later in model.masked_layers[1:]:
            # Only what this layer's attention reads has the source's change in it.
            norm = model.layers[later].input_layernorm
            hook = norm.register_forward_pre_hook(lambda m, args, s=straight: (args[0] + s,))
            try:
                alone = z_under(model, encoded, layer)[later]
            finally:
                hook.remove()
            weight = model.output(later).weight.view(model.d_model, model.n_heads, model.d_head)
            for effect, z_then in (("total", after[later]), ("direct", alone)):
                change = torch.einsum("hk,dhk->hd", z_then - before[later], weight).norm(dim=-1)
                np.testing.assert_allclose(found[later, effect][side].numpy(), change.numpy(), **CLOSE, err_msg=effect)
    assert float(found[model.masked_layers[-1], "total"].max()) > 1e-3, "no path moves: equal zeros prove nothing"


def test_without_anything_between_the_whole_effect_is_direct():
    model = seeded("llama", torch.float64)
    with torch.no_grad():
        model.layers[1].mlp.down_proj.weight.zero_()
    passes = TwinPass(model, line_up(model, "pair", tuple(twins(1))))
    found = {(n, e): told for n, e, told in head_paths(passes, 1, [0, 3])}
    assert float(found[2, "total"]["write"].max()) > 1e-3
    for measure in ("write", "refusal"):
        torch.testing.assert_close(found[2, "total"][measure], found[2, "direct"][measure], rtol=1e-9, atol=1e-12)
        assert float(found[2, "indirect"][measure].abs().max()) < 1e-12
    assert float(found[3, "indirect"]["write"].max()) > 1e-3  # with a layer between, something is not


def test_where_the_later_heads_answer_linearly_the_effects_add_up():
    """A layer that looks evenly, behind a norm that divides by the same in all passes, is linear in what it reads."""
    model = seeded("llama", torch.float64)
    with torch.no_grad():
        for weight in model.layers[2].self_attn.q_proj.parameters():
            weight.zero_()
    model.layers[2].input_layernorm.forward = lambda hidden: hidden
    passes = TwinPass(model, line_up(model, "pair", tuple(twins(1))))
    found = {(n, e): told["refusal"] for n, e, told in head_paths(passes, 1, [0, 3])}
    assert float(found[2, "indirect"].abs().max()) > 1e-4
    torch.testing.assert_close(found[2, "total"], found[2, "direct"] + found[2, "indirect"], rtol=1e-9, atol=1e-12)
    gap = found[3, "total"] - found[3, "direct"] - found[3, "indirect"]
    assert float(gap.abs().max()) > 1e-6  # and elsewhere they need not


@pytest.mark.slow
def test_batches_of_any_size_give_the_same_numbers(double, trace):
    again = wb.trace(double, twins(1), rows=3, sources=0, progress=False)
    one = trace.sel(pair=["pair 0"])
    for name in map(str, again.data_vars):
        if again[name].dtype.kind == "f" and name != "lens_projection":  # which is of the other pairs
            np.testing.assert_allclose(again[name].values, one[name].values, **CLOSE, err_msg=name)


def test_work_is_counted_as_the_layers_saw_it(double):
    model, seen = double, []
    for layer in model.layers:
        hook = layer.register_forward_hook(
            lambda m, args, output: seen.append((output[0] if isinstance(output, tuple) else output).shape[:2].numel())
        )
        layer.count_hook = hook
    try:
        trace = wb.trace(model, twins(2), sources=0, progress=False)
    finally:
        for layer in model.layers:
            layer.count_hook.remove()
    assert trace.attrs["layer_tokens"] == sum(seen)
    assert trace.attrs["layer_tokens"] < 0.5 * trace.attrs["naive_layer_tokens"]
    groups = (trace["tokens_in_group"].values > 0).sum(1)
    of_pair = 2 * (groups * model.n_layers * (3 + model.n_heads)) + 2 * trace.sizes["window"] * 3
    assert trace.attrs["patches"] == of_pair.sum()


def test_of_equal_twins_nothing_runs_but_the_passes_themselves(double):
    one = twins(1)[0]
    pair = (one, dataclasses.replace(one, id="twin", label="safe"))
    trace = wb.trace(double, pair, sources=0, window=0, progress=False)
    n_pos = double.encode(one).n_tokens
    assert trace.attrs["layer_tokens"] == 2 * (double.n_layers * n_pos + 1)  # and the last position once more


def test_the_lens_ends_at_the_answer(trace):
    assert (trace["lens_kl"].isel(layer=-1) == 0).all()
    np.testing.assert_array_equal(trace["lens_refusal"].isel(layer=-1), trace["base_refusal"])
    np.testing.assert_array_equal(trace["lens_token"].isel(layer=-1), trace["base_token"])
    assert float(trace["lens_kl"].isel(layer=0).min()) > 1e-3


def test_no_pair_is_projected_on_its_own_direction():
    residual = np.random.default_rng(0).normal(size=(3, 2, 2, 5))
    found = projections(residual)
    for pair in range(3):
        others = np.delete(residual, pair, axis=0)
        for layer in range(2):
            direction = others[:, 0, layer].mean(0) - others[:, 1, layer].mean(0)
            along = residual[pair, :, layer] @ direction / np.linalg.norm(direction)
            np.testing.assert_allclose(found[pair, :, layer], along)
    assert np.isnan(projections(residual[:1])).all()


def test_what_lacks_a_picture_has_no_picture_cells(trace):
    for name in ("patch_left", "head_left"):
        assert trace[name].sel(token_group="picture").isnull().all()
        assert trace[name].sel(token_group=["hazard", "last", "all"]).notnull().all()
    pictured = [flow.startswith("picture") for flow in trace["flow"].values]
    assert (trace["cut_kl"].isnull().all(["pair", "side", "window"]).values == pictured).all()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"text": "the cat is here"}, r"have \d+ and \d+ tokens; they part at position \d+"),
        ({"image": None}, "'0-unsafe' has a picture and '0-safe' has none"),
        (
            {"label": "unsafe"},
            r"prompt '0-unsafe' \(unsafe\) has no safe twin of its own with the pair_id 'pair 0': none is here",
        ),
        ({"pair_id": "other"}, r"prompt '0-unsafe' \(unsafe\) has no safe twin of its own with the pair_id 'pair 0'"),
    ],
)
def test_what_is_no_pair_is_refused_by_name(change, says):
    unsafe, safe = twins(1, image=True)
    with pytest.raises(PromptError, match=says):
        wb.trace(tiny("llava"), [unsafe, dataclasses.replace(safe, **change)], progress=False)


def test_pictures_cut_into_other_tiles_are_refused():
    unsafe, safe = twins(1, image=True)
    wide = dataclasses.replace(safe, image=Image.new("RGB", (200, 40)))
    with pytest.raises(PromptError, match="The twins of pair 'pair 0' do not line up on"):
        wb.trace(tiny("llava_next"), [unsafe, wide], progress=False)


def test_what_cannot_be_traced_may_be_left_out(double, trace):
    prompts = [*twins(2), Prompt(id="alone", text="what is this")]
    prompts[3] = dataclasses.replace(prompts[3], text="is this a cat here")
    some = wb.trace(double, prompts, on_error="skip", progress=False)
    assert some["pair"].values.tolist() == ["pair 0"]
    assert set(json.loads(some.attrs["skipped"])) == {"pair 1", "alone"}  # a pair that does not line up, a prompt
    one = trace.sel(pair=["pair 0"])
    np.testing.assert_array_equal(some["patch_left"], one["patch_left"])


def test_two_prompts_alone_are_a_pair_and_variants_are_pairs_of_their_own():
    one, other = (dataclasses.replace(p, pair_id="") for p in twins(1))
    ((unsafe, safe),) = pairs_of([other, one])[0].values()
    assert (unsafe.id, safe.id) == (one.id, other.id)
    blank = [dataclasses.replace(p, id=f"{p.id} b", variant="blank image") for p in twins(1)]
    assert list(pairs_of([*twins(1), *blank])[0]) == ["pair 0", "pair 0, blank image"]
    second = dataclasses.replace(twins(1)[0], id="another")
    found, left = pairs_of([*twins(1), second])
    assert (found, list(left)) == ({}, ["0-unsafe", "0-safe", "another"])  # whose twin is it?


def test_arguments_are_checked(double):
    with pytest.raises(ArgumentError, match="components must be of residual, attention, mlp, heads"):
        wb.trace(double, twins(1), components=["logits"])
    with pytest.raises(MaskError, match=r"A window of 99 layers .* has 4 whose attention"):
        wb.trace(double, twins(1), window=99)
    with pytest.raises(MaskError, match="L0H77"):
        wb.trace(double, twins(1), heads=[(0, 77)])
    with pytest.raises(ArgumentError, match="sources must be a number of heads, or heads as"):
        wb.trace(double, twins(1), sources="many")
    few = wb.trace(double, twins(1), components="mlp", window=0, progress=False)
    assert not [n for n in few.data_vars if str(n).startswith(("head_", "cut_", "path_"))]
    assert few["component"].values.tolist() == ["mlp"]


@pytest.mark.slow
def test_a_stored_trace_is_the_trace_and_is_gone_on_with(double, trace, tmp_path, monkeypatch):
    place, whole = tmp_path / "trace.zarr", tracing.Job.traced

    def stops(job, twins, advance):
        if twins.name == "pair 2":
            raise KeyboardInterrupt
        return whole(job, twins, advance)

    monkeypatch.setattr(tracing.Job, "traced", stops)
    with pytest.raises(KeyboardInterrupt, match="holds 2 pairs; make the same call again"):
        wb.trace(double, twins(3), out=place, progress=False)
    assert wb.open_trace(place)["pair"].values.tolist() == ["pair 0", "pair 1"]
    made = []
    monkeypatch.setattr(tracing.Job, "traced", lambda job, of, advance: made.append(of.name) or whole(job, of, advance))
    again = wb.trace(double, twins(3), out=place, progress=False)
    assert made == ["pair 2"]
    assert again.equals(trace)
    # The work of both calls: the third pair was not finished in the first, and nothing was done twice but its paths.
    assert again.attrs["patches"] == trace.attrs["patches"]
    assert again.attrs["layer_tokens"] == trace.attrs["layer_tokens"]
    stored = wb.open_trace(place)
    assert stored.equals(trace)
    assert stored["patch_left"].attrs == trace["patch_left"].attrs
    assert wb.trace(double, twins(3), out=place, progress=False).equals(trace)
    assert made == ["pair 2"]
    with pytest.raises(RunError, match="holds another trace: prompt_hash is"):
        wb.trace(double, twins(2), out=place, progress=False)
    with pytest.raises(RunError, match="has schema 'trace-1'"):
        wb.open_run(place)


def test_a_killed_process_loses_minutes(double, tmp_path, monkeypatch):
    place, kept = tmp_path / "trace.zarr", []
    monkeypatch.setattr(tracing, "KEPT_EVERY", -1)
    monkeypatch.setattr(tracing, "save_trace", lambda found, out: kept.append((found.sizes["pair"], found.attrs)))
    wb.trace(double, twins(2), components="mlp", out=place, window=0, progress=False)
    assert [(pairs, attrs["complete"]) for pairs, attrs in kept] == [(1, False), (2, False)]
    assert wb.open_trace(place).sizes["pair"] == 2


def test_damage_is_found(trace, tmp_path):
    from workbench.tracing.stored import save_trace

    place = tmp_path / "trace.zarr"
    save_trace(trace, place)
    chunk = next(f for f in (place / "patch_left").rglob("*") if f.is_file() and f.name != "zarr.json")
    chunk.write_bytes(bytes(256) + chunk.read_bytes()[256:])
    with pytest.raises(RunError, match=r"is damaged"):
        wb.open_trace(place)
    save_trace(trace, place)
    root = place / "zarr.json"
    root.write_text(root.read_text().replace('"window": 1', '"window": 2'))
    with pytest.raises(RunError, match="is damaged: what it says about itself"):
        wb.open_trace(place)
    with pytest.raises(RunError, match="There is no trace at"):
        wb.open_trace(tmp_path / "nowhere.zarr")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match="is there and is no trace; nothing was overwritten"):
        save_trace(trace, tmp_path / "notes")


def test_replies_under_a_patch():
    model, (unsafe, safe) = wb.load_model("planted"), wb.load_prompts("planted", split="test", n=2)
    pair = line_up(model, "pair", (unsafe, safe))
    refuses, complies = "i cannot help with that", "sure here it is"
    does = ([Patch("heads", 3, "all", 1)], [Patch("residual", 2, "all")], [Patch("attention", 3, "last")])
    does_not = ([], [Patch("residual", 3, "hazard")], [Patch("heads", 0, "all", 2), Patch("mlp", 1, "all")])
    assert patched_replies(model, pair, does) == [(complies, refuses)] * 3
    assert patched_replies(model, pair, does_not) == [(refuses, complies)] * 3


def test_the_first_token_of_a_patched_reply_is_the_traced_one(double):
    model, (unsafe, safe) = double, twins(1)
    pair = line_up(model, "pair", (unsafe, safe))
    trace = wb.trace(model, [unsafe, safe], sources=0, window=0, progress=False)
    cells = [(c, layer) for c in ("residual", "attention", "mlp") for layer in range(model.n_layers)]
    sets = [[], *([Patch(component, layer, "all")] for component, layer in cells)]
    plain, *patched = patched_replies(model, pair, sets, max_new_tokens=1)
    changed = []
    for (component, layer), said in zip(cells, patched, strict=True):
        at = {"component": component, "layer": layer, "token_group": "all"}
        changed.append(trace["patch_top1_change"].sel(at).values[0].tolist())
        assert [float(a != b) for a, b in zip(said, plain, strict=True)] == changed[-1]
    assert 0 < np.mean(changed) < 1, "all patches do the same: nothing is told apart"


def test_what_is_put_in_goes_out_again(double):
    encoded = [double.encode(p) for p in twins(1)]
    before = base_pass(double, encoded).logits
    values = torch.ones(2, encoded[0].n_tokens, double.d_model, dtype=torch.float64)
    everywhere = torch.ones(1, encoded[0].n_tokens, dtype=torch.bool)
    held = put_in(double.layers[0], values, everywhere, at="input")
    with held:
        assert not torch.equal(base_pass(double, encoded).logits, before)
    assert torch.equal(base_pass(double, encoded).logits, before)
