"""The trace of the planted models is the circuit that was written into them, cell by cell."""

import dataclasses

import numpy as np
import pytest

import workbench as wb
from workbench.models.embedded import planted_weights as w
from workbench.tracing.records import TOKEN_GROUPS

# A final state has a length of about 8; float32 leaves 1e-6 of it, and an angle a little more.
ROUNDING = 1e-5
LAYER, HEAD = w.PLANTED_AT


@pytest.fixture(scope="module")
def prompts():
    return wb.load_prompts("planted", split="test", n=8)


@pytest.fixture(scope="module")
def trace(prompts):
    return wb.trace("planted", prompts, progress=False)


def carriers(prompts):
    """For each pair the group of tokens that its hazard stands in, by how its family is written."""
    drawn = {"text": "hazard", "wrapper": "hazard", "icon": "picture", "typographic": "picture"}
    return [drawn[p.family] for p in prompts if p.label == "unsafe"]


def expected(trace, prompts, *, of_heads=False):
    """Which cells bring the whole difference between twins: the hazard's tokens below the planted head's layer, the
    last position from it on, and at that layer what its attention, and that head alone, writes there."""
    shape = ["pair", "layer", "head", "token_group"] if of_heads else ["pair", "component", "layer", "token_group"]
    cells = np.zeros([trace.sizes[dim] for dim in shape])
    groups = trace["token_group"].values.tolist()
    last = [groups.index("last"), groups.index("all")]
    for pair, carrier in enumerate(carriers(prompts)):
        if of_heads:
            cells[pair, LAYER, HEAD, last] = 1
            continue
        cells[pair, 0, :LAYER, [groups.index(carrier), groups.index("all")]] = 1
        cells[np.ix_([pair], [0], range(LAYER, w.N_LAYERS), last)] = 1
        cells[pair, 1, LAYER, last] = 1
    return cells


@pytest.mark.slow
def test_the_trace_is_the_written_circuit(trace, prompts):
    assert set(carriers(prompts)) == {"hazard", "picture"}
    for name, of_heads in (("patch", False), ("head", True)):
        whole = expected(trace, prompts, of_heads=of_heads)
        for direction in ("noise", "denoise"):
            found = trace[f"{name}_recovered"].sel(direction=direction).values
            there = np.isfinite(found)
            assert (there == (trace["tokens_in_group"].values > 0)[:, None, None]).all()
            np.testing.assert_allclose(found[there], whole[there], atol=ROUNDING)
            # The answer goes with the state: to the twin's where all of the difference is there, else as it was.
            flips = trace[f"{name}_top1_change"].sel(direction=direction).values
            np.testing.assert_array_equal(flips[there], whole[there])


def test_what_the_head_brings_is_the_difference_between_the_twins(trace, prompts):
    model = wb.load_model("planted")
    head = {"layer": LAYER, "head": HEAD, "token_group": "last"}
    for pair, (unsafe, safe) in enumerate(zip(prompts[::2], prompts[1::2], strict=True)):
        one, other = model.state(unsafe), model.state(safe)
        angle = float(np.degrees(np.arccos(float(one @ other) / float(one.norm() * other.norm()))))
        found = trace["head_deflection"].sel(head)[pair]
        np.testing.assert_allclose(found, angle, atol=1e-3)  # the arc cosine in float32
        odds = trace["base_refusal"].values[pair]
        change = trace["head_refusal_change"].sel(head)[pair].values
        np.testing.assert_allclose(change, [odds[1] - odds[0], odds[0] - odds[1]], atol=1e-4)
        assert odds[0] > 1 > -1 > odds[1], "the twins are not told apart"


def test_the_whole_stream_gives_the_twins_state_bit_for_bit(trace):
    left = trace["patch_left"].sel(component="residual", token_group="all")
    assert float(trace["patch_left"].max()) > 1
    assert (left == 0.0).all()


