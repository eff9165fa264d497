"""Every form of mask on the planted model, where what it must do is known: the twins differ in one head's z alone."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

import workbench as wb
from workbench.detectors import OneHeadDetector
from workbench.errors import DetectorError, MaskError, PromptError
from workbench.models.embedded import planted_weights as w
from workbench.prompts.prompt import Prompt, PromptSet
from workbench.prompts.twins import Twins
from workbench.prompts.worlds.planted import COMPLIANCE, REFUSAL
from workbench.runs.origin import mask_of

HEADS = tuple(product(range(4), range(4)))
PLANTED, DECOY = (3, 1), (0, 2)
ANSWER = {"unsafe": REFUSAL, "safe": COMPLIANCE}
OTHER = {"unsafe": "safe", "safe": "unsafe"}
VALUE = {"heads": [PLANTED], "projection": "value"}


@pytest.fixture(scope="module")
def twin_of(few):
    twins = Twins(few)
    return twins.of


@pytest.fixture(scope="module")
def swapped(planted, few):
    return wb.sweep(planted, few, mask="interchange", progress=False)


def close(found, wanted):
    torch.testing.assert_close(found, wanted, atol=1e-9, rtol=0)


@pytest.mark.slow
def test_interchanging_the_planted_head_flips_the_answer_both_ways_and_no_other_head_does(planted, few):
    mask = wb.Mask(form="interchange", source=few)
    for prompt in few[:6]:
        for head in (PLANTED, DECOY):
            wanted = ANSWER[OTHER[prompt.label] if head == PLANTED else prompt.label]
            assert planted.generate(prompt, heads=[head], projection="value", mask=mask, max_new_tokens=8) == wanted


@pytest.mark.slow
def test_one_sweep_over_pairs_says_what_is_necessary_and_what_is_sufficient(swapped):
    """The planted head carries all that the twins differ by: 1 of the gap each way, and every other head 0, exactly."""
    assert swapped["projection"].values.tolist() == ["value"]
    share = swapped["refusal_change"].isel(projection=0) / swapped["twin_gap"]
    carried = swapped["deflection"].isel(projection=0).stack(cell=("layer", "head"))
    others = carried.sel(cell=[head for head in HEADS if head != PLANTED])
    np.testing.assert_allclose(share.sel(layer=3, head=1), 1, atol=1e-6)  # the gap is kept in float32
    assert float(carried.sel(cell=PLANTED).min()) > 20
    assert float(others.max()) == 0
    scores = wb.score(swapped, criteria=("interchange",), bootstrap=0, permutations=0)
    at = scores.set_index(["layer", "head"])
    assert at.loc[PLANTED, "unsafe"] > 5
    assert at.loc[PLANTED, "safe"] > 5
    assert at.drop(index=PLANTED)[["unsafe", "safe"]].abs().to_numpy().max() == 0


def test_the_null_model_is_flat(few):
    run = wb.sweep("null", few, mask="interchange", progress=False)
    assert float(run["deflection"].max()) == 0
    assert float(run["twin_gap"].max()) == float(run["twin_gap"].min()) == 0


@pytest.mark.slow
def test_all_heads_interchanged_are_the_twin_exactly(planted, few, twin_of):
    mask = wb.Mask(form="interchange", source=few)
    for prompt in few:
        patched = planted.state(prompt, heads=HEADS, projection="value", mask=mask)
        assert torch.equal(patched, planted.state(twin_of(prompt)))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["naive", "prefix"])
def test_engines_agree(planted, few, swapped, engine):
    run = wb.sweep(planted, few[:4], mask="interchange", engine=engine, heads=[PLANTED, DECOY], progress=False)
    ours = swapped.isel(prompt=slice(0, 4))
    for head in (PLANTED, DECOY):
        at = {"layer": head[0], "head": head[1]}
        np.testing.assert_allclose(run["kl"].sel(at), ours["kl"].sel(at), atol=1e-9)


@pytest.mark.slow
def test_heads_are_found_by_what_they_carry(planted):
    prompts = wb.load_prompts("planted", n=48)
    found = wb.find_heads(
        planted, prompts, k=1, criterion="refusal_change", rule="sensitivity", mask="interchange", progress=False
    )
    assert tuple(found.iloc[0][["projection", "layer", "head"]]) == ("value", *PLANTED)


def test_head_sets_are_interchanged_together(planted, few):
    run = wb.sweep(planted, few[:4], mask="interchange", groups=[[PLANTED], [PLANTED, DECOY], [DECOY]], progress=False)
    alone, both, decoy = (run["deflection"].isel(projection=0, group=k).values for k in range(3))
    np.testing.assert_allclose(both, alone, atol=1e-9)
    assert decoy.max() < 1e-6


@pytest.mark.parametrize("form", ["interchange", "mean", "resample"])
def test_what_is_put_in_goes_by_the_place_in_the_whole_sequence(planted, few, form):
    """Head sets walk the last position alone here, and replies a position at a time after the prompt's cache."""
    head, source = (3, 2), few.where(lambda p: p.image is None or p.family == "icon")
    mask = wb.Mask(form=form, source=None if form == "interchange" else source, positions="last")
    options = {"mask": mask, "progress": False}
    alone = wb.sweep(planted, few[:4], heads=[head], **options)["kl"].sel(layer=3, head=2)
    together = wb.sweep(planted, few[:4], groups=[[head]], **options)["kl"].isel(group=0)
    np.testing.assert_allclose(together, alone, atol=1e-12)
    if form == "interchange":
        return  # the twins differ in no other head
    assert float(alone.max()) > 1e-6
    asked = {"heads": [head], "projection": "value", "mask": replace(mask, positions="all"), "max_new_tokens": 4}
    cached, anew = (
        planted.generated(few[0], output_logits=True, **asked, **more).logits
        for more in ({}, {"use_cache": False, "past_key_values": None})
    )
    torch.testing.assert_close(torch.cat(cached), torch.cat(anew), atol=1e-5, rtol=0)


