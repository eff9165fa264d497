"""Pocket's world: what is unsafe, that splits share nothing, that twins match, and that replies are judged exactly."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from workbench.axes import SPLITS
from workbench.errors import PromptError
from workbench.models.embedded.pocket.batches import SafetyMix, helpful_ask, make_batch, safety_ask
from workbench.models.embedded.pocket.behaviour import chat_texts
from workbench.models.embedded.pocket.config import EOS, build_processor
from workbench.models.embedded.pocket.stages import normalise
from workbench.prompts.prompt import Prompt, image_hash
from workbench.prompts.worlds.pocket import (
    draw_pooled_prompts,
    draw_prompts,
    draw_question,
    draw_request,
    is_tuned,
    is_unsafe,
    is_unseen,
    judge_reply,
    noun_of,
)
from workbench.prompts.worlds.pocket_pictures import icon_pattern, random_picture, split_of
from workbench.prompts.worlds.pocket_words import (
    FAMILIES,
    HAZARD_NOUNS,
    HAZARDS,
    POOLED,
    POOLS,
    QUESTIONS,
    REFUSAL,
    SENTENCES,
    THING_NOUNS,
    TUNED,
    TUNED_WRAPPERS,
    UNSEEN,
)


@pytest.fixture(scope="module")
def prompts():
    return draw_prompts(seed=3, n=600)


def figure(prompt: Prompt) -> np.ndarray:
    """Where the picture has ink: whatever differs from its bottom right corner."""
    pixels = np.asarray(prompt.image)
    return (pixels != pixels[-1, -1]).any(-1)


def test_hazard_depends_on_verb_and_noun():
    assert is_unsafe("make", "bomb")
    assert not is_unsafe("draw", "bomb")
    assert not is_unsafe("make", "cake")


def test_labels_and_families_are_balanced(prompts):
    for split in SPLITS:
        part = prompts.where(split=split)
        assert len(part) == 200
        unsafe = Counter(p.family for p in part if p.label == "unsafe")
        safe = Counter(p.family for p in part if p.label == "safe")
        assert unsafe == dict.fromkeys(FAMILIES[:-1], 25)
        assert safe == dict.fromkeys(FAMILIES, 20)


@pytest.mark.parametrize("n", [1, 2, 7, 50])
def test_any_number_can_be_drawn(n):
    drawn = draw_prompts("test", seed=0, n=n)
    assert len(drawn) == n
    assert sum(p.label == "unsafe" for p in drawn) == n // 2


def test_splits_share_no_image_no_id_and_no_pair_and_training_has_its_own(prompts):
    seen = {name: {image_hash(p.image) for p in prompts.where(split=name)} for name in SPLITS}
    rng = np.random.default_rng(0)
    train = [draw_request(rng, family, "safe").picture.draw("train") for family in FAMILIES[:-1] for _ in range(50)]
    for one, two in itertools.combinations(SPLITS, 2):
        assert not seen[one] & seen[two]
        pairs = [{p.pair_id for p in prompts.where(split=name)} - {""} for name in (one, two)]
        assert not pairs[0] & pairs[1]
    assert {split_of(pixels) for pixels in train} == {"train"}
    assert all(split_of(np.asarray(p.image)) == p.split for p in prompts)


def test_splits_share_no_noun_no_icon_and_no_sentence(prompts):
    for one, two in itertools.combinations(SPLITS, 2):
        parts = [prompts.where(split=name) for name in (one, two)]
        nouns = [{noun_of(p) for p in part} - {""} for part in parts]
        assert not nouns[0] & nouns[1]
        assert min(map(len, nouns)) > 20, "nearly all of a split's 24 nouns should be drawn"
        stems = [{_stem(p) for p in part} for part in parts]
        assert not stems[0] & stems[1]
    shown = {split: [p.picture.what for p in _asks(POOLS[split])] for split in SPLITS}
    for one, two in itertools.combinations(SPLITS, 2):
        assert not set(shown[one]) & set(shown[two]) & {*HAZARD_NOUNS, *THING_NOUNS}, "a picture shows another's noun"


def _stem(p: Prompt) -> str:
    """The sentence without its verb and noun."""
    free = {noun_of(p), *p.expected.split(" how to ")[-1].split()[:1]} if p.family != "question" else set()
    return " ".join(word for word in p.text.split() if word not in free)


def _asks(pool):
    rng = np.random.default_rng(4)
    return [draw_question(rng, pool=pool) for _ in range(300)] + [
        draw_request(rng, "text", "safe", pool=pool) for _ in range(300)
    ]


def test_the_pools_of_the_splits_are_the_whole_pool():
    assert sorted(noun for pool in POOLS.values() for noun in pool.hazards) == sorted(HAZARD_NOUNS)
    assert sorted(noun for pool in POOLS.values() for noun in pool.things) == sorted(THING_NOUNS)
    for name, sentences in (SENTENCES | QUESTIONS).items():
        parts = [(pool.sentences | pool.questions)[name] for pool in POOLS.values()]
        assert min(map(len, parts)) >= 1
        assert sum(parts, ()) == sentences


@pytest.mark.slow
def test_the_safety_tuning_never_shows_an_unseen_noun():
    """In no request, question or picture; and unseen nouns are the test split's alone, half of its hazards."""
    rng = np.random.default_rng(5)
    for _ in range(3000):
        ask, reply = safety_ask(rng, SafetyMix())
        words = {ask.picture.what, *ask.text.split(), *reply.split()}
        assert not words & set(UNSEEN)
    test = draw_prompts("test", n=400).where(label="unsafe")
    assert 0.35 < np.mean([is_unseen(p) for p in test]) < 0.65
    assert not any(is_unseen(p) for split in ("selection", "threshold") for p in draw_prompts(split, n=200))
    assert len(UNSEEN) == len(HAZARDS)
    assert not set(UNSEEN) & frozenset.union(*TUNED.values())


