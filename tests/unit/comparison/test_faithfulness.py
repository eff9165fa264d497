"""Sets of heads on models whose circuit is written: one head carries refusal, or two that stand in for each other."""

import json

import numpy as np
import pytest
import torch

import workbench as wb
from tests.unit import planted_parts
from workbench.comparison import rankings, transplant, transplanted
from workbench.comparison.faithfulness import matched
from workbench.criteria import score
from workbench.errors import DetectorError, ModelError
from workbench.finding.gates import gated_kl, learn_heads
from workbench.finding.joint import first_order_odds, joint_effects, refusal_odds
from workbench.finding.mib import write_mib_nodes
from workbench.models.masks import Mask
from workbench.models.tiny import build_tiny
from workbench.models.walk import base_pass
from workbench.runs.vocabulary import refusal_log_odds
from workbench.sweeps.sweep import sweep

EVERY = [(layer, head) for layer in range(4) for head in range(4)]
PLANTED, PAIR = (3, 1), [(2, 2), (3, 1)]


def first(*heads):
    return [*heads, *(head for head in EVERY if head not in heads)]


@pytest.fixture(scope="module")
def test_set():
    return planted_parts.split("test")[:8]


@pytest.fixture(scope="module")
def curves(test_set):
    orders = {"first": first(PLANTED), "last": [*first(PLANTED)[1:], PLANTED]}
    sizes = (0, 1 / 16, 0.5, 1)
    return wb.faithfulness(
        planted_parts.model(),
        test_set,
        orders,
        sizes=sizes,
        controls=2,
        behaviour=(0.5,),
        max_new_tokens=5,
        bootstrap=200,
    )


def cell(table, **keys):
    for name, wanted in keys.items():
        table = table[table[name] == wanted]
    assert len(table) == 1
    return float(table["value"].iloc[0])


@pytest.mark.slow
def test_without_heads_nothing_is_faithful_and_with_all_everything(curves):
    for ranking in ("first", "last"):
        assert cell(curves, ranking=ranking, measure="faithfulness", share=0) == 0
        assert cell(curves, ranking=ranking, measure="faithfulness", share=1) == pytest.approx(1, abs=1e-12)


def test_the_planted_head_alone_carries_what_the_others_without_it_do_not(curves, test_set):
    assert cell(curves, ranking="first", measure="faithfulness", n_heads=1) > 0.7
    assert abs(cell(curves, ranking="last", measure="faithfulness", n_heads=8)) < 1e-3
    assert cell(curves, ranking="first", measure="cmd") < 0.2 < cell(curves, ranking="last", measure="cmd")
    tests = {t["test"].partition(":")[0]: t["p_corrected"] for t in curves.attrs["tests"]}
    assert tests["first"] < 0.05 <= tests["last"]
    assert cell(curves, ranking="first", measure="refused") == 1
    assert cell(curves, ranking="last", measure="refused") == 0
    unsafe = np.array([p.label == "unsafe" for p in test_set])
    model = planted_parts.model()
    odds = np.array([float(refusal_log_odds(model, model.logits(p).double())) for p in test_set])
    assert curves.attrs["difference"] == pytest.approx(odds[unsafe].mean() - odds[~unsafe].mean(), rel=1e-5)


def test_interchanged_with_twins_that_differ_in_one_head_that_head_is_all_there_is(test_set):
    """What the other heads put out is the same on both twins, so that putting in the twin's changes nothing."""
    orders = {"first": first(PLANTED), "last": [*first(PLANTED)[1:], PLANTED]}
    how = {"sizes": (0, 1 / 16, 15 / 16), "mask": Mask(form="interchange"), "controls": 0, "bootstrap": 20}
    table = wb.faithfulness(planted_parts.model(), test_set, orders, **how).query("measure == 'faithfulness'")
    found = table.set_index(["ranking", "n_heads"])["value"]
    for ranking, wanted in (("first", {0: 0, 1: 1, 15: 1}), ("last", {0: 0, 1: 0, 15: 0})):
        assert found[ranking].to_dict() == pytest.approx(wanted, abs=1e-4)