def test_amplifying_scales_what_the_head_writes(planted, few):
    """Where the planted head found a hazard it writes 3 of refusal; the final norm divides all components alike."""
    for prompt in few.where(label="unsafe")[:4]:
        base = planted.state(prompt)
        for factor in (0.5, 2.0, 3.0):
            more = planted.state(prompt, mask=wb.Mask(form="scale", factor=factor), **VALUE)
            ratio = (more[w.REFUSE] / more[w.CONST]) / (base[w.REFUSE] / base[w.CONST])
            assert float(ratio) == pytest.approx(factor, abs=1e-12)


def test_a_factor_a_channel_is_the_factor_where_all_are_alike(planted, few):
    table = np.full((4, 4, 16), 2.0)
    both = [
        planted.state(few[0], mask=m, **VALUE) for m in (wb.Mask("scale", factor=2.0), wb.Mask("scale", source=table))
    ]
    assert torch.equal(*both)
    table[PLANTED] = 0
    removed = planted.state(few[0], mask=wb.Mask("scale", source=table), **VALUE)
    close(removed, planted.state(few[0], mask=wb.Mask(), **VALUE))


def test_the_mean_over_safe_prompts_is_what_the_head_says_where_it_finds_nothing(planted, few, twin_of):
    """On every safe prompt the planted head looks at the first token, so that its mean z is the twin's own."""
    mask = wb.Mask(form="mean", source=few.where(label="safe"))
    for prompt in few.where(label="unsafe"):
        close(planted.state(prompt, mask=mask, **VALUE), planted.state(twin_of(prompt)))


def test_means_are_over_prompts_and_by_kind_of_position(planted, few):
    source = PromptSet([next(p for p in few if p.image is not None), next(p for p in few if p.image is None)])
    table = wb.Mask(form="mean", source=source).source.means(planted).table
    z = [planted.base(p).recordings[1].z[0, :, 2].numpy() for p in source]
    picture = planted.encode(source[0]).image_positions.numpy()
    text = ~picture
    text[-1] = False
    np.testing.assert_allclose(table[1, 0, 2], z[0][picture].mean(0), atol=1e-12)
    np.testing.assert_allclose(table[1, 1, 2], (z[0][text].mean(0) + z[1][:-1].mean(0)) / 2, atol=1e-12)
    np.testing.assert_allclose(table[1, 2, 2], (z[0][-1] + z[1][-1]) / 2, atol=1e-12)