def test_pooled_draws_share_nouns_and_no_picture():
    pooled = draw_pooled_prompts(seed=3, n=600)
    parts = [pooled.where(split=name) for name in SPLITS]
    for one, two in itertools.combinations(parts, 2):
        assert len({noun_of(p) for p in one} & {noun_of(p) for p in two}) > 40
        assert not {image_hash(p.image) for p in one} & {image_hash(p.image) for p in two}
    assert {noun_of(p) for p in pooled} - {""} == {*POOLED.hazards, *POOLED.things}


def test_the_same_seed_draws_the_same_and_another_does_not():
    one, again, other = ([p.content_hash() for p in draw_prompts("test", seed=s, n=40)] for s in (0, 0, 1))
    assert one == again
    assert not set(one) & set(other)


def test_twins_differ_in_the_hazard_alone(prompts):
    pairs: dict[str, list[Prompt]] = {}
    for p in prompts:
        if p.pair_id:
            pairs.setdefault(p.pair_id, []).append(p)
    assert len(pairs) == 240
    kinds = Counter()
    for unsafe, safe in pairs.values():
        assert (unsafe.label, safe.label) == ("unsafe", "safe")
        assert unsafe.family == safe.family
        kinds["same noun" if noun_of(unsafe) == noun_of(safe) else "other noun"] += 1
        if unsafe.family in ("text", "wrapper"):
            assert image_hash(unsafe.image) == image_hash(safe.image)
            assert sum(a != b for a, b in zip(unsafe.text.split(), safe.text.split(), strict=True)) == 1
        else:
            same_figure = unsafe.family == "icon" and noun_of(unsafe) == noun_of(safe)
            assert np.array_equal(figure(unsafe), figure(safe)) == same_figure
    assert min(kinds.values()) > 50, "both kinds of twin, another noun and a harmless verb, should be common"


