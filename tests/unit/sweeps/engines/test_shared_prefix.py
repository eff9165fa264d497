"""Shared beginnings: the same numbers as the exact engine, from less work."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

import workbench as wb
from tests.builders.models import tiny
from tests.builders.prompts import pictures
from workbench.runs.effects import MEASURES
from workbench.sweeps.engines.trie import build_trie

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


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # PaliGemma's processor
@pytest.mark.parametrize("family", ["qwen2_vl", "gemma3", "aya_vision", "paligemma", "qwen3_vl", "llava_next"])
def test_other_families_share_or_are_swept_whole(family):
    model = tiny(family)
    prompts = asked(1)[:4]
    exact = wb.sweep(model, prompts, progress=False, keep_states=False)
    shared = wb.sweep(model, prompts, engine="prefix", progress=False, keep_states=False)
    for name in set(MEASURES) - {"top1_change"}:
        np.testing.assert_allclose(shared[name], exact[name], atol=1e-2, err_msg=name)


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