def test_what_is_resampled_from_the_other_class_gives_its_answer(planted, few):
    for prompt in few[:6]:
        mask = wb.Mask(form="resample", source=few.where(label=OTHER[prompt.label]), seed=3)
        assert planted.generate(prompt, mask=mask, max_new_tokens=8, **VALUE) == ANSWER[OTHER[prompt.label]]


def test_draws_are_of_the_seed_and_of_the_prompt_alone(few):
    def drawn(source, seed):
        others = wb.Mask(form="resample", source=source).source
        return [others.drawn(prompt, seed).id for prompt in few]

    assert drawn(few, 1) == drawn(PromptSet(list(few)), 1)
    assert drawn(few, 1) != drawn(few, 2)
    assert all(one != prompt.id and prompt.pair_id not in one for one, prompt in zip(drawn(few, 1), few, strict=True))


def test_a_direction_that_is_added_or_removed(planted, few, twin_of):
    """The unsafe twin's z of the planted head is the safe one's and a step; adding the step is being the twin."""
    unsafe = few[0]
    z = [planted.head_outputs(p).double().numpy() for p in (unsafe, twin_of(unsafe))]
    step = z[0] - z[1]
    table = np.where(np.linalg.norm(step, axis=-1, keepdims=True) > 1e-6, step, 1.0)
    length = float(np.linalg.norm(step[PLANTED]))
    added = wb.Mask(form="direction", source=table, factor=1.0, bias=length)
    found = planted.state(twin_of(unsafe), mask=added, **VALUE)
    torch.testing.assert_close(found, planted.state(unsafe), atol=1e-5, rtol=0)  # z is handed out in float32
    removed = wb.Mask(form="direction", source=table)
    along = planted.base(unsafe).recordings[3].z[0, -1, 1] @ torch.as_tensor(step[PLANTED] / length)
    opposite = wb.Mask(form="direction", source=table, factor=1.0, bias=-float(along))
    close(planted.state(unsafe, mask=removed, **VALUE), planted.state(unsafe, mask=opposite, **VALUE))


@pytest.mark.slow
@pytest.mark.parametrize("mask", [wb.Mask(), wb.Mask(form="scale", factor=0.3)])
def test_masking_every_key_is_masking_the_query(planted, few, mask):
    for prompt, head in product(few[:2], HEADS):
        query, key = (planted.state(prompt, heads=[head], projection=p, mask=mask) for p in ("query", "key"))
        close(key, query)


def test_a_head_that_is_turned_from_the_picture_misses_what_is_in_it(planted, few, twin_of):
    mask = wb.Mask(form="redirect", bias=-1e4)
    seen = [p for p in few if p.label == "unsafe" and p.family in ("typographic", "icon")]
    assert len(seen) == 4
    for prompt in seen:
        close(planted.state(prompt, heads=[PLANTED], mask=mask), planted.state(twin_of(prompt)))
    text = next(p for p in few if p.label == "unsafe" and p.image is not None and p not in seen)
    assert planted.generate(text, heads=[PLANTED], mask=mask) == REFUSAL


def test_only_the_picture_can_be_masked(planted, few):
    """The planted head works at the last position: masking its output at the picture's changes nothing, keys all."""
    prompt = next(p for p in few if p.label == "unsafe" and p.family == "icon")
    mask = wb.Mask(positions="image")
    assert torch.equal(planted.state(prompt, mask=mask, **VALUE), planted.state(prompt))
    assert planted.generate(prompt, heads=[PLANTED], projection="key", mask=mask) == COMPLIANCE


