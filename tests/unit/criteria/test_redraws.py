"""Stability of a choice of heads: by a second road, by hand, and where it must not be claimed."""

import copy

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.synthetic_run import synthetic_run
from workbench.criteria import get_rule, head_stability, list_rules, score, top_heads
from workbench.criteria.redraws import _areas, share_among_first
from workbench.criteria.statistics import auroc

RANKING = [rule.name for rule in list_rules() if not rule.is_control]


@pytest.fixture(scope="module")
def run() -> xr.Dataset:
    return synthetic_run(layers=3, heads=5, pairs=20, keep_states=False, d_head=2)


@pytest.fixture(scope="module")
def scores(run: xr.Dataset) -> pd.DataFrame:
    return score(run, ("deflection", "norm_ratio", "refusal_change", "probe"), bootstrap=30, permutations=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("criterion", "rule"),
    [*(("deflection", rule) for rule in RANKING), ("norm_ratio", "selectivity"), ("refusal_change", "effect_size")],
)
def test_stability_is_that_of_scoring_every_redraw_anew(
    run: xr.Dataset, scores: pd.DataFrame, criterion: str, rule: str
) -> None:
    top = top_heads(scores, criterion=criterion, rule=rule, k=3).set_index(["layer", "head"])["stability"]
    anew = head_stability(run, criterion=criterion, rule=rule, k=3, resamples=30).set_index(["layer", "head"])["top_k"]
    assert top.tolist() == anew[top.index].tolist()
    assert 0 < top.min() < 1, "a trivial case"


@pytest.mark.parametrize("ids", ["pair_id", "content"])
def test_what_is_tied_is_drawn_together(ids: str) -> None:
    """Four copies of each question, tied, are no more than the questions: noise must not look stable by repetition."""
    single = synthetic_run(layers=3, heads=5, pairs=12, planted=(), decoy=None, paired=False, keep_states=False)
    names = [f"u{i}" for i in range(24)]
    single = single.assign_coords({ids: ("prompt", names)})
    fourfold = xr.concat([single] * 4, "prompt", data_vars="minimal")
    tied = fourfold.assign_coords(prompt=[f"{i}" for i in range(96)])
    loose = tied.assign_coords({ids: ("prompt", np.full(96, "", dtype=object))})
    of_single, of_tied, of_loose = (
        top_heads(score(r, "deflection", permutations=0), criterion="deflection", rule="sensitivity", k=2)["stability"]
        for r in (single, tied, loose)
    )
    assert of_tied.tolist() == of_single.tolist()
    assert of_loose.mean() > of_single.mean() + 0.1


def test_where_nothing_is_known_it_is_nan(run: xr.Dataset, scores: pd.DataFrame, tmp_path) -> None:
    def first(table: pd.DataFrame, criterion: str = "deflection", rule: str = "selectivity") -> pd.Series:
        return top_heads(table, criterion=criterion, rule=rule, k=2)["stability"]

    known = first(scores)
    assert known.notna().all()
    assert first(scores, "probe", "auroc").isna().all()
    assert first(scores, rule="random").isna().all()
    assert first(score(run, "deflection", bootstrap=0, permutations=0)).isna().all()
    assert first(scores.assign(safe=scores["safe"] * 2)).isna().all(), "not what was scored"
    assert first(scores.assign(safe_rank=50.0)).isna().all(), "a run of some heads only"
    scores.to_parquet(tmp_path / "scores.parquet")
    again = pd.read_parquet(tmp_path / "scores.parquet")
    assert again.attrs["redraws"] == scores.attrs["redraws"]
    assert first(again).isna().all(), "a file keeps no redraws"
    for same in (scores.copy(), copy.deepcopy(scores), scores.sample(frac=1)):
        assert first(same).tolist() == known.tolist()
    other = score(run.isel(prompt=slice(0, 30)), "deflection", permutations=0)
    assert first(pd.concat([scores[scores["criterion"] == "probe"], other])).isna().all(), "two tables in one"


def test_among_fewer_heads_more_stay_first(scores: pd.DataFrame) -> None:
    part = scores[scores["layer"] < 2]
    mine, whole = (
        top_heads(table, criterion="deflection", rule="sensitivity", k=5).set_index(["layer", "head"])["stability"]
        for table in (part, scores)
    )
    shared = mine.index.intersection(whole.index)
    assert len(shared)
    assert (mine[shared] >= whole[shared]).all()


def test_shares_by_hand() -> None:
    statistics = {
        "unsafe": np.array([[3.0, 2.0, 1.0], [2.0, 2.0, 1.0], [1.0, np.nan, 2.0], [0.0, 0.0, 5.0]]),
        "safe": np.zeros((4, 3)),
        "safe_rank": np.array([[0.0, 0.0, 0.0]] * 3 + [[0.0, 0.0, 90.0]]),
    }
    assert share_among_first(statistics, get_rule("sensitivity"), 1, 80).tolist() == [0.5, 0.0, 0.5]
    assert share_among_first(statistics, get_rule("selectivity"), 1, 80).tolist() == [0.75, 0.0, 0.25]
    assert np.isnan(share_among_first(statistics, get_rule("effect_size"), 1, 80)).all()


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_areas_under_redraws_are_those_of_the_redrawn_prompts(data: st.DataObject) -> None:
    n = data.draw(st.integers(4, 12))
    unsafe = np.arange(n) % 2 == 0
    values = np.array(data.draw(st.lists(st.integers(0, 4), min_size=n, max_size=n)), dtype=float)[:, None]
    weights = np.zeros((3, n))
    for side in (unsafe, ~unsafe):
        places = np.flatnonzero(side)
        for redraw in range(3):
            drawn = data.draw(st.lists(st.sampled_from(places.tolist()), min_size=len(places), max_size=len(places)))
            np.add.at(weights[redraw], drawn, 1)
    for redraw, area in enumerate(_areas(values, unsafe, weights)[:, 0]):
        drawn = np.repeat(np.arange(n), weights[redraw].astype(int))
        assert area == pytest.approx(auroc(values[drawn], unsafe[drawn])[0])
