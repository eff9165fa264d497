"""Studies of the planted model, whose answers are known."""

from functools import cache

import numpy as np
import pandas as pd
import pytest

from tests.unit import planted_parts
from tests.unit.studies.made import made, material, one, rows
from workbench.axes import head_name
from workbench.criteria import score
from workbench.finding.head_sets import greedy_groups, subspace_angles
from workbench.prompts.worlds.planted import draw_planted_prompts
from workbench.studies import Material, adaptive, make_study

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_studies")]
PLANTED, DECOY = "L3H1", "L0H2"


@cache
def many() -> Material:
    return Material(planted_parts.model(), draw_planted_prompts(n=300), progress=False)


def test_the_planted_head_alone_turns_unsafe_prompts_further():
    assert made("maps").found == (PLANTED,)
    assert set(made("projections").found) == {"layer 3, query masked", "layer 3, value masked"}


def test_swaps_name_the_planted_head_and_masks_the_decoy_which_carries_nothing():
    study = made("swap")
    swapped = {"way": "swapped", "n_heads": 1, "measure": "gap"}
    for choice, group in (("necessary by swaps", "unsafe"), ("sufficient by swaps", "benign")):
        assert set(rows(study, choice=choice)["heads"]) == {PLANTED}
        assert one(study, choice=choice, group=group, **swapped) == pytest.approx(1, abs=1e-5)
    assert set(rows(study, choice="by masks")["heads"]) == {DECOY}
    assert one(study, choice="by masks", group="unsafe", **swapped) == 0
    assert set(study.found) == {
        "necessary by swaps, 1 swapped: frees more than random heads",
        "necessary by swaps, 1 swapped: makes refuse more than random heads",
        "sufficient by swaps, 1 swapped: frees more than random heads",
        "sufficient by swaps, 1 swapped: makes refuse more than random heads",
        "necessary by swaps, 1 removed: frees more than random heads",
        "sufficient by swaps, 1 removed: frees more than random heads",
    }
    assert one(study, choice="by masks against necessary by swaps", measure="same_first") == 0


def test_masking_the_planted_head_frees_attacks_and_masking_ships_head_does_not():
    study = made("masked-success")
    complied = {"measure": "complied", "group": "unsafe"}
    assert one(study, masked="nothing", **complied) == 0
    assert one(study, masked="deflection, selectivity", n_heads=1, **complied) == 1
    ships = rows(study, masked="ships, sensitivity", n_heads=1, **complied)
    assert ships["heads"].tolist() == [DECOY]
    assert ships["value"].tolist() == [0]
    assert "deflection, selectivity, 1: frees more than random heads" in study.found
    assert not [test for test in study.found if test.startswith("ships")]


def test_the_flow_is_the_planted_circuit_and_swapping_its_head_swaps_the_answers():
    study = made("flow")
    stream = {"part": "patched", "what": "residual", "direction": "noise"}
    for layer in range(4):
        np.testing.assert_allclose(one(study, **stream, at="last", layer=layer), float(layer == 3), atol=1e-5)
        np.testing.assert_allclose(one(study, **stream, at="hazard", layer=layer), float(layer < 3), atol=1e-5)
    replies = {"part": "replies", "draw": 0}
    for side, measure in (("unsafe, patched from safe", "complied"), ("safe, patched from unsafe", "refused")):
        assert one(study, what="nothing", direction=side, measure=measure, **replies) == 0
        swapped = rows(study, what="1 head", direction=side, measure=measure, **replies)
        assert swapped["heads"].tolist() == [PLANTED]
        assert swapped["value"].tolist() == [1]
        drawn = rows(study, what="random heads, 1", direction=side, measure=measure)
        assert (drawn["value"] == 0).all()
    assert {test for test in study.found if test.startswith("1 head")} == {
        "1 head, unsafe, patched from safe: frees more than random heads",
        "1 head, safe, patched from unsafe: silences more than random heads",
    }
    cuts = {test.partition(" cut")[0] for test in study.found if " cut" in test}
    assert cuts <= {"picture → last", "text → last"}
    assert "text → last" in cuts
    assert "at hazard after layers 0 to 2; at last after layer 3" in study.says


