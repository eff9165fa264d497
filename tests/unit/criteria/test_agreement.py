"""Agreement between rankings by hand and by scipy, and how stable a head's rank is."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy.stats import kendalltau, spearmanr

from tests.unit.synthetic_run import synthetic_run
from workbench.criteria import agreement, head_stability, rank_agreement, score
from workbench.criteria.agreement import rank_biased_overlap
from workbench.criteria.statistics import bootstrap_weights
from workbench.errors import CriterionError
from workbench.runs.pairs import tie_names


@pytest.fixture(scope="module")
def scores() -> pd.DataFrame:
    run = synthetic_run(layers=4, heads=5, projections=("query",))
    return score(run, ("deflection", "ships", "probe", "svd_right"), bootstrap=0, permutations=0)


def test_agreement_of_two_rankings_is_scipys(scores: pd.DataFrame) -> None:
    table = rank_agreement(scores, rule="sensitivity", k=3)
    assert len(table) == 6
    found = table.query("criterion_a == 'deflection' and criterion_b == 'probe'").iloc[0]
    x, y = (scores.query("criterion == @name")["unsafe"].to_numpy() for name in ("deflection", "probe"))
    assert found["heads"] == 20
    assert found["spearman"] == pytest.approx(spearmanr(x, y).statistic)
    assert found["kendall"] == pytest.approx(kendalltau(x, y).statistic)
    common = set(np.argsort(-x, kind="stable")[:3]) & set(np.argsort(-y, kind="stable")[:3])
    assert found["overlap"] == pytest.approx(len(common) / 3)
    assert found["jaccard"] == pytest.approx(len(common) / (6 - len(common)))
    twins = table.query("criterion_a == 'deflection' and criterion_b == 'ships'").iloc[0]
    assert twins["spearman"] > 0.95


def test_the_default_rule_is_each_criterions_own(scores: pd.DataFrame) -> None:
    table = rank_agreement(scores)
    with_probe = table.query("criterion_b == 'probe' and criterion_a == 'deflection'").iloc[0]
    assert with_probe["heads"] == 16, "selectivity keeps 16 of 20 heads, the probe's accuracy ranks all"
    assert set(rank_agreement(scores, rule="auroc")["criterion_b"]) == {"ships", "probe"}
    silent = scores.assign(safe=scores["safe"].where(scores["criterion"] != "ships", 0.0))
    assert "ships" not in set(rank_agreement(silent)["criterion_b"]), "selectivity keeps no head of it"
    with pytest.raises(CriterionError, match="rule effect_size gives 1 from this table"):
        rank_agreement(scores[scores["criterion"].isin(["probe", "ships"])], rule="effect_size")


def test_rank_biased_overlap_by_hand() -> None:
    assert rank_biased_overlap(list("abc"), list("abc")) == pytest.approx(1.0)
    assert rank_biased_overlap(list("abc"), list("def")) == 0.0
    # Agreement 0, 1, 2/3 at depths 1, 2, 3 with p = 0.5.
    by_hand = 2 / 3 * 0.5**3 + 0.5 / 0.5 * (0 * 0.5 + 1 * 0.25 + 2 / 3 * 0.125)
    assert rank_biased_overlap(list("abc"), list("bad"), p=0.5) == pytest.approx(by_hand)
    assert rank_biased_overlap(list("bacd"), list("abcd")) < rank_biased_overlap(list("abdc"), list("abcd"))
    assert np.isnan(rank_biased_overlap([], list("abc")))


@pytest.mark.parametrize(
    ("criterion", "rule"), [("deflection", "selectivity"), ("probe", "auroc"), ("mean_vector", "sensitivity")]
)
def test_a_strong_head_keeps_its_rank_and_noise_does_not(criterion: str, rule: str) -> None:
    run = synthetic_run(projections=("query",), splits=("selection", "test"))
    table = head_stability(run, criterion=criterion, rule=rule, k=1, resamples=30, seed=1)
    best = table.iloc[0]
    assert (best["layer"], best["head"]) == ((0, 3) if rule == "sensitivity" else (2, 1))
    assert best["top_k"] > 0.9
    assert (best["rank"], best["rank_low"]) == (1, 1)
    assert table["top_k"].sum() == pytest.approx(1), "one head is first in every resample"
    noise = table.iloc[2:]
    assert (noise["rank_high"] - noise["rank_low"]).max() > 3
    assert len(table) == 12


def test_heads_that_a_rule_drops_are_counted_as_dropped() -> None:
    run = synthetic_run(projections=("query",))
    table = head_stability(run, criterion="deflection", rule="selectivity", k=3, resamples=20).set_index(
        ["layer", "head"]
    )
    decoy = table.loc[(0, 3)]
    assert np.isnan(decoy["rank"])
    assert decoy["kept"] == 0
    assert decoy["top_k"] == 0
    assert np.isnan(decoy["rank_low"])


def test_copies_of_a_prompt_share_a_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pure noise scores chance in every resample; copies across folds would let a probe learn them by heart."""
    accuracies = []

    def watched(drawn: xr.Dataset, *args: str, **kwargs: int) -> pd.DataFrame:
        scores = score(drawn, *args, **kwargs)
        accuracies.append(scores["unsafe"].mean())
        return scores

    monkeypatch.setattr(agreement, "score", watched)
    run = synthetic_run(pairs=15, d_head=20, planted=(), layers=1, decoy=None, paired=False)
    head_stability(run, criterion="probe", rule="sensitivity", resamples=20)
    assert len(accuracies) == 21
    assert np.mean(accuracies[1:]) < 0.6


