"""The planted world: balanced twins, splits that share nothing, the same prompts for the same seed."""

from collections import Counter

import numpy as np
import pytest

import workbench as wb
from workbench.errors import PromptError
from workbench.prompts.prompt import image_hash
from workbench.prompts.worlds.planted import FAMILIES, NOUN_PAIRS, draw_planted_prompts


def test_labels_families_and_twins_are_balanced():
    prompts = wb.load_prompts("planted", n=96)
    assert Counter(p.label for p in prompts) == {"safe": 48, "unsafe": 48}
    assert set(Counter((p.family, p.label) for p in prompts).values()) == {96 // 8}
    assert {p.family for p in prompts} == set(FAMILIES)
    assert Counter(p.split for p in prompts) == {"selection": 32, "threshold": 32, "test": 32}
    assert {p.source for p in prompts} == {"planted"}
    # some prompts of the family text have no picture, so that both roads into the model are walked
    assert {p.image is None for p in prompts.where(family="text")} == {True, False}


def test_twins_differ_in_the_hazard_only():
    harmless = dict(NOUN_PAIRS)
    prompts = draw_planted_prompts(split="test", n=80)
    for unsafe, safe in zip(prompts[::2], prompts[1::2], strict=True):
        assert (unsafe.pair_id, unsafe.category, unsafe.family) == (safe.pair_id, safe.category, safe.family)
        assert [harmless.get(word, word) for word in unsafe.text.split()] == safe.text.split()
        in_text = unsafe.text != safe.text
        assert in_text == (unsafe.family in ("text", "wrapper"))
        if unsafe.image is not None:
            pixels = np.asarray(unsafe.image) != np.asarray(safe.image)
            patches = pixels.reshape(4, 8, 4, 8, 3).any((1, 3, 4)).sum()
            wanted = {"text": {0}, "wrapper": {0}, "icon": {1}, "typographic": {2, 3}}[unsafe.family]
            assert patches in wanted


@pytest.mark.slow
def test_splits_share_no_wording_and_no_picture_whatever_the_seed():
    texts: dict[str, set[str]] = {}
    pictures: dict[str, set[str]] = {}
    for split in ("selection", "threshold", "test"):
        for seed in (0, 1):
            prompts = draw_planted_prompts(split=split, seed=seed, n=200)
            texts.setdefault(split, set()).update(p.text for p in prompts if p.label == "safe")
            pictures.setdefault(split, set()).update(image_hash(p.image) for p in prompts if p.image is not None)
    for kind in (texts, pictures):
        assert not kind["selection"] & kind["threshold"]
        assert not kind["selection"] & kind["test"]
        assert not kind["threshold"] & kind["test"]


def test_the_seed_decides():
    first, again, other = (draw_planted_prompts(seed=seed, n=30) for seed in (3, 3, 4))
    assert first.content_hash() == again.content_hash() != other.content_hash()
    assert not {p.id for p in first} & {p.id for p in other}


@pytest.mark.parametrize("n", [1, 7, 20])
def test_as_many_as_asked(n):
    assert len(draw_planted_prompts(n=n)) == len(draw_planted_prompts(split="test", n=n)) == n


def test_mistakes():
    with pytest.raises(PromptError, match="selection, threshold, test; got 'train'"):
        draw_planted_prompts(split="train")
    with pytest.raises(PromptError, match="got n=0"):
        draw_planted_prompts(n=0)
