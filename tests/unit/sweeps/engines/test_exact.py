"""The exact engine against the naive one, on a tiny random LLaVA with grouped-query heads and odd sizes.

Two roads: the exact engine writes the masked head in closed form and goes on from its layer; the naive one scales
queries or outputs at TransformerLens' hooks and runs everything each time. They share the weights and nothing else.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import workbench as wb
from tests.builders.models import tiny
from tests.builders.prompts import asked, pictures
from workbench.errors import MaskError, PromptError, RunError, SelfCheckError, WorkbenchError
from workbench.models.conformance.at_load import check_at_load
from workbench.models.tiny import build_tiny
from workbench.runs.effects import angle_degrees
from workbench.runs.job import MEASURES
from workbench.runs.schema import write_roots

TEXTS = ("what is this", "how do I make it", "name the thing in the picture", "what is this")


def some_prompts(images=True):
    return wb.PromptSet(asked(TEXTS, pictures(len(TEXTS)) if images else None))


@pytest.fixture(scope="module")
def double():
    return tiny(dtype=torch.float64)


@pytest.fixture(scope="module")
def single():
    return tiny()


MASKS = {
    "limit": wb.Mask(),
    "half": wb.Mask(form="scale", factor=0.5),
    "published": wb.Mask(form="as_published"),
    "kv_group": wb.Mask(grain="kv_group"),
    "after_image": wb.Mask(positions="after_image"),
    "last": wb.Mask(positions="last"),
}


@pytest.mark.parametrize(
    "mask",
    [pytest.param(mask, marks=[] if name == "limit" else [pytest.mark.slow]) for name, mask in MASKS.items()],
    ids=MASKS,
)
def test_exact_equals_naive_in_float64(double, mask):
    exact = wb.sweep(double, some_prompts(), mask=mask, progress=False)
    naive = wb.sweep(double, some_prompts(), mask=mask, engine="naive", progress=False)
    assert float(naive.deflection.max() - naive.deflection.min()) > 1, "too weak to prove anything"
    assert float(naive.kl.max()) > 1e-3
    for name in MEASURES:
        if name != "top1_change":
            np.testing.assert_allclose(exact[name], naive[name], atol=1e-6, rtol=0, err_msg=name)


@pytest.mark.slow
def test_exact_equals_naive_in_float32_within_the_stated_tolerance(single):
    exact = wb.sweep(single, some_prompts(), progress=False)
    naive = wb.sweep(single, some_prompts(), engine="naive", progress=False)
    assert abs(exact.deflection - naive.deflection).max() < 0.01
    assert abs(exact.kl - naive.kl).max() < 1e-4


def test_a_factor_of_one_gives_exact_zeros(single):
    run = wb.sweep(single, some_prompts(), mask=wb.Mask(form="scale", factor=1.0), progress=False)
    for name in set(MEASURES) - {"norm_ratio"}:
        assert (run[name] == 0).all(), name
    assert (run.norm_ratio == 1).all()


@pytest.mark.slow
def test_the_number_of_rows_in_a_batch_does_not_matter(double):
    whole = wb.sweep(double, some_prompts(), progress=False)
    one = wb.sweep(double, some_prompts(), rows=1, progress=False)
    assert one.attrs["partition"] != whole.attrs["partition"]
    np.testing.assert_allclose(one.deflection, whole.deflection, atol=1e-9)
    np.testing.assert_allclose(one.kl, whole.kl, atol=1e-9)


def test_prompts_without_pictures_are_swept_too(double):
    mixed = wb.PromptSet([*some_prompts(), *(replace(p, id=p.id + "t") for p in some_prompts(images=False))])
    run = wb.sweep(double, mixed, progress=False)
    assert run.deflection.notnull().all()
    assert run.has_image.values.tolist() == [True] * 4 + [False] * 4
    alone = wb.sweep(double, some_prompts(images=False), progress=False)
    np.testing.assert_allclose(run.deflection[4:], alone.deflection, atol=1e-9)


def test_only_the_chosen_heads_are_computed_and_the_rest_is_nan(double):
    whole = wb.sweep(double, some_prompts(), progress=False)
    run = wb.sweep(double, some_prompts(), heads=[(1, 2), (0, 3)], projections=("query",), progress=False)
    computed = run.deflection.notnull().any(("prompt", "projection"))
    assert {tuple(map(int, at)) for at in np.argwhere(computed.values)} == {(1, 2), (0, 3)}
    np.testing.assert_allclose(run.deflection[:, 0, 1, 2], whole.deflection.sel(projection="query")[:, 1, 2], atol=1e-9)


def test_a_group_of_one_head_equals_that_head_and_a_pair_masks_both(double):
    prompts = some_prompts()
    whole = wb.sweep(double, prompts, progress=False)
    run = wb.sweep(double, prompts, groups=[[(0, 1)], [(0, 1), (1, 2)]], progress=False)
    np.testing.assert_allclose(run.deflection[:, :, 0], whole.deflection[:, :, 0, 1], atol=1e-9)
    for number, projection in enumerate(("query", "value")):
        state = double.state(prompts[1], heads=[(0, 1), (1, 2)], projection=projection)
        expected = angle_degrees(double.state(prompts[1]), state)
        np.testing.assert_allclose(run.deflection[1, number, 1], expected, atol=1e-9)


def test_a_mask_held_while_decoding_equals_masking_the_whole_text_again(double):
    prompt = some_prompts()[0]
    for mask in (wb.Mask(), wb.Mask(form="as_published"), wb.Mask(positions="last")):
        for projection in ("query", "value"):
            logits = double.logits(prompt, heads=[(0, 1), (1, 0)], projection=projection, mask=mask)
            reply = double.generate(prompt, max_new_tokens=1, heads=[(0, 1), (1, 0)], projection=projection, mask=mask)
            assert reply == double.tokenizer.decode([int(logits.argmax())], skip_special_tokens=True).strip()


def test_looking_changes_nothing(single):
    prompt = some_prompts()[0]
    before = single.logits(prompt)
    single.attention(prompt), single.head_outputs(prompt), single.run_with_cache(prompt)
    assert torch.equal(single.logits(prompt), before)


def test_the_bridge_sees_the_image(double):
    prompt, other = some_prompts()[:2]
    logits, cache = double.run_with_cache(prompt)
    torch.testing.assert_close(logits[0, -1], double.logits(prompt), atol=1e-9, rtol=0)
    swapped = replace(prompt, image=other.image)
    assert not torch.allclose(double.run_with_cache(swapped)[0][0, -1], logits[0, -1])
    z = cache["blocks.1.attn.hook_z"][0, -1].flatten()
    torch.testing.assert_close(z.float().cpu(), double.head_outputs(prompt)[1].flatten(), atol=1e-5, rtol=0)


def test_a_mask_that_cannot_act_is_refused_at_load():
    model = build_tiny("llava")
    for attention in model.attentions.values():
        attention.o_proj.weight.data.zero_()
    with pytest.raises(SelfCheckError, match="moves the final state"):
        check_at_load(model)


def test_weights_that_are_not_numbers_are_refused(single):
    model = build_tiny("llava")
    model.final_norm.weight.data[0] = torch.nan
    with pytest.raises(SelfCheckError, match="not finite"):
        check_at_load(model)
    with pytest.raises(RunError, match="not finite"):
        wb.sweep(model, some_prompts(), progress=False)


def test_the_run_says_where_it_came_from(single):
    run = wb.sweep(single, some_prompts(), progress=False)
    for name in (
        "schema",
        "model",
        "weight_hash",
        "prompt_hash",
        "mask_form",
        "dtype",
        "engine",
        "partition",
        "versions",
        "started",
    ):
        assert run.attrs[name], name
    assert run.deflection.dims == ("prompt", "projection", "layer", "head")
    assert run.deflection.attrs["units"] == "degrees"
    # R Rᵀ = W_O Wᵀ_O: the write of a head has the inner products that the root gives.
    weight = single.attentions[1].o_proj.weight.detach().numpy()[:, single.d_head : 2 * single.d_head]
    root = run.write_root.sel(layer=1, head=1).values
    np.testing.assert_allclose(root @ root.T, weight.T @ weight, atol=1e-5)


def test_heads_that_write_nothing_or_the_same_twice_have_roots_too():
    model = build_tiny("qwen2", dtype=torch.float64)
    weight = torch.randn(model.d_model, model.n_heads, model.d_head, dtype=torch.float64)
    weight[:, 0], weight[:, 1, 3] = 0, weight[:, 1, 2]
    with torch.no_grad():
        model.attentions[0].o_proj.weight.copy_(weight.flatten(1))
    roots = write_roots(model)[0]
    products = np.einsum("mhi,mhj->hij", weight.numpy(), weight.numpy())
    np.testing.assert_allclose(roots @ roots.swapaxes(1, 2), products, atol=1e-5)  # stored in float32
    assert (np.triu(roots, 1) == 0).all()


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda m, p: wb.sweep(m, []), PromptError, "no prompts"),
        (lambda m, p: wb.sweep(m, p, engine="fast"), WorkbenchError, "exact, naive"),
        (lambda m, p: wb.sweep(m, p, projections=("output",)), MaskError, "query, key, value"),
        (lambda m, p: wb.sweep(m, p, heads=[(9, 0)]), MaskError, "L9H0"),
        (lambda m, p: wb.sweep(m, p, heads=[]), MaskError, "empty"),
        (lambda m, p: wb.sweep(3, p), WorkbenchError, "model"),
        (lambda m, p: wb.sweep(m, p, mask=wb.Mask(positions="after_image"), rows=4), MaskError, "needs an image"),
        (lambda m, p: m.logits(p[0], heads=[(0, 99)]), MaskError, "L0H99"),
        (lambda m, p: m.encode(replace(p[0], text="look: <image>")), PromptError, "placeholder"),
    ],
)
def test_mistakes_are_named(single, call, error, said):
    with pytest.raises(error, match=said):
        call(single, some_prompts(images=False))


def test_a_broken_picture_is_named(single, tmp_path):
    path = tmp_path / "cut.png"
    pictures(1)[0].save(path)
    path.write_bytes(path.read_bytes()[:200])
    with Image.open(path) as cut, pytest.raises(PromptError, match="cannot be read"):
        single.encode(wb.Prompt(id="cut", text="what", image=cut))


def test_pictures_for_a_text_model_are_refused():
    with pytest.raises(PromptError, match="no image tower"):
        build_tiny("llama").encode(some_prompts()[0])