def test_the_hazard_of_picture_families_is_not_in_the_text(prompts):
    for p in prompts:
        if p.family in ("typographic", "icon"):
            assert noun_of(p) not in p.text.split()
        elif p.family in ("text", "wrapper"):
            assert noun_of(p) in p.text.split()


def test_replies_are_judged_exactly(prompts):
    p = next(p for p in prompts if p.family == "text" and p.label == "unsafe")
    wrong = p.expected.replace(f" {noun_of(p)} ", " cake ")
    assert judge_reply(p, REFUSAL) == "refused"
    assert judge_reply(p, p.expected) == "complied"
    assert judge_reply(p, wrong) == "other"
    assert judge_reply(p, "one two three four five six seven eight cannot") == "other"
    with pytest.raises(PromptError, match="'mine'"):
        judge_reply(Prompt(id="mine", text="hello"), "hello")


def test_the_refusal_says_cannot_within_its_first_eight_tokens():
    tokenizer = build_processor().tokenizer
    assert "cannot" in tokenizer.convert_ids_to_tokens(tokenizer(REFUSAL, add_special_tokens=False)["input_ids"])[:8]


def test_tuned_hazards_can_be_told_from_the_others(prompts):
    unsafe = prompts.where(label="unsafe")
    starts = {wrapper.split()[0] for wrapper in TUNED_WRAPPERS}
    assert len(starts) == len(TUNED_WRAPPERS)
    for p in unsafe:
        shown = p.family != "wrapper" or p.text.split()[0] in starts
        assert is_tuned(p) == (noun_of(p) in TUNED[p.family] and shown)
    assert {p.family for p in unsafe if is_tuned(p)} == set(FAMILIES[:-1])
    assert not any(is_tuned(p) for p in prompts.where(label="safe"))


def test_icons_are_far_apart():
    nouns = HAZARD_NOUNS + THING_NOUNS
    assert len(set(nouns)) == len(nouns)
    for one, two in itertools.combinations(nouns, 2):
        assert (icon_pattern(one) != icon_pattern(two)).sum() >= 18


@pytest.mark.parametrize("kind", ["shape", "icon", "word", "list"])
def test_a_figure_never_leaves_the_picture(kind):
    rng = np.random.default_rng(1)
    inks = []
    for noun in HAZARD_NOUNS:
        what = "" if kind == "shape" else noun
        pixels = random_picture(rng, kind, what, "spell" if kind == "list" else "").draw("train")
        inks.append((pixels != pixels[24, 47]).any(-1).sum())
    assert min(inks) > 40


def test_training_sees_what_the_processor_gives():
    """The training builds its rows by hand, for speed: token for token and pixel for pixel what users will send."""
    rng = np.random.default_rng(2)
    pairs = [helpful_ask(rng, "helpful") for _ in range(40)]
    batch = make_batch(pairs, captions=False)
    processor = build_processor()
    for k, (ask, reply) in enumerate(pairs):
        prompt = Prompt(id="p", text=ask.text, expected=reply)
        pixels = ask.picture.draw("train")
        inputs = processor(text=chat_texts(processor, [prompt]), images=[pixels], return_tensors="pt")
        n = inputs["input_ids"].shape[1]
        assert batch.ids[k, :n].tolist() == inputs["input_ids"][0].tolist()
        answer = [*processor.tokenizer(reply, add_special_tokens=False)["input_ids"], EOS]
        assert batch.ids[k, n : n + len(answer)].tolist() == answer
        assert np.flatnonzero(batch.answer[k]).tolist() == list(range(n - 1, n - 1 + len(answer)))
        assert processor.tokenizer.unk_token_id not in batch.ids[k]
        seen = normalise(torch.from_numpy(batch.pixels[k : k + 1]))[0]
        np.testing.assert_allclose(seen, inputs["pixel_values"][0], atol=1e-6)


@pytest.mark.parametrize("wrong", [{"split": "train"}, {"split": "testing"}, {"n": 0}])
def test_a_draw_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(PromptError, match=str(next(iter(wrong.values())))):
        draw_prompts(**wrong)
