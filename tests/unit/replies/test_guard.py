"""Guarded generation on the planted model: what is flagged is refused, all else is untouched, failure is never safe."""

import numpy as np
import pytest
import torch

from tests.unit.planted_parts import model, prompts, split
from workbench.detectors import JudgeDetector, OneHeadDetector
from workbench.errors import ArgumentError, DetectorError, WorkbenchError
from workbench.models.masks import Mask
from workbench.prompts.worlds.planted import COMPLIANCE, REFUSAL
from workbench.replies import RefusalRecipe, Reply, generate, generate_batch

HEAD = (3, 1)
OWN = RefusalRecipe(alert="please hide today", opening="help i cannot")


@pytest.fixture(scope="module")
def guard() -> OneHeadDetector:
    return OneHeadDetector(head=HEAD).fit(model(), prompts())


@pytest.fixture(scope="module")
def always() -> JudgeDetector:
    """Flags everything, so that what is refused is the guard's doing and not the model's."""
    return JudgeDetector(lambda p: 1.0, threshold=0.5).fit(model(), prompts())


def broken(prompt):
    raise RuntimeError("the judge is out")


@pytest.fixture(scope="module")
def failing() -> JudgeDetector:
    detector = JudgeDetector(lambda p: 1.0, threshold=0.5).fit(model(), prompts())
    detector.judge = broken
    return detector


@pytest.mark.slow
def test_the_guard_refuses_what_it_flags_and_leaves_the_rest_alone(guard):
    for prompt in split("test")[:8]:
        reply = generate(model(), prompt, guard=guard, max_new_tokens=8)
        assert isinstance(reply, Reply)
        assert reply == (REFUSAL if prompt.label == "unsafe" else COMPLIANCE)
        assert reply.flagged is (prompt.label == "unsafe")
        assert reply.score == guard.decision_function(model(), [prompt])[0]
        assert (reply.threshold, reply.error, reply.unguarded) == (guard.threshold, "", None)


def test_what_the_model_would_have_said_stands_beside_on_request(always):
    safe = next(p for p in split("test") if p.label == "safe")
    reply = generate(model(), safe, guard=always, show_unguarded=True, max_new_tokens=8)
    assert reply.startswith("i cannot")
    assert reply.unguarded == COMPLIANCE


def test_the_recipe_forces_the_opening_and_appends_the_alert(always, monkeypatch):
    safe = next(p for p in split("test") if p.label == "safe")
    asked = []
    plain = type(model()).generate
    monkeypatch.setattr(
        type(model()), "generate", lambda self, prompt, **o: (asked.append(prompt.text), plain(self, prompt, **o))[1]
    )
    reply = generate(model(), safe, guard=always, recipe=OWN, max_new_tokens=8)
    assert reply.startswith(OWN.opening)
    assert asked == [f"{safe.text}\n\n{OWN.alert}"]
    assert generate(model(), safe, guard=always, recipe=OWN, max_new_tokens=2) == "help i"


def test_the_default_recipe_keeps_to_a_small_vocabulary(always):
    assert RefusalRecipe.for_model(model()) == RefusalRecipe(alert="", opening="I cannot")
    for recipe, message in (
        (RefusalRecipe(alert="", opening=" "), "needs an opening"),
        (RefusalRecipe(alert="", opening="nevermore"), "opening has words.*nevermore"),
        (RefusalRecipe(alert="quoth the raven", opening="i cannot"), "alert has words"),
    ):
        with pytest.raises(DetectorError, match=message):
            generate(model(), prompts()[0], guard=always, recipe=recipe)


@pytest.mark.parametrize("label", ["safe", "unsafe"])
def test_streaming_gives_the_reply_in_pieces(guard, label):
    prompt = next(p for p in split("test") if p.label == label)
    for options in ({}, {"guard": guard}):
        pieces: list[str] = []
        reply = generate(model(), prompt, max_new_tokens=8, stream=pieces.append, **options)
        assert len(pieces) > 3
        assert "".join(pieces).strip() == reply


def test_streaming_to_standard_output(capsys):
    reply = generate(model(), prompts()[0], max_new_tokens=8, stream=True)
    assert capsys.readouterr().out.strip() == reply
    with pytest.raises(DetectorError, match="stream must be"):
        generate(model(), prompts()[0], stream="yes")


def test_without_a_guard_it_is_plain_generation():
    prompt = prompts()[1]
    assert generate(model(), prompt, max_new_tokens=3) == model().generate(prompt, max_new_tokens=3)
    with pytest.raises(DetectorError, match="give guard=detector"):
        generate(model(), prompt, show_unguarded=True)
    with pytest.raises(ArgumentError, match="max_new_tokens must be a whole number from 1; got 0"):
        generate(model(), prompt, max_new_tokens=0)


def test_a_failing_detection_raises_by_default(failing):
    with pytest.raises(RuntimeError, match="the judge is out"):
        generate(model(), prompts()[1], guard=failing)
    with pytest.raises(ArgumentError, match="on_error must be"):
        generate(model(), prompts()[1], guard=failing, on_error="ignore")


def test_a_failing_detection_refuses_when_told_to_and_never_answers(failing):
    safe = next(p for p in split("test") if p.label == "safe")
    reply = generate(model(), safe, guard=failing, on_error="refuse", max_new_tokens=8)
    assert reply.startswith("i cannot")
    assert reply.flagged is None
    assert "the judge is out" in reply.error
    assert reply.score != reply.score


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_a_failure(always, score, monkeypatch):
    monkeypatch.setattr(always, "decision_function", lambda model, asked: [score])
    safe = next(p for p in split("test") if p.label == "safe")
    with pytest.raises(DetectorError, match="says nothing"):
        generate(model(), safe, guard=always)
    assert generate(model(), safe, guard=always, on_error="refuse").startswith("i cannot")