def test_controls_have_no_ranks_to_resample() -> None:
    with pytest.raises(CriterionError, match="'random' does not rank the heads of 'deflection'"):
        head_stability(synthetic_run(), criterion="deflection", rule="random")
    with pytest.raises(CriterionError, match="its rules are sensitivity, auroc"):
        head_stability(synthetic_run(), criterion="probe", rule="selectivity")


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["sensitivity", "selectivity"])
def test_the_interval_of_an_agreement_is_that_of_scoring_every_redraw_anew(rule: str) -> None:
    run = synthetic_run(layers=3, heads=5, pairs=12, keep_states=False)
    run["tv"] = run["tv"] * np.random.default_rng(1).gamma(2, size=run["tv"].shape)
    scores = score(run, ("deflection", "tv", "probe"), bootstrap=30, permutations=0)
    table = rank_agreement(scores, rule=rule)
    found = table.query("criterion_a == 'deflection' and projection_a == projection_b and criterion_b == 'tv'").iloc[0]
    unsafe, pairs = run["label"].values == "unsafe", tie_names(run)
    weights = bootstrap_weights(unsafe, pairs, resamples=30, seed=0).astype(int)
    anew = []
    for of_one in weights:
        part = run.isel(prompt=np.repeat(np.arange(len(of_one)), of_one))
        part = part.assign_coords(prompt=[str(i) for i in range(len(of_one))], pair_id=("prompt", [""] * len(of_one)))
        again = score(part, ("deflection", "tv"), bootstrap=0, permutations=0)
        anew.append(rank_agreement(again, rule=rule).query("projection_a == projection_b")["spearman"].iloc[0])
    by_hand = np.quantile(np.arctanh(anew), [0.025, 0.5, 0.975])
    spread = np.tanh(np.arctanh(found["spearman"]) + by_hand[[0, 2]] - by_hand[1])
    assert [found["spearman_low"], found["spearman_high"]] == pytest.approx(spread, abs=1e-6)
    assert found["spearman_low"] < found["spearman"] < found["spearman_high"]
    if rule == "sensitivity":
        assert table.query("criterion_b == 'probe'")["spearman_low"].isna().all(), "probes are not trained again"
