"""What masking and silencing heads does to behaviour, and searches for heads that act together, on planted models."""

import numpy as np
import pytest

from tests.unit.planted_parts import model, prompts, split
from workbench.comparison.masked_behaviour import attack_success, draw_controls
from workbench.comparison.suppression import suppress, suppress_and_reselect
from workbench.errors import DetectorError
from workbench.finding.head_sets import greedy_groups, head_interactions
from workbench.sweeps.sweep import sweep

PLANTED, DECOY = (3, 1), (0, 2)


@pytest.mark.slow
def test_attack_success_counts_each_group_and_draws_controls_from_the_same_layers():
    table = attack_success(
        model(), split("test"), [PLANTED, DECOY], sizes=(1, 2, 5), controls=2, max_new_tokens=6, seed=1
    )
    whole = table[table["group"] == "unsafe"].set_index(["n_heads", "masked", "draw"])["complied"]
    assert whole[0, "nothing", 0] == 0
    assert whole[1, "chosen", 0] == 1
    assert (whole[1, "layer_matched"] == 0).all()
    assert set(table["n_heads"]) == {0, 1, 2}
    drawn = set(" ".join(table.loc[table["masked"] == "layer_matched", "heads"]).split())
    assert drawn <= {"L3H0", "L3H2", "L3H3", "L0H0", "L0H1", "L0H3"}
    assert set(table["group"]) == {"unsafe", "text", "typographic", "icon", "wrapper", "benign"}
    with pytest.raises(DetectorError, match="each once; got L3H1 L3H1"):
        attack_success(model(), split("test"), [PLANTED, PLANTED])


def test_controls_come_from_anywhere_when_a_layer_has_none_left():
    layer = [(3, head) for head in range(4)]
    kind, drawn = draw_controls(model(), layer, 4, seed=0)
    assert kind == "random"
    assert len(set(drawn) - set(layer)) == 4
    every = [(at, head) for at in range(4) for head in range(4)]
    with pytest.raises(DetectorError, match="Only 1 heads are left"):
        draw_controls(model(), every[:-1], 5, seed=0)


def test_greedy_search_returns_the_planted_pair():
    pair = model("planted-pair")
    table = greedy_groups(pair, split("selection")[:8], steps=2)
    assert set(table.attrs["group"]) == set(pair.truth["planted"])
    assert table["value"].iloc[1] > 20 * table["value"].iloc[0]
    assert table["gain"].iloc[1] == pytest.approx(table["value"].iloc[1] - table["value"].iloc[0])
    with pytest.raises(DetectorError, match="hold none"):
        greedy_groups(pair, [p for p in split("selection") if p.label == "safe"])
    with pytest.raises(DetectorError, match="got 'ships'"):
        greedy_groups(pair, split("selection")[:4], objective="ships")


def test_the_pair_does_more_together_than_its_heads_do_alone():
    pair = model("planted-pair")
    (a, b), decoy = pair.truth["planted"], pair.truth["decoy"]
    table = head_interactions(pair, split("selection")[:8], [a, b, decoy], bootstrap=100)
    joint = table["interaction"].to_numpy()
    np.testing.assert_allclose(joint, table["joint"] - table["value_a"] - table["value_b"], atol=1e-9)
    assert joint[0] > 1
    assert np.abs(joint[1:]).max() < 0.1
    assert table["low"].iloc[0] < joint[0] < table["high"].iloc[0]


def test_suppressed_heads_write_nothing_and_the_model_is_left_alone():
    before = {name: p.clone() for name, p in model().hf.named_parameters()}
    silent = suppress(model(), [PLANTED, (0, 1)])
    for name, parameter in model().hf.named_parameters():
        assert (parameter == before[name]).all(), name
    theirs = dict(silent.hf.named_parameters())
    changed = {n for n, p in model().hf.named_parameters() if theirs[n].data_ptr() != p.data_ptr()}
    assert len(changed) == 2  # W_O of layers 0 and 3; all else is shared
    assert silent.weight_hash != model().weight_hash
    swept = sweep(silent, split("test")[:4], projections=("query", "value"), progress=False, keep_states=False)
    assert float(swept["deflection"].sel(layer=3, head=1).max()) == 0
    assert float(swept["deflection"].sel(layer=3, head=2).max()) > 0
    unsafe = next(p for p in split("test") if p.label == "unsafe")
    assert silent.generate(unsafe, max_new_tokens=6) == model().generate(unsafe, heads=[PLANTED], projection="value")
    with pytest.raises(DetectorError, match="L9H0"):
        suppress(model(), [(9, 0)])


@pytest.mark.slow
def test_reselection_after_suppression_finds_no_head_that_detects():
    table = suppress_and_reselect(model(), prompts(), rounds=1, k=1, bootstrap=50)
    areas = table[(table["measure"] == "auroc") & (table["family"] == "all")].set_index("round")["value"]
    assert table.loc[table["round"] == 0, "head"].unique().tolist() == ["L3H1"]
    assert table.loc[table["round"] == 1, "suppressed"].unique().tolist() == ["L3H1"]
    assert "L3H1" not in table.loc[table["round"] == 1, "candidates"].iloc[0]
    assert areas[0] == 1
    assert areas[1] < 0.7