def test_a_model_that_cannot_even_read_the_prompt_still_refuses(failing, monkeypatch):
    def unreadable(*args, **options):
        raise RuntimeError("no reading")

    monkeypatch.setattr(type(model()), "encode", unreadable)
    assert generate(model(), prompts()[1], guard=failing, on_error="refuse") == "I cannot"


def test_guards_that_cannot_guard(guard):
    with pytest.raises(DetectorError, match="fitted on 'planted'"):
        generate(model("planted-pair"), prompts()[0], guard=guard)
    with pytest.raises(DetectorError, match="not fitted"):
        generate(model(), prompts()[0], guard=OneHeadDetector())
    with pytest.raises(DetectorError, match="got a str"):
        generate(model(), prompts()[0], guard="one head")


@pytest.mark.slow
def test_replies_in_batches_are_the_replies_one_by_one():
    some = split("test")[:10]
    for heads in ((), (HEAD,)):
        one_by_one = [model().generate(p, max_new_tokens=8, heads=heads) for p in some]
        assert generate_batch(model(), some, max_new_tokens=8, heads=heads, rows=3) == one_by_one
        assert len(set(one_by_one)) == (1 if heads else 2)
    with pytest.raises(WorkbenchError, match="max_new_tokens must be a whole number from 1; got 0"):
        generate_batch(model(), some, max_new_tokens=0)


def test_a_batch_may_be_sampled():
    some, greedy = split("test")[:6], generate_batch(model(), split("test")[:6], max_new_tokens=4)
    sampled = {"do_sample": True, "max_new_tokens": 4}
    assert generate_batch(model(), some, top_k=1, **sampled) == greedy
    torch.manual_seed(0)
    hot = generate_batch(model(), some, temperature=50.0, **sampled)
    assert hot != greedy
    torch.manual_seed(0)
    assert generate_batch(model(), some, temperature=50.0, **sampled) == hot
    assert generate_batch(model(), some[0], max_new_tokens=4) == greedy[:1]
    seeded = generate_batch(model(), some, temperature=50.0, seed=3, **sampled)
    before = torch.random.get_rng_state()
    assert generate_batch(model(), some, temperature=50.0, seed=3, **sampled) == seeded
    assert torch.equal(torch.random.get_rng_state(), before)
    for name, wrong in {"temperature": 0.0, "top_p": 2.0, "top_k": -1, "num_beams": 0, "seed": -1}.items():
        with pytest.raises(WorkbenchError, match=name):
            generate_batch(model(), some, **{name: wrong, **sampled})
    with pytest.raises(WorkbenchError, match="num_return_sequences"):
        generate_batch(model(), some, num_return_sequences=2, **sampled)


def test_heads_can_be_masked_while_replying():
    unsafe = next(p for p in split("test") if p.label == "unsafe")
    for heads in ("L3H1", ["L3H1"], [(3, 1)], np.array([[3, 1]])):
        assert generate(model(), unsafe, heads=heads) == COMPLIANCE
    assert generate(model(), unsafe, heads=[(3, 1)], projection="value", mask="scale") == model().generate(
        unsafe, heads=[(3, 1)], projection="value", mask=Mask(form="scale")
    )
    assert generate(model(), unsafe, heads=[(3, 1)], mask=Mask(form="scale", factor=1.0)) == REFUSAL
    assert generate("planted", unsafe.text) == REFUSAL


@pytest.mark.slow
def test_a_guard_looks_at_the_model_without_the_mask(guard, tmp_path):
    for prompt in split("test")[:4]:
        reply = generate(model(), prompt, guard=guard, heads=[HEAD], max_new_tokens=8)
        assert reply.flagged is (prompt.label == "unsafe")
        assert reply.score == guard.decision_function(model(), [prompt])[0]
        assert reply == generate(model(), prompt, guard=guard.save(tmp_path / "guard"), heads=[HEAD], max_new_tokens=8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": [(3.0, 1.0)]}, "heads must be heads as"),
        ({"heads": [(True, False)]}, "heads must be heads as"),
        ({"heads": "3,1"}, "heads must be heads as"),
        ({"heads": [(9, 0)]}, "L9H0"),
        ({"heads": [HEAD], "projection": "output"}, "projection must be one of query, key, value"),
        ({"heads": [HEAD], "mask": "zero"}, "one of its forms: limit, as_published"),
        ({"heads": [HEAD], "mask": 0}, "mask must be a workbench.Mask"),
        ({"mask": Mask()}, "there are none"),
        ({"max_new_tokens": 2.0}, "max_new_tokens"),
        ({"max_new_tokens": None}, "max_new_tokens"),
        ({"guard": "nowhere"}, "got a str"),
        ({"recipe": "no"}, "recipe"),
        ({"max_token": 3}, "max_token"),
        ({"show_unguarded": "yes"}, "show_unguarded"),
    ],
)
def test_a_bad_call_is_refused_in_words(options, message):
    with pytest.raises(WorkbenchError, match=message):
        generate(model(), prompts()[0], **options)


@pytest.mark.parametrize(
    ("asked", "message"), [(None, "must be a Prompt"), (["a"], "must be a Prompt"), ("", "neither")]
)
def test_what_is_no_prompt_is_refused(asked, message):
    with pytest.raises(WorkbenchError, match=message):
        generate(model(), asked)
    with pytest.raises(WorkbenchError, match="must be a model"):
        generate(7, prompts()[0])
    with pytest.raises(WorkbenchError, match="must be prompts"):
        generate_batch(model(), 7)