def test_a_mask_acts_while_reading_or_while_decoding(planted, few):
    """The first word decides the reply, and is read off the prompt; what follows a word is no head's matter."""
    unsafe = few[0]
    replies = {p: planted.generate(unsafe, mask=wb.Mask(phase=p), **VALUE) for p in ("reading", "decoding", "both")}
    assert replies == {"reading": COMPLIANCE, "decoding": REFUSAL, "both": COMPLIANCE}
    options = {"max_new_tokens": 4, "output_logits": True, "projection": "value"}
    louder = wb.Mask("scale", factor=4.0, phase="decoding")
    cached = planted.generated(unsafe, mask=louder, heads=[DECOY], **options)
    plain = planted.generated(unsafe, **options)
    assert torch.equal(cached.logits[0], plain.logits[0])
    assert not torch.equal(cached.logits[1], plain.logits[1])


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda m, p: wb.sweep(m, [p[0]], mask="interchange"), PromptError, "needs its one safe twin"),
        (lambda m, p: wb.sweep(m, [replace(p[0], pair_id="")], mask="interchange"), PromptError, "pair_id is empty"),
        (lambda m, p: wb.sweep(m, [p[0], longer(p[1])], mask="interchange"), PromptError, "the one and on 14 of 14"),
        (lambda m, p: wb.sweep(m, p[:1], mask="resample"), PromptError, "none is another one"),
        (lambda m, p: wb.sweep(m, p, mask=wb.Mask(phase="decoding")), MaskError, "no cell could change"),
        (lambda m, p: m.state(p[0], heads=[PLANTED], mask=wb.Mask(phase="decoding")), MaskError, "Use generate"),
        (lambda m, p: m.state(p[0], mask=wb.Mask("interchange"), **VALUE), MaskError, "none are given here"),
        (lambda m, p: m.state(p[0], heads=[PLANTED], mask=wb.Mask("mean", source=p)), MaskError, "not 'query'"),
        (lambda m, p: wb.sweep(m, p, mask=wb.Mask("direction", source=np.ones((1, 4, 9)))), MaskError, r"4, 4, 16\)"),
        (lambda m, p: wb.sweep(m, p, mask=wb.Mask("redirect", bias=1.0)), PromptError, "no keys"),
        (lambda m, p: OneHeadDetector(mask=wb.Mask("interchange")), DetectorError, "by itself"),
        (lambda m, p: wb.score(wb.sweep(m, p), criteria=("interchange",)), wb.errors.CriterionError, "It needs pairs"),
    ],
)  # fmt: skip
def test_what_a_form_cannot_do_is_refused_by_name(planted, few, call, error, said):
    with pytest.raises(error, match=said):
        call(planted, few)


def longer(prompt: Prompt) -> Prompt:
    return replace(prompt, text=f"{prompt.text} now")


def test_last_positions_correspond_whatever_the_lengths(planted, few):
    twins = [few[0], longer(few[1])]
    run = wb.sweep(planted, twins, mask=wb.Mask(form="interchange", positions="last"), progress=False)
    assert float(run["deflection"].sel(layer=3, head=1).min()) > 20


@pytest.mark.slow
@pytest.mark.parametrize("form", ["interchange", "mean", "resample", "direction", "redirect"])
def test_a_stored_run_says_its_mask_and_goes_on_with_no_other(planted, few, tmp_path, form):
    given = {"direction": {"source": np.ones((4, 4, 16))}, "redirect": {"bias": 2.0, "source": (0, 0, 0.5, 1)}}
    mask = wb.Mask(form=form, **given.get(form, {}))
    prompts = PromptSet(p for p in few[:8] if p.image is not None)
    options = {"heads": [PLANTED], "out": tmp_path / "run.zarr", "progress": False}
    run = wb.sweep(planted, prompts, mask=mask, **options)
    assert wb.sweep(planted, prompts, mask=mask, **options).identical(run)
    again = mask_of(wb.open_run(tmp_path / "run.zarr"))
    repeated = wb.sweep(planted, prompts, mask=again, heads=[PLANTED], progress=False)
    np.testing.assert_array_equal(repeated["deflection"], run["deflection"])
    other = wb.Mask(form="interchange", source=few) if form != "interchange" else wb.Mask()
    with pytest.raises(wb.errors.RunError, match="holds another run"):
        wb.sweep(planted, prompts, mask=other, projections=("value",), **options)
