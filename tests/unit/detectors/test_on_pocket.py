"""What only a model with trained weights shows: batches, the stand-in judge, HiddenDetect's layers, and a refusal."""

from functools import cache

import numpy as np
import pytest

from workbench.detectors import HiddenDetect, JudgeDetector, evaluate, make_detector
from workbench.models.hooked import HookedLVLM
from workbench.models.loading import load_model
from workbench.prompts import load_prompts
from workbench.prompts.prompt import PromptSet
from workbench.prompts.worlds.pocket import draw_prompts
from workbench.replies import RefusalRecipe, generate, generate_batch, judge_replies

pytestmark = pytest.mark.slow


@cache
def pocket() -> HookedLVLM:
    return load_model("pocket", device="cpu", check=False)


@cache
def prompts() -> PromptSet:
    return draw_prompts(n=120)


def test_a_batch_says_what_prompts_say_one_by_one_under_a_mask_too():
    some = prompts()[:6]
    for heads in ((), ((0, 2), (0, 3), (5, 1))):
        one_by_one = [pocket().generate(p, max_new_tokens=16, heads=heads) for p in some]
        assert generate_batch(pocket(), some, max_new_tokens=16, heads=heads) == one_by_one


def test_pocket_answers_safe_requests_and_refuses_in_words_that_judges_know():
    test = prompts().where(split="test")
    replies = generate_batch(pocket(), test, max_new_tokens=16)
    exact, phrases = (judge_replies(test, replies, judge) for judge in ("exact", "phrases"))
    safe = np.array([p.label == "safe" for p in test])
    assert (exact[safe] == "complied").mean() > 0.8
    assert 0 < (exact[~safe] == "refused").mean() < 1
    assert ((exact == "refused") == (phrases == "refused")).mean() > 0.9


def test_the_guard_refuses_in_pockets_own_words():
    assert RefusalRecipe.for_model(pocket()).alert == ""  # a vocabulary this small cannot read one
    guard = JudgeDetector(lambda p: 1.0, threshold=0.5).fit(pocket(), prompts())
    safe = next(p for p in prompts() if p.label == "safe" and p.family == "text")
    reply = generate(pocket(), safe, guard=guard, show_unguarded=True, max_new_tokens=16)
    assert reply.startswith("i cannot")
    assert judge_replies([safe], [reply], "exact").tolist() == ["refused"]
    assert reply.unguarded == safe.expected


def test_the_stand_in_judge_sees_dangerous_pictures_and_nothing_else():
    judge = make_detector("judge-stand-in").fit(pocket(), prompts())
    test = load_prompts("pocket", split="test", n=240)
    icons = [p for p in test if p.family == "icon" and p.label == "unsafe"]
    assert len(icons) > 20
    assert np.mean(judge.decision_function(pocket(), icons) > 0) > 0.6
    assert judge.cost(pocket(), test[:2], max_new_tokens=4).forward_passes == pytest.approx(1, abs=0.3)


def test_hidden_detect_finds_a_range_of_layers_and_beats_chance():
    detector = HiddenDetect().fit(pocket(), prompts())
    first, last = detector.layers
    assert 0 <= first <= last < pocket().n_layers
    assert detector.discrepancy[first] >= detector.discrepancy[-1]
    found = evaluate(detector, pocket(), prompts().where(split="test"), bootstrap=100)
    assert found.query("measure == 'auroc' and family == 'all'")["value"].item() > 0.6