def test_areas_are_those_of_the_curve(curves):
    of = curves[(curves["ranking"] == "first") & (curves["measure"] == "faithfulness")]
    assert cell(curves, ranking="first", measure="cpr") == pytest.approx(np.trapezoid(of["value"], of["share"]))
    assert cell(curves, ranking="first", measure="cmd") == pytest.approx(
        np.trapezoid(np.abs(1 - of["value"]), of["share"])
    )


def test_on_the_null_model_there_is_nothing_to_be_faithful_to(test_set):
    table = wb.faithfulness(
        planted_parts.model("null"), test_set, {"any": EVERY}, sizes=(0, 0.5), controls=1, bootstrap=20
    )
    assert table.loc[table["measure"].isin(["faithfulness", "cpr", "cmd"]), "value"].isna().all()
    assert np.isnan(table.attrs["tests"][0]["p_value"])


def test_masked_odds_are_those_of_masking_by_hand(test_set):
    model, some = planted_parts.model(), test_set[:3]
    sets = [(), [PLANTED], first(PLANTED)[1:]]
    odds = refusal_odds(model, some, sets)
    for i, prompt in enumerate(some):
        for j, heads in enumerate(sets):
            logits = model.logits(prompt, heads=heads, projection="value", mask=Mask()).double()
            assert odds[i, j] == pytest.approx(float(refusal_log_odds(model, logits)), abs=1e-4)


def test_planted_pair_needs_two_and_first_order_does_not_see_it(test_set):
    """Its MLP refuses from one unit of signal on, and each head writes one: masking either takes a fifth, both all."""
    table = joint_effects(planted_parts.model("planted-pair"), test_set, {"both": PAIR, "one": PAIR[:1]}, bootstrap=50)
    joint, single, slope = (cell(table, set="both", effect=e) for e in ("joint", "sum of single", "first order"))
    assert joint > 4 * single > 4 * slope
    assert cell(table, set="one", effect="joint") < 0.15 * joint
    assert joint == pytest.approx(table.query("set == 'both' and effect == 'joint'")["ci_low"].iloc[0], rel=0.1)
    alone = joint_effects(planted_parts.model(), test_set, {"planted": [PLANTED]}, bootstrap=0)
    assert cell(alone, effect="joint") == cell(alone, effect="sum of single") > 9


def test_first_order_odds_are_the_slope_of_a_scaled_head(test_set):
    model, prompt = planted_parts.model("planted-pair"), next(p for p in test_set if p.label == "unsafe")
    slopes = first_order_odds(model, [prompt])[0]
    step = 1e-3
    for layer, head in (*PAIR, (0, 2), (1, 1)):
        mask = Mask(form="scale", factor=1 - step)
        less, more = refusal_odds(model, [prompt], [[(layer, head)], ()], mask=mask)[0]
        assert (less - more) / step == pytest.approx(slopes[layer, head], abs=0.02)


@pytest.mark.slow
def test_gates_that_are_learned_find_the_planted_head_and_both_of_the_pair():
    selection = planted_parts.split("selection")[:4]
    learned = learn_heads(planted_parts.model(), selection, method="gating", steps=60)
    assert (learned.loc[0, "layer"], learned.loc[0, "head"]) == PLANTED
    assert learned.loc[0, "pushed_shut"] > 0.5 > learned.loc[3, "pushed_shut"]
    pair = learn_heads(planted_parts.model("planted-pair"), selection, method="gating", steps=60)
    assert {(int(r.layer), int(r.head)) for r in pair.head(2).itertuples()} == set(PAIR)
    top = learn_heads(planted_parts.model(), selection, method="top-k", steps=60)
    assert PLANTED in {(int(r.layer), int(r.head)) for r in top.head(2).itertuples()}


