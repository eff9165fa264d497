"""Shared beginnings: the same numbers as the exact engine, from less work."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import workbench as wb
from tests.builders.models import tiny
from tests.builders.prompts import pictures
from workbench.models.walk import base_pass
from workbench.runs.job import MEASURES
from workbench.sweeps.engines.shared_passes import decoder_call, known_passes, position_marks
from workbench.sweeps.engines.trie import build_trie
from workbench.testing import D_HEAD, HookedLVLM, family_of, randomise, text_sizes

QUESTIONS = ("what is this", "what is this ?", "how do you make a bomb", "is this a cat ?")


def picture(seed: int) -> Image.Image:
    return pictures(1, seed=seed)[0]


def asked(n_pictures: int = 2) -> list[wb.Prompt]:
    """Four questions a picture; one question twice, one without a picture, and one longer than the rest."""
    found = [
        wb.Prompt(id=f"{n} {text}", text=text, image=picture(n), label=("safe", "unsafe")[n % 2])
        for n in range(n_pictures)
        for text in QUESTIONS
    ]
    twice, bare = replace(found[1], id="twice"), replace(found[2], id="bare", image=None)
    return [*found, twice, bare, replace(found[0], id="long", text="what is this picture of a red square here to me ?")]


@pytest.fixture(scope="module")
def double():
    return tiny(dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize(
    "mask",
    [
        wb.Mask(),
        wb.Mask(form="scale", factor=0.3),
        wb.Mask(form="scale", factor=1.0),
        wb.Mask(grain="kv_group"),
        wb.Mask(form="as_published"),
        wb.Mask(positions="last"),
    ],
    ids=str,
)
def test_sharing_changes_no_number(double, mask):
    exact = wb.sweep(double, asked(), mask=mask, progress=False)
    shared = wb.sweep(double, asked(), mask=mask, engine="prefix", progress=False)
    assert set(shared.variables) == set(exact.variables)
    if not mask.changes_nothing:
        assert exact.deflection.max() > 1
    for name in exact.data_vars:
        np.testing.assert_allclose(shared[name], exact[name], atol=1e-6, err_msg=str(name))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # PaliGemma's processor
@pytest.mark.parametrize("family", ["qwen2_vl", "gemma3", "aya_vision", "paligemma", "qwen3_vl", "llava_next"])
def test_other_families_share_or_are_swept_whole(family):
    model = tiny(family)
    prompts = asked(1)[:4]
    exact = wb.sweep(model, prompts, progress=False, keep_states=False)
    shared = wb.sweep(model, prompts, engine="prefix", progress=False, keep_states=False)
    for name in set(MEASURES) - {"top1_change"}:
        np.testing.assert_allclose(shared[name], exact[name], atol=1e-2, err_msg=name)


@pytest.mark.slow
def test_the_shared_beginning_is_computed_once(double):
    prompts = asked()
    exact = wb.sweep(double, prompts, progress=False, keep_states=False)
    shared = wb.sweep(double, prompts, engine="prefix", progress=False, keep_states=False)
    assert exact.attrs["vision_passes"] == sum(p.image is not None for p in prompts)
    assert shared.attrs["vision_passes"] == 2
    assert shared.attrs["layer_tokens"] < 0.5 * exact.attrs["layer_tokens"]


def test_the_trie_covers_every_position_once_and_cuts_no_picture(double):
    encoded = [double.encode(p) for p in asked()]
    covered = {}

    def walk(node):
        assert len(node.prompts) == 1 or node.children
        for prompt in node.prompts:
            covered.setdefault(prompt, []).append((node.start, node.stop))
        for child in node.children:
            walk(child)

    for root in build_trie(encoded):
        walk(root)
    for prompt, spans in covered.items():
        assert spans[0][0] == 0
        assert spans[-1][1] == encoded[prompt].n_tokens
        assert all(one[1] == other[0] for one, other in pairwise(spans))
        if span := encoded[prompt].image_span:
            assert not any(span[0] < stop < span[1] for _, stop in spans)
    shared = {spans[0] for prompt, spans in covered.items() if len(spans) > 1}
    assert shared, "nothing is shared, so nothing was tested"


def test_another_picture_is_another_beginning(double):
    one, other = asked()[0], replace(asked()[0], id="other", image=picture(7))
    alone = wb.sweep(double, [other], progress=False)
    both = wb.sweep(double, [one, other, replace(one, id="again")], engine="prefix", progress=False)
    np.testing.assert_allclose(both.deflection.sel(prompt="other"), alone.deflection[0], atol=1e-6)


LONG = [1.0, 2.0, 4.0, 6.0, 8.0, 9.0]
# Each counts 28 positions as its original context; the questions below lie on both sides of it.
ROPES = {
    "longrope": (112, {"short_factor": [1.0] * 6, "long_factor": LONG, "original_max_position_embeddings": 28}),
    "dynamic": (28, {}),
}


def with_rope(kind: str) -> HookedLVLM:
    llava = tiny()
    context, more = ROPES[kind]
    rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0, **more}
    sizes = {
        **text_sizes(llava.tokenizer, head_dim=D_HEAD),
        "max_position_embeddings": context,
        "rope_parameters": rope,
    }
    seen = llava.hf.config
    config = LlavaConfig(
        vision_config=seen.vision_config,
        text_config=LlamaConfig(**sizes),
        image_token_id=seen.image_token_id,
        image_seq_length=16,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hf = randomise(LlavaForConditionalGeneration(config)).to(torch.float64)
    return HookedLVLM(hf, family_of("llava"), name=kind, tokenizer=llava.tokenizer, processor=llava.processor)


def of_many_lengths() -> list[wb.Prompt]:
    """The longest first: two of its followers are in the original context, two beyond it and shorter than the first."""
    texts = ("what is the red square here ? " * 6, "what is this", "what is a cat here in it ? " * 2, "what is a cat")
    shown = picture(0)
    found = [wb.Prompt(id=f"p{n}", text=text, image=shown) for n, text in enumerate(texts)]
    return [*found, replace(found[2], id="beyond too", text=found[2].text + "a bomb")]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ROPES)
def test_positions_that_depend_on_a_prompt_s_length_are_shared_only_where_they_agree(kind):
    model, prompts = with_rope(kind), of_many_lengths()
    lengths = [model.encode(p).n_tokens for p in prompts]
    assert min(lengths) < 28 < sorted(lengths)[2], lengths
    naive = wb.sweep(model, prompts, engine="naive", heads=[(0, 0), (1, 1)], progress=False)
    assert naive.deflection.max() > 1
    for engine in ("exact", "prefix"):
        run = wb.sweep(model, prompts, engine=engine, heads=[(0, 0), (1, 1)], progress=False)
        np.testing.assert_allclose(run.deflection, naive.deflection, atol=1e-6, err_msg=engine)
    marks = [position_marks(model, base) for base in known_passes(model, [model.encode(p) for p in prompts])]
    short = [n for n, length in enumerate(lengths) if length <= 28]
    assert marks[short[0]][:20] == marks[short[1]][:20]
    assert marks[0][1] != marks[short[0]][1]


@pytest.mark.parametrize("kind", ROPES)
def test_what_was_asked_before_does_not_change_a_prompt_s_numbers(kind):
    model, (longest, *_, beyond) = with_rope(kind), of_many_lengths()
    alone = model.state(beyond)
    model.state(longest)
    assert torch.equal(model.state(beyond), alone)
    assert torch.equal(with_rope(kind).state(beyond), alone)


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "gemma3", "aya_vision"])
def test_a_pass_without_the_image_tower_is_the_whole_pass(family):
    model = tiny(family)
    encoded = [model.encode(p) for p in asked(1)[:3]]
    first = base_pass(model, [encoded[1]])
    for other in (encoded[0], encoded[2]):
        if other.n_tokens > first.n_pos:
            first, other = base_pass(model, [other]), encoded[1]
        call = decoder_call(model, first, other)
        assert call is not None, "the picture would be seen again for every question"
        ours, whole = base_pass(model, [other], call), base_pass(model, [other])
        assert torch.equal(ours.logits, whole.logits)
        for number, inputs in whole.inputs.items():
            assert torch.equal(ours.inputs[number], inputs)
        assert position_marks(model, ours) == position_marks(model, whole)