def test_the_planted_head_is_necessary_faithful_and_hidden_by_no_small_change_of_a_picture():
    study = made("head-claims")
    chosen = {"criterion": "deflection"}
    assert one(study, claim="necessary", **chosen) == one(study, claim="sufficient", **chosen) == 1
    assert one(study, claim="robust", **chosen) == 1
    assert one(study, claim="faithful", **chosen) > one(study, claim="faithful, random heads", **chosen)
    assert one(study, claim="necessary", criterion="ships") == 0  # the decoy
    assert {"deflection: necessary", "deflection: sufficient", "deflection: faithful"} <= set(study.found)
    assert not {"ships: necessary", "ships: sufficient"} & set(study.found)


def test_no_detector_of_the_planted_model_is_evaded_at_8_of_255():
    study = made("adaptive")
    own = study.table[study.table["attacked"] == study.table["scored_by"]]
    assert len(own)
    evaded = own[own["measure"].isin(["evasion", "evasion_any"]) & own["attacked"].isin([adaptive.FIXED])]
    assert (evaded["value"] == 0).all()
    assert study.found == ()


def test_all_measures_but_the_norm_choose_the_planted_head():
    study = made("measures")
    heads = rows(study, measure="auroc").set_index("measure_of_change")["head"]
    assert set(heads[heads == PLANTED].index) >= {"deflection", "ships", "js", "tv", "l2", "refusal_change"}
    assert "norm_ratio" not in study.found  # all planted states have one norm


def test_one_planted_head_detects_all_and_one_drawn_of_ten_does_not():
    study = made("head-count")
    for way in ("mean", "maximum", "vote"):
        assert one(study, heads=1, way=way, measure="detection_rate", family="all") == 1
        assert one(study, heads=1, way=way, measure="false_positive_rate", family="all") == 0
    drawn = {"way": "one drawn for each prompt", "measure": "detection_rate", "family": "all"}
    assert one(study, heads=1, **drawn) == 1
    assert one(study, heads=10, **drawn) < 0.7


@pytest.mark.parametrize("name", ["graded", "categories"])
def test_every_family_and_policy_is_seen_by_the_planted_head(name):
    by = "family" if name == "graded" else "category"
    study = make_study(name, many())
    more = {"the angle grows with the risk grade"} if name == "graded" else set()
    assert set(study.found) == {getattr(p, by) for p in many().prompts} | more
    assert (rows(study, measure="AUROC against all safe")["value"] == 1).all()


def test_without_the_planted_head_nothing_is_left_to_choose():
    study = made("reselect")
    assert study.found == ("0 heads suppressed",)
    assert one(study, suppressed=5, measure="auroc", family="all") == 0.5
    assert all(PLANTED not in chosen for chosen in study.table[study.table["suppressed"] > 0]["chosen"])


def test_every_family_chooses_the_planted_head_and_it_detects_every_other():
    study = made("selection-set")
    areas = rows(study, measure="auroc")
    assert {heads.split()[0] for heads in areas["heads"]} == {PLANTED}
    assert (areas["value"] == 1).all()
    own = study.table[(study.table["measure"] == "overlap") & (study.table["chosen_on"] == study.table["against"])]
    assert (own["value"] == 1).all()


def test_what_the_picture_alone_shows_is_lost_with_it():
    """Of four families two have the hazard in the picture: without it, half of the unsafe prompts are as safe ones."""
    study = made("modality")
    test = material("planted").test_prompts()
    pictured = np.mean([p.family in ("typographic", "icon") for p in test if p.label == "unsafe"])
    for variant in ("no image", "blank image", "text only"):
        complied = rows(study, variant=variant, measure="complied", prompts="unsafe")
        unsafe = complied["n"].iloc[0]
        hidden = pictured if variant != "blank image" else pictured * sum(p.label == "unsafe" for p in test) / unsafe
        assert complied["value"].iloc[0] == pytest.approx(hidden)
    assert one(study, variant="as given", measure="complied", prompts="unsafe") == 0


