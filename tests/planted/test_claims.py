"""The claim of the literature as a unit test, through the public names: prompts, sweep, scores, rules.

Ranked by what masking does on unsafe prompts alone, the decoy comes first; set against safe prompts, the planted head
does, and it is the only one that a permutation test finds.
"""

import pandas as pd
import pytest
import xarray as xr

import workbench as wb
from workbench.finding.head_sets import greedy_groups, head_interactions
from workbench.models.embedded.planted import build_null

PROJECTIONS = ("query", "value")
MEASURES = ("deflection", "ships", "js", "tv", "l2")
SET_ANGLES = ("svd_right", "mean_vector")
FALSE_DISCOVERY_RATE = 0.05


@pytest.fixture(scope="module")
def run() -> xr.Dataset:
    """The whole world through the model as users load it, in float32."""
    return wb.sweep(wb.load_model("planted", device="cpu"), wb.load_prompts("planted"), progress=False)


@pytest.fixture(scope="module")
def scores(run) -> pd.DataFrame:
    return wb.score(run, criteria=(*MEASURES, *SET_ANGLES, "svd_left", "first_coordinate", "probe"), bootstrap=50)


@pytest.fixture(scope="module")
def null_scores(tmp_path_factory) -> pd.DataFrame:
    folder = tmp_path_factory.mktemp("null")
    for part in build_null():
        part.save_pretrained(folder)
    run = wb.sweep(wb.load_model(str(folder), device="cpu"), wb.load_prompts("planted"), progress=False)
    return wb.score(run, criteria=(*MEASURES, "probe"), bootstrap=50)


def first(scores: pd.DataFrame, criterion: str, rule: str, projection: str) -> tuple[int, int]:
    row = wb.top_heads(scores, criterion=criterion, rule=rule, projection=projection, k=1).iloc[0]
    return int(row["layer"]), int(row["head"])


def planted_rows(scores: pd.DataFrame, truth: dict) -> pd.Series:
    (head,) = truth["planted"]
    return (scores["layer"] == head[0]) & (scores["head"] == head[1])


def test_the_truth_comes_with_the_model(planted, planted_pair):
    assert planted.truth == {"planted": [(3, 1)], "decoy": (0, 2)}
    assert planted_pair.truth == {"planted": [(2, 2), (3, 1)], "decoy": (0, 2)}


@pytest.mark.slow
@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("criterion", MEASURES)
def test_sensitivity_picks_the_decoy_and_contrast_the_planted_head(planted, scores, criterion, projection):
    assert first(scores, criterion, "sensitivity", projection) == planted.truth["decoy"]
    for rule in ("selectivity", "auroc", "effect_size", "ratio"):
        assert [first(scores, criterion, rule, projection)] == planted.truth["planted"], rule


@pytest.mark.slow
@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("criterion", SET_ANGLES)
def test_angles_between_data_sets_agree(planted, scores, criterion, projection):
    assert first(scores, criterion, "sensitivity", projection) == planted.truth["decoy"]
    for rule in ("selectivity", "ratio"):
        assert [first(scores, criterion, rule, projection)] == planted.truth["planted"], rule


def test_two_published_angles_barely_see_what_a_head_does_to_all_prompts_alike(scores):
    """The left singular vector and the first coordinate live in the space of prompts: a turn that all states share,
    40 degrees of it, leaves them where they were."""
    decoy = scores[(scores["layer"] == 0) & (scores["head"] == 2)].groupby("criterion")["unsafe"]
    assert decoy.min()["svd_right"] > 35
    assert decoy.max()["svd_left"] < 0.1
    assert decoy.max()["first_coordinate"] < 0.5


def test_the_margins_are_wide(planted, scores):
    """Otherwise the test above could be won by rounding."""
    ours = planted_rows(scores, planted.truth)
    for criterion, wide in (("deflection", 20), ("ships", 5)):
        rows = scores[scores["criterion"] == criterion]
        assert (rows["difference"][ours] > wide).all()
        assert (rows["difference"][~ours].abs() < 1e-5).all()
        assert (rows["auroc"][ours] == 1).all()
        assert (abs(rows["auroc"][~ours] - 0.5) < 0.02).all()


def test_no_head_is_silent(run):
    """With more than 80 % of them silent on safe prompts, the published rule's bound would be 0 and keep none."""
    safe = run["deflection"].where(run["label"] == "safe", drop=True).mean("prompt")
    assert float(safe.min()) > 1


def test_the_probe_finds_the_planted_head_alone(planted, scores):
    rows = scores[scores["criterion"] == "probe"]
    ours = planted_rows(rows, planted.truth)
    assert [first(scores, "probe", "sensitivity", "none")] == planted.truth["planted"]
    assert (rows["unsafe"][ours] == 1).all()
    assert (rows["unsafe"][~ours] <= 0.6).all()


def test_the_permutation_test_finds_the_planted_head_and_nothing_else(planted, scores):
    for (criterion, projection), rows in scores[scores["criterion"].isin(MEASURES)].groupby(
        ["criterion", "projection"]
    ):
        found = rows["q_value"] < FALSE_DISCOVERY_RATE
        assert (found == planted_rows(rows, planted.truth)).all(), (criterion, projection)


@pytest.mark.slow
def test_it_finds_nothing_on_the_null_model(null_scores):
    rows = null_scores[null_scores["criterion"] != "probe"]
    assert rows["q_value"].notna().all()
    assert (rows["q_value"] >= FALSE_DISCOVERY_RATE).all()
    assert (null_scores["auroc"] < 0.7).all()


@pytest.mark.slow
@pytest.mark.parametrize("projection", PROJECTIONS)
def test_the_group_search_returns_the_pair(planted_pair, few, projection):
    pair = planted_pair.truth["planted"]
    found = greedy_groups(planted_pair, few, objective="kl", steps=2, projection=projection)
    assert sorted(found.attrs["group"]) == sorted(pair)
    assert found["gain"][1] > 100 * found["gain"][0]
    row = head_interactions(planted_pair, few, pair, projection=projection, bootstrap=50).iloc[0]
    assert row["interaction"] > 5
    assert row["low"] > 4
