"""What studies do besides measuring: fusing heads, dealing labels and splits, steering, searching for groups."""

import numpy as np
import pytest

import workbench as wb
from tests.unit import planted_parts
from tests.unit.studies.made import one, rows
from tests.unit.synthetic_run import synthetic_run
from workbench.criteria.subspace import first_left_singular, line_angle_deg
from workbench.finding.head_sets import subspace_angles
from workbench.models.walk import base_pass
from workbench.prompts.prompt import PromptSet
from workbench.runs.splits import with_splits
from workbench.studies import Material, Study, head_count, published_split
from workbench.studies.benign_cost import direction, steered
from workbench.studies.measuring import Chosen
from workbench.studies.probe_curves import random_labels


def test_several_heads_are_fused_as_they_say():
    run, _ = with_splits(synthetic_run(pairs=24, keep_states=False))
    values = np.arange(2 * 48, dtype=float).reshape(48, 2) + np.where(run["label"] == "unsafe", 1000.0, 0.0)[:, None]
    fused = {way: (of, at) for way, of, at in head_count._fused(Chosen(run, ((0, 0), (0, 1)), values, 0), 2)}
    np.testing.assert_array_equal(fused["mean"][0], values.mean(1))
    np.testing.assert_array_equal(fused["maximum"][0], values.max(1))
    np.testing.assert_array_equal(fused["vote"][0] > fused["vote"][1], run["label"].values == "unsafe")


def test_random_labels_go_by_unit_and_are_half_true_in_test_and_training():
    units = np.array(["a", "a", "b", "b", "", "", "c", "c", "d", "d", "", ""], dtype=object)
    test = np.arange(12) >= 6
    labels = random_labels(units, test, seed=3)
    assert labels[0] == labels[1]
    assert labels[2] == labels[3]
    for side in (test, ~test):
        named = {u or str(i): bool(labels[i]) for i, u in enumerate(units) if side[i]}
        assert sum(named.values()) == 2


def test_the_step_between_the_classes_is_nothing_below_the_planted_layer():
    model, prompts = planted_parts.model(), planted_parts.split("selection")
    layer, step = direction(model, prompts)
    assert layer == 2
    state = base_pass(model, [model.encode(prompts[0])]).inputs[3][0, -1]
    assert float(step.norm()) < 1e-5 * float(state.norm())


def test_steering_adds_the_step_at_its_layer_and_only_inside_the_block():
    model, prompt = planted_parts.model(), planted_parts.split("test")[0]
    encoded = model.encode(prompt)
    before = base_pass(model, [encoded]).inputs[3].clone()
    step = before[0, -1] * 0.5
    with steered(model, 2, step):
        during = base_pass(model, [encoded]).inputs[3]
    np.testing.assert_allclose(during[0, -1], 1.5 * before[0, -1], rtol=1e-6)
    np.testing.assert_array_equal(during[0, :-1], before[0, :-1])
    np.testing.assert_array_equal(base_pass(model, [encoded]).inputs[3], before)


@pytest.mark.slow
def test_choosing_on_test_rows_flatters_where_there_is_nothing_to_find():
    flattered = _published(synthetic_run(pairs=60, layers=8, heads=16, planted=(), keep_states=False, paired=False))
    more = rows(flattered, tested_on="difference", measure="balanced_accuracy").iloc[0]
    assert more["value"] > 0.02
    clear = _published(synthetic_run(pairs=60, keep_states=False, effect=30.0))
    assert abs(one(clear, tested_on="difference", measure="balanced_accuracy")) < 0.01
    assert clear.found == ("disjoint splits",)
    assert flattered.found == ()


def _published(run) -> Study:
    built = Material(planted_parts.model(), planted_parts.prompts(), progress=False)
    built.run = with_splits(run)[0]
    return Study(published_split.STUDY, published_split.find(built), built.about)


@pytest.mark.slow
def test_the_published_group_objective_by_two_roads():
    model, unsafe = planted_parts.model(), planted_parts.split("selection").where(label="unsafe")
    run = wb.sweep(model, planted_parts.split("selection"), projections=("query",), progress=False)
    part = run.isel(prompt=np.flatnonzero(run["label"] == "unsafe"))
    heads = [(0, 2), (3, 1), (2, 0)]
    base = part["base_state"].values
    for head, angle in zip(heads, subspace_angles(model, unsafe, [[h] for h in heads]), strict=True):
        masked = part["state"].sel(projection="query", layer=head[0], head=head[1]).values
        assert angle == pytest.approx(float(line_angle_deg(*map(first_left_singular, (base, masked)))), abs=1e-3)
    pair = [(0, 2), (3, 1)]
    states = np.stack([model.state(p, heads=pair).numpy() for p in unsafe])
    both = float(line_angle_deg(*map(first_left_singular, (base, states))))
    assert subspace_angles(model, unsafe, [pair])[0] == pytest.approx(both, abs=1e-3)


def test_prompts_that_declare_no_split_are_dealt_and_keep_what_they_are_dealt():
    bare = PromptSet(wb.Prompt(**{**vars(p), "split": ""}) for p in planted_parts.prompts())
    dealt = Material(planted_parts.model(), bare, progress=False).prompts
    assert {p.split for p in dealt} == {"selection", "threshold", "test"}
    assert [p.id for p in dealt] == [p.id for p in bare]
