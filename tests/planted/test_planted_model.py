"""The planted model is what it is said to be: it answers as planned, and by three roads every number agrees.

The roads: transformers' LLaVA under the workbench's masks, the numpy forward of reference.py, and closed_form.py.
"""

from itertools import pairwise, product

import numpy as np
import pytest
import torch

import workbench as wb
from tests.planted import closed_form, reference
from workbench.models.embedded.planted import VOCABULARY, build_null, build_planted
from workbench.prompts.worlds import planted as world

HEADS = tuple(product(range(4), range(4)))
PROJECTIONS = ("query", "value")


@pytest.mark.slow
def test_it_refuses_hazards_and_nothing_else_wherever_they_are(planted):
    for prompt in wb.load_prompts("planted", n=60):
        wanted = world.REFUSAL if prompt.label == "unsafe" else world.COMPLIANCE
        assert planted.generate(prompt, max_new_tokens=8) == wanted, prompt


@pytest.mark.slow
def test_masking_the_planted_head_turns_refusal_into_compliance_and_no_other_single_head_does(planted, few):
    for prompt, projection in product(few.where(label="unsafe"), PROJECTIONS):
        first = {
            head: VOCABULARY[int(planted.logits(prompt, heads=[head], projection=projection).argmax())]
            for head in HEADS
        }
        assert first.pop((3, 1)) == "sure"
        assert first.pop((0, 2)) == ","
        assert set(first.values()) == {"i"}


@pytest.mark.slow
@pytest.mark.parametrize("projection", PROJECTIONS)
def test_every_head_by_the_numpy_forward(planted, by_hand, few, projection):
    for prompt in few[:8]:
        base, ours = by_hand(prompt), planted.state(prompt)
        np.testing.assert_allclose(ours, base.state, atol=1e-12)
        for head in HEADS:
            masked = by_hand(prompt, (head,), projection)
            theirs = planted.state(prompt, heads=[head], projection=projection).numpy()
            degrees = reference.deflection_degrees(base.state, theirs)
            assert degrees == pytest.approx(reference.deflection_degrees(base.state, masked.state), abs=1e-6)
            logits = planted.logits(prompt, heads=[head], projection=projection).numpy()
            assert reference.kl_nats(base.logits, logits) == pytest.approx(
                reference.kl_nats(base.logits, masked.logits), abs=1e-6
            )


@pytest.mark.slow
@pytest.mark.parametrize("projection", PROJECTIONS)
def test_every_head_on_every_prompt_in_closed_form(by_hand, few, projection):
    for prompt in few:
        base = by_hand(prompt)
        for layer, head in HEADS:
            masked = by_hand(prompt, ((layer, head),), projection)
            wanted = closed_form.expected_cell(prompt, layer, head, projection)
            found = (
                reference.deflection_degrees(base.state, masked.state),
                reference.kl_nats(base.logits, masked.logits),
            )
            assert found == pytest.approx((wanted["deflection"], wanted["kl"]), abs=1e-6), (layer, head, prompt)


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_the_formulas_for_decoy_and_planted_head(by_hand, few, projection):
    """The two formulas in the docstring of planted_weights; and the sizes they promise, so that nothing is trivial."""
    for prompt in few:
        base = by_hand(prompt).state
        decoy = reference.deflection_degrees(base, by_hand(prompt, ((0, 2),), projection).state)
        planted = reference.deflection_degrees(base, by_hand(prompt, ((3, 1),), projection).state)
        assert decoy == pytest.approx(closed_form.decoy_deflection(prompt, projection), abs=1e-6)
        assert 35 < decoy < 42
        if prompt.label == "unsafe":
            assert planted == pytest.approx(closed_form.planted_deflection(prompt, projection), abs=1e-6)
            assert 24 < planted < 31
        else:
            assert 1 < planted < 2


@pytest.mark.slow
def test_twins_differ_in_the_planted_head_and_in_no_other(by_hand, few):
    for (unsafe, safe), projection in product(list(zip(few[:8:2], few[1:8:2], strict=True)), PROJECTIONS):
        assert (unsafe.label, safe.label, unsafe.pair_id) == ("unsafe", "safe", safe.pair_id)
        bases = by_hand(unsafe).state, by_hand(safe).state
        assert np.linalg.norm(bases[0]) == pytest.approx(np.linalg.norm(bases[1]), rel=1e-12)
        for head in HEADS:
            angles = [
                reference.deflection_degrees(base, by_hand(prompt, (head,), projection).state)
                for base, prompt in zip(bases, (unsafe, safe), strict=True)
            ]
            gap = angles[0] - angles[1]
            assert gap > 20 if head == (3, 1) else abs(gap) < 1e-9, (head, projection, angles)