def test_cutting_the_hazard_from_the_last_position_at_the_heads_layer_undoes_the_refusal(trace, prompts):
    for pair, carrier in enumerate(carriers(prompts)):
        flow = f"{'text' if carrier == 'hazard' else 'picture'} → last"
        flips = trace["cut_top1_change"][pair]
        wanted = np.zeros(flips.shape)
        wanted[0, trace["flow"].values.tolist().index(flow), LAYER] = 1  # windows of one layer: unsafe, this flow
        there = np.isfinite(flips.values)
        np.testing.assert_array_equal(flips.values[there], wanted[there])
    # All that a head does, it does at the last position: what others see does not matter.
    others = [flow for flow in trace["flow"].values if not flow.endswith("last")]
    assert float(trace["cut_deflection"].sel(flow=others).max()) < ROUNDING
    assert trace.attrs["window"] == 1


def test_no_head_reads_what_another_wrote(trace, planted_pair):
    assert trace["source"].values[0] == "L3H1"
    assert float(abs(trace["path_write"]).max()) == 0.0
    pair = wb.trace(
        planted_pair, wb.load_prompts("planted", split="test", n=2), sources=[*w.PAIR_AT, w.DECOY_AT], progress=False
    )
    assert pair["path_write"].notnull().any()
    # A write changes the norm by which the last position's queries are divided, and with it how evenly a saturated
    # head splits: of writes of size 1, less than a ten-thousandth.
    assert float(abs(pair["path_write"]).max()) < 1e-4


def test_of_the_pair_either_head_alone_leaves_the_answer(prompts):
    trace = wb.trace("planted-pair", prompts[:4], components=["heads"], sources=0, window=0, progress=False)
    flips = trace["head_top1_change"].sel(direction="noise", token_group="all").mean("pair")
    assert float(flips.max()) == 0.0  # redundant: the other still refuses
    enough = trace["head_top1_change"].sel(direction="denoise", token_group="all").mean("pair").values
    whole = np.zeros_like(enough)
    for at in w.PAIR_AT:
        whole[at] = 1
    np.testing.assert_array_equal(enough, whole)  # and each alone is enough


def test_the_null_model_is_flat(prompts):
    trace = wb.trace("null", prompts[:4], progress=False)
    for name in ("patch_deflection", "head_deflection", "patch_left", "head_left", "path_write"):
        assert float(abs(trace[name]).max()) < ROUNDING, name
    for name in ("patch_top1_change", "head_top1_change"):
        assert float(trace[name].max()) == 0.0
    assert float(abs(trace["patch_refusal_change"]).max()) < ROUNDING


def test_equal_twins_give_exact_zeros(prompts):
    one = next(p for p in prompts if p.image is not None and p.label == "unsafe")
    twin = dataclasses.replace(one, id="twin", label="safe")
    trace = wb.trace("planted", (one, twin), progress=False)
    for name in map(str, trace.data_vars):
        if name.startswith(("patch_", "head_", "path_")) and not name.endswith("recovered"):
            known = trace[name].values[np.isfinite(trace[name].values)]
            assert len(known), name
            assert (known == 0.0).all(), name
    assert trace["patch_recovered"].isnull().all()  # nothing of nothing is no share
    assert trace.attrs["skipped"] == "{}"


def test_the_groups_are_the_worlds_words(prompts):
    from workbench.tracing.pairs import line_up

    model = wb.load_model("planted")
    unsafe, safe = next(
        (a, b)
        for a, b in zip(prompts[::2], prompts[1::2], strict=True)
        if a.family == "wrapper" and a.image is not None
    )
    twins = line_up(model, "pair", (unsafe, safe))
    words = {
        g: [t for t, on in zip(twins.encoded[0].tokens, where, strict=True) if on] for g, where in twins.groups.items()
    }
    assert words["picture"] == ["<image>"] * 16
    assert words["hazard"] == [unsafe.category]
    assert words["template"] == ["<s>", "USER:", "<end>", "<turn>"]
    assert words["last"] == ["ASSISTANT:"]
    assert words["words"] == [word for word in unsafe.text.split() if word != unsafe.category]
    assert sum(len(words[g]) for g in TOKEN_GROUPS) == len(words["all"]) == twins.encoded[0].n_tokens