def test_open_gates_change_nothing_and_shut_ones_are_the_mask(test_set):
    model, prompt = planted_parts.model(), test_set[0]
    base = base_pass(model, [model.encode(prompt)])
    heads = EVERY
    assert float(gated_kl(model, base, heads, torch.ones(16))) == pytest.approx(0, abs=1e-9)
    shut = torch.tensor([float(head != PLANTED) for head in heads])
    run = sweep(model, [prompt], projections=("value",), heads=[PLANTED], progress=False)
    masked = float(run["kl"].sel(layer=3, head=1).values.squeeze())
    assert float(gated_kl(model, base, heads, shut)) == pytest.approx(masked, rel=1e-4)


def test_every_criterion_and_rule_ranks_every_head():
    run = sweep(planted_parts.model(), planted_parts.split("selection"), projections=("query",), progress=False)
    found = rankings(score(run.drop_vars("split"), ("deflection", "ships", "probe"), bootstrap=0, permutations=0))
    assert {"deflection, selectivity", "ships, sensitivity", "probe, sensitivity"} <= set(found)
    assert all(sorted(order) == EVERY for order in found.values())
    assert found["deflection, selectivity"][0] == PLANTED
    drawn = matched(found["deflection, selectivity"], seed=1)
    assert [layer for layer, _ in drawn] == [layer for layer, _ in found["deflection, selectivity"]]
    assert sorted(drawn) == EVERY
    assert drawn != found["deflection, selectivity"]


def test_a_ranking_that_leaves_heads_out_is_refused(test_set):
    with pytest.raises(DetectorError, match="names 1 of the 16 heads"):
        wb.faithfulness(planted_parts.model(), test_set, {"mine": [PLANTED]})


@pytest.mark.slow
def test_the_planted_models_refusal_is_in_its_attention(test_set):
    planted, null = planted_parts.model(), planted_parts.model("null")
    table = transplant(planted, null, test_set, max_new_tokens=5)
    refused = table[table["group"] == "unsafe"].set_index(["into", "moved"])["refused"]
    assert refused["base"].to_dict() == {"nothing": 0, "attention": 1, "mlp": 0, "rest": 0, "everything": 1}
    assert refused["tuned"].to_dict() == {"nothing": 1, "attention": 0, "mlp": 1, "rest": 1, "everything": 0}
    # McNemar's exact test: all four unsafe prompts change sides, or none does.
    moved = ("attention into base: refuses more", "base's attention into tuned: refuses less")
    assert all(t["p_value"] == (1 / 16 if t["test"] in moved else 1) for t in table.attrs["tests"])
    whole = transplanted(null, planted, ("attention", "mlp", "rest"))
    assert whole.weight_hash == planted.weight_hash != null.weight_hash
    assert transplanted(null, planted, ("mlp",)).weight_hash == null.weight_hash
    with pytest.raises(ModelError, match="other parameters"):
        transplanted(null, build_tiny("llava"), ("mlp",))


def test_a_node_file_names_every_node_as_mib_does(tmp_path):
    model = planted_parts.model()
    path = write_mib_nodes({PLANTED: 2.5, (0, 0): -1.0}, model, tmp_path / "nodes.json", kept=[PLANTED])
    found = json.loads(path.read_text())
    assert found["cfg"] == {"n_layers": 4, "n_heads": 4, "d_model": 64, "parallel_attn_mlp": False}
    assert len(found["nodes"]) == 1 + 4 * (4 + 1) + 1
    assert found["nodes"]["a3.h1"] == {"in_graph": True, "score": 2.5}
    assert found["nodes"]["a0.h0"] == {"in_graph": False, "score": -1.0}
    assert found["nodes"]["a1.h2"] == found["nodes"]["m3"] == found["nodes"]["input"] == {"in_graph": True}
    assert found["edges"] == {}
    beside = json.loads(write_mib_nodes({}, build_tiny("aya_vision"), tmp_path / "beside.json").read_text())
    assert beside["cfg"]["parallel_attn_mlp"]