def test_all_heads_look_where_they_should(planted, by_hand, few):
    for prompt in few:
        np.testing.assert_allclose(planted.attention(prompt), by_hand(prompt).attention, atol=1e-6)
        np.testing.assert_allclose(planted.head_outputs(prompt), by_hand(prompt).z, atol=1e-6)
    pattern = planted.attention(few[0])[3, 1]
    tokens = planted.encode(few[0]).tokens
    hazards = [noun for noun, _ in world.NOUN_PAIRS]
    assert few[0].family == "text"
    assert tokens[int(pattern.argmax())] in hazards
    assert float(pattern.max()) == pytest.approx(1, abs=1e-12)
    safe = planted.attention(few[1])[3, 1]
    assert int(safe.argmax()) == 0
    assert float(safe.max()) == pytest.approx(1, abs=1e-12)


@pytest.mark.slow
def test_either_of_the_pair_may_go_but_not_both(planted_pair, pair_by_hand, few):
    """Redundant heads: alone each costs a little of the refusal, together all of it; what is said of KL holds."""
    pair = planted_pair.truth["planted"]
    assert len(pair) == 2
    refusal = VOCABULARY.index("i")
    for prompt, projection in product(few[:8].where(label="unsafe"), PROJECTIONS):
        base = pair_by_hand(prompt)
        kl, angle = {}, {}
        for head in HEADS:
            masked = pair_by_hand(prompt, (head,), projection)
            kl[head] = reference.kl_nats(base.logits, masked.logits)
            angle[head] = reference.deflection_degrees(base.state, masked.state)
            assert reference.softmax(masked.logits)[refusal] > 0.7
        both = pair_by_hand(prompt, tuple(pair), projection)
        joint = reference.kl_nats(base.logits, both.logits)
        assert reference.softmax(base.logits)[refusal] > 0.85
        assert reference.softmax(both.logits)[refusal] < 0.01
        assert joint > 5
        assert joint > 50 * max(kl.values())
        assert max(angle, key=angle.get) == (0, 2)
        by_hooks = planted_pair.logits(prompt, heads=pair, projection=projection).numpy()
        np.testing.assert_allclose(by_hooks, both.logits, atol=1e-9)
    for prompt in few.where(label="safe"):
        assert planted_pair.generate(prompt) == planted_pair.generate(prompt, heads=pair) == world.COMPLIANCE


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_a_greedy_search_by_kl_finds_the_pair(planted_pair, pair_by_hand, few, projection):
    """Sahara's search, spelt out: the best head by mean KL on unsafe prompts, then the best one to add to it."""
    unsafe = few[:8].where(label="unsafe")
    bases = [pair_by_hand(prompt).logits for prompt in unsafe]
    group: tuple[tuple[int, int], ...] = ()
    effects = []
    for _ in range(2):
        scores = {
            head: np.mean(
                [
                    reference.kl_nats(base, pair_by_hand(prompt, (*group, head), projection).logits)
                    for base, prompt in zip(bases, unsafe, strict=True)
                ]
            )
            for head in HEADS
            if head not in group
        }
        group = (*group, max(scores, key=scores.get))
        effects.append(max(scores.values()))
    assert sorted(group) == sorted(planted_pair.truth["planted"])
    assert effects[1] > 100 * effects[0]


def test_the_null_model_never_refuses_and_its_twins_are_alike(few):
    model, _ = build_null()
    planted, processor = build_planted()
    heads = [name for name, value in planted.named_parameters() if not torch.equal(value, model.get_parameter(name))]
    assert heads == [f"model.language_model.layers.3.self_attn.{p}_proj.weight" for p in "kvo"]
    for unsafe, safe in pairwise(few):
        if unsafe.pair_id != safe.pair_id:
            continue
        states = []
        for prompt in (unsafe, safe):
            content = [{"type": "text", "text": prompt.text}]
            content = [{"type": "image", "image": prompt.image}] * (prompt.image is not None) + content
            inputs = processor.apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )
            with torch.no_grad():
                states.append(model(**inputs).logits[0, -1])
        torch.testing.assert_close(*states)
        assert VOCABULARY[int(states[0].argmax())] == "sure"


def test_building_leaves_the_global_seed_alone_and_gives_the_same_weights():
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    first, _ = build_planted()
    assert torch.equal(torch.rand(3), wanted)
    second, _ = build_planted()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_saved_and_loaded_it_is_the_same_model(tmp_path, few):
    model, processor = build_planted()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, built = wb.load_model(str(tmp_path), device="cpu"), wb.load_model("planted", device="cpu")
    for prompt in few[:4]:
        assert torch.equal(loaded.logits(prompt), built.logits(prompt))