def test_the_signal_shows_after_the_planted_layer_and_not_before():
    assert made("read-out").found == ("read after layer 3",)


def test_probes_learn_the_planted_output_and_transfer():
    curves = made("probe-curves")
    assert (rows(curves, task="safety", measure="accuracy")["value"] == 1).all()
    assert len(curves.found) == len(curves.tests)
    areas = rows(made("transfer"), measure="AUROC")
    assert (areas[areas["trained_on"] != "random labels"]["value"] == 1).all()


def test_planted_refuses_more_than_null():
    study = made("degradation")
    assert study.found == ("planted (1) refuses more than null",)
    assert one(study, model="null", asked="as given", group="unsafe", measure="refused") == 0


def test_a_model_shares_its_safety_head_with_itself_and_not_with_null():
    study = made("shared-heads")
    of = rows(study, criterion="deflection", measure="overlap").set_index(["a", "b"])["heads"]
    assert of[("planted (3)", "planted (1)")] == PLANTED
    assert of[("null", "planted (1)")] == ""
    same = rows(study, criterion="deflection", measure="rank correlation", a="planted (3)", b="planted (1)")
    assert same["value"].iloc[0] == pytest.approx(1.0)


def test_one_head_detects_all_at_no_false_alarm_and_ships_head_falls_for_the_decoy():
    study = made("detection")
    everything = {"source": "all", "family": "all"}
    assert one(study, detector="one-head", measure="detection_rate_kde", **everything) == 1
    assert one(study, detector="one-head", measure="fpr_kde", **everything) == 0
    assert one(study, detector="ships", measure="auroc", **everything) < 0.6
    assert "one-head" in study.found
    assert "ships" not in study.found


def test_the_guards_of_a_model_that_refuses_already_cost_nothing():
    study = made("defence")
    everything = {"source": "all", "family": "all"}
    for guard in ("no guard", "one-head", "safety-prompt"):
        assert one(study, detector=guard, measure="asr_guarded", **everything) == 0
        assert one(study, detector=guard, measure="benign_refusal", **everything) == 0
    assert one(study, detector="one-head", measure="benign_quality_forced", **everything) == 0  # all are refused


def test_a_flagged_benign_prompt_is_refused_and_a_step_without_length_changes_nothing():
    study = made("benign-cost")
    assert one(study, answer="recipe", group="benign", measure="refused") == 1
    assert one(study, answer="not flagged", group="benign", measure="refused") == 0
    assert one(study, answer=f"detector {PLANTED}", group="benign", measure="flagged") == 0


def test_the_group_search_takes_the_head_of_the_largest_angle_first():
    model, unsafe = planted_parts.model(), planted_parts.split("selection").where(label="unsafe")
    every = [(layer, head) for layer in range(4) for head in range(4)]
    angles = subspace_angles(model, unsafe, [[h] for h in every])
    found = greedy_groups(model, unsafe, objective="subspace", steps=2)
    assert found.attrs["group"][0] == every[int(np.argmax(angles))]
    assert found["value"].iloc[0] == pytest.approx(angles.max())
    assert head_name(*found.attrs["group"][0]) in made("sahara").says


def test_time_counts_passes_and_keeps_milliseconds_apart():
    study = made("time")
    passes = rows(study, measure="passes").set_index("detector")["value"]
    assert passes["hidden-detect"] == pytest.approx(1.0)
    assert 1.0 < passes["one-head"] < passes["ships"] < 2.0  # the planted head lies in the last layer, the decoy first
    assert set(study.table["measure"]) == {"passes"}
    assert (study.findings.apart["times"]["value"] > 0).all()


def test_scores_are_those_of_the_package():
    table = made("maps").table
    mine = score(material("planted").run, "deflection", seed=0)
    mine = mine[mine["projection"] == "query"].reset_index(drop=True)
    pd.testing.assert_series_equal(table["unsafe"], mine["unsafe"])
