"""Detection on unseen prompts: which split does what, measures by hand, families left out, and splits dealt fairly."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score, roc_curve

from tests.unit.synthetic_run import FAMILIES, synthetic_run
from workbench.criteria import detection_table, leave_one_family_out, score, top_heads
from workbench.criteria.detection import DETECTION_COLUMNS
from workbench.criteria.rates import measures_on
from workbench.criteria.thresholds import kde_threshold
from workbench.errors import CriterionError, RunError
from workbench.runs.splits import in_split, with_splits

SPLITS = ("selection", "threshold", "test")


@pytest.fixture(scope="module")
def run() -> xr.Dataset:
    return synthetic_run(pairs=72, splits=SPLITS, planted=((2, 1), (1, 0)))


@pytest.fixture(scope="module")
def table(run: xr.Dataset) -> pd.DataFrame:
    return detection_table(run, criteria=("deflection", "probe", "svd_right"), bootstrap=200)


def one(table: pd.DataFrame, **equal: str) -> pd.Series:
    rows = table
    for name, value in equal.items():
        rows = rows[rows[name] == value]
    assert len(rows) == 1, rows
    return rows.iloc[0]


def test_every_pair_with_a_meaning_has_its_measures(table: pd.DataFrame) -> None:
    assert tuple(table.columns) == DETECTION_COLUMNS
    pairs = {(r.criterion, r.rule, r.projection) for r in table.itertuples()}
    expected = {("deflection", rule, p) for rule in ("sensitivity", "selectivity", "auroc") for p in ("query", "value")}
    expected |= {("svd_right", rule, p) for rule in ("sensitivity", "selectivity") for p in ("query", "value")}
    expected |= {("probe", rule, "none") for rule in ("sensitivity", "auroc")}
    assert pairs == expected
    assert table.attrs["left_out"] == ()
    assert table.attrs["splits"] == "declared by the prompts"
    measures = table.groupby("measure")["family"].unique().to_dict()
    assert set(measures) == {
        "detection_rate",
        "false_positive_rate",
        "auroc",
        "auroc_matched",
        "tpr_at_fpr_1",
        "tpr_at_fpr_5",
    }
    assert set(measures["auroc"]) == {"all", *FAMILIES}
    assert set(measures["auroc_matched"]) == set(FAMILIES)
    assert (table["ci_low"] <= table["value"]).all()
    assert (table["value"] <= table["ci_high"]).all()


@pytest.mark.parametrize("criterion", ["deflection", "svd_right"])
def test_selection_threshold_and_test_by_hand(run: xr.Dataset, table: pd.DataFrame, criterion: str) -> None:
    top = top_heads(score(run, criterion), criterion=criterion, rule="selectivity", projection="query", k=1).iloc[0]
    angle = run["deflection"].sel(projection="query", layer=top["layer"], head=top["head"]).values.astype(float)
    unsafe, split = run["label"].values == "unsafe", run["split"].values
    threshold = kde_threshold(angle[(split == "threshold") & unsafe], angle[(split == "threshold") & ~unsafe]).value
    asked = {"criterion": criterion, "rule": "selectivity", "projection": "query"}
    rate = one(table, **asked, measure="detection_rate", family="icon")
    assert (rate["layer"], rate["head"]) == (top["layer"], top["head"])
    assert rate["threshold"] == pytest.approx(threshold)
    icon = (run["family"].values == "icon") & (split == "test")
    assert rate["value"] == pytest.approx((angle[icon & unsafe] > threshold).mean())
    assert rate["n"] == (icon & unsafe).sum()
    false = one(table, **asked, measure="false_positive_rate", family="all")
    assert false["value"] == pytest.approx((angle[(split == "test") & ~unsafe] > threshold).mean())
    pooled = one(table, **asked, measure="auroc", family="icon")
    of = (split == "test") & (~unsafe | icon)
    assert pooled["value"] == pytest.approx(roc_auc_score(unsafe[of], angle[of]))
    matched = one(table, **asked, measure="auroc_matched", family="icon")
    assert matched["value"] == pytest.approx(roc_auc_score(unsafe[icon], angle[icon]))
    at_five = one(table, **asked, measure="tpr_at_fpr_5", family="all")
    test = split == "test"
    fpr, tpr, _ = roc_curve(unsafe[test], angle[test], drop_intermediate=False)
    assert at_five["value"] == pytest.approx(tpr[fpr <= 0.05].max())


def test_a_probe_is_fitted_on_the_selection_split(run: xr.Dataset, table: pd.DataFrame) -> None:
    found = one(table, criterion="probe", rule="auroc", measure="auroc", family="all")
    z = run["head_output"].sel(layer=found["layer"], head=found["head"]).values.astype(float)
    unsafe, split = run["label"].values == "unsafe", run["split"].values
    chosen, test = split == "selection", split == "test"
    decision = LogisticRegression(tol=1e-10).fit(z[chosen], unsafe[chosen]).decision_function(z)
    between = split == "threshold"
    assert found["threshold"] == pytest.approx(
        kde_threshold(decision[between & unsafe], decision[between & ~unsafe]).value
    )
    assert found["value"] == pytest.approx(roc_auc_score(unsafe[test], decision[test]))


def test_the_test_split_decides_nothing(run: xr.Dataset, table: pd.DataFrame) -> None:
    shuffled = run.copy(deep=True)
    test = np.flatnonzero(run["split"] == "test")
    for name in ("deflection", "head_output"):
        shuffled[name][test] = shuffled[name].values[np.random.default_rng(0).permutation(test)]
    again = detection_table(shuffled, criteria=("deflection", "probe", "svd_right"), bootstrap=200)
    chosen = ["criterion", "rule", "projection", "layer", "head", "threshold"]
    pd.testing.assert_frame_equal(table[chosen], again[chosen])
    detected = table["measure"] == "detection_rate"
    assert (table.loc[detected, "value"] != again.loc[detected, "value"]).any()


def test_intervals_cover_the_rates_of_another_draw(table: pd.DataFrame) -> None:
    # The planted head's rate on a large fresh sample lies in the interval measured on 24 test prompts.
    rate = one(table, criterion="deflection", rule="auroc", projection="query", measure="detection_rate", family="all")
    fresh = synthetic_run(pairs=2000, planted=((2, 1), (1, 0)), layers=3, projections=("query",), keep_states=False)
    head = fresh["deflection"].sel(layer=rate["layer"], head=rate["head"]).values[fresh["label"] == "unsafe"]
    assert rate["ci_low"] <= (head > rate["threshold"]).mean() <= rate["ci_high"]


def test_what_cannot_be_thresholded_is_left_out_and_said(run: xr.Dataset) -> None:
    silent = run.copy(deep=True)
    silent["kl"][:] = 0
    found = detection_table(silent, criteria=("deflection", "ships"), rules=("selectivity",), bootstrap=50)
    assert set(found["criterion"]) == {"deflection"}
    assert len(found.attrs["left_out"]) == 2
    assert (
        "ships × selectivity × query: selectivity over ships (query) keeps 0 of 12 heads" in found.attrs["left_out"][0]
    )
    with pytest.raises(CriterionError, match=r"No pair of these criteria and rules gives a head to test. ships"):
        detection_table(silent, criteria=("ships",), rules=("selectivity",))


def test_a_family_is_detected_unseen() -> None:
    """L1H0 sees icons only, L2H1 everything: without icons L2H1 must be chosen, and still catch them."""
    run = synthetic_run(pairs=96, splits=SPLITS, projections=("query",))
    icons = (run["family"].values == "icon") & (run["label"].values == "unsafe")
    run["deflection"][:, 0, 1, 0] = np.where(icons, 60.0, 0.9) + run["deflection"].values[:, 0, 1, 0] / 100
    whole = top_heads(score(run, "deflection"), criterion="deflection", rule="selectivity", k=1).iloc[0]
    assert (whole["layer"], whole["head"]) == (1, 0), "with icons in the selection, their head wins"
    table = leave_one_family_out(run, criterion="deflection", rule="selectivity", bootstrap=50)
    assert set(table["held_out"]) == set(FAMILIES)
    of_icons = table[table["held_out"] == "icon"]
    assert set(zip(of_icons["layer"], of_icons["head"], strict=True)) == {(2, 1)}
    assert one(of_icons, measure="detection_rate", family="icon")["value"] > 0.5
    assert set(of_icons.loc[of_icons["measure"] == "detection_rate", "family"]) == {"all", "icon"}
    benign = of_icons.loc[of_icons["measure"] == "false_positive_rate"].set_index("family")
    assert benign.loc["all", "n"] == int(((run["split"] == "test") & (run["label"] == "safe")).sum())


@pytest.mark.parametrize("name", ["text", ""])
def test_with_one_family_or_none_the_table_says_that_nothing_was_held_out(run: xr.Dataset, name: str) -> None:
    alone = run.isel(prompt=np.flatnonzero(run["family"] == "text"))
    alone = alone.assign_coords(family=("prompt", np.full(alone.sizes["prompt"], name)))
    table = leave_one_family_out(alone, criterion="deflection", rule="selectivity", bootstrap=0)
    assert set(table["held_out"]) == {""}
    assert table["ci_low"].isna().any()
    (why,) = table.attrs["left_out"]
    assert why.startswith("The unsafe prompts are of " + ("one attack family, 'text'" if name else "no named attack"))
    whole = detection_table(alone, criteria="deflection", rules="selectivity", bootstrap=0)
    mine = whole[whole["projection"] == "query"].reset_index(drop=True)
    pd.testing.assert_frame_equal(table.drop(columns="held_out"), mine, check_exact=True)


def test_a_family_that_cannot_be_held_out_is_said_and_the_others_answer(run: xr.Dataset) -> None:
    unsafe, family = run["label"].values == "unsafe", run["family"].values
    few = (family == "icon") & unsafe & (run["split"].values == "test")
    part = run.isel(prompt=np.flatnonzero(~few))
    table = leave_one_family_out(part, criterion="deflection", rule="selectivity", bootstrap=20)
    assert set(table["held_out"]) == set(FAMILIES) - {"icon"}
    assert table.attrs["left_out"][0].startswith("icon: Measuring detection takes safe and unsafe prompts")


@pytest.mark.parametrize("paired", [True, False])
def test_dealt_splits_are_stratified_seeded_and_keep_pairs(paired: bool) -> None:
    run = synthetic_run(pairs=120, paired=paired)
    dealt, told = with_splits(run, seed=1)
    assert "dealt 40:30:30" in told
    counts = dealt[["label", "family", "split"]].to_dataframe().value_counts(["split", "label", "family"])
    shares = counts.groupby("split").sum() / 240
    assert shares["selection"] == pytest.approx(0.4, abs=0.04)
    assert (counts.unstack("split") >= 8).all(axis=None), "every family of either class is in every split"
    if paired:
        assert (dealt["split"].to_series().groupby(dealt["pair_id"].values).nunique() == 1).all()
    assert (with_splits(run, seed=1)[0]["split"] == dealt["split"]).all()
    assert (with_splits(run, seed=2)[0]["split"] != dealt["split"]).any()


def test_declared_splits_are_kept_and_gaps_refused() -> None:
    run, told = with_splits(synthetic_run(splits=("selection", "test")))
    assert told.endswith("the selection prompts set the threshold")
    assert (in_split(run, "threshold") == in_split(run, "selection")).all()
    assert not (in_split(run, "test") & in_split(run, "selection")).any()
    with pytest.raises(RunError, match="detection needs selection and test prompts"):
        with_splits(synthetic_run(splits=("selection", "threshold")))
    lopsided = synthetic_run(splits=SPLITS)
    keep = (lopsided["split"] != "test") | (lopsided["label"] == "unsafe")
    with pytest.raises(RunError, match="The split test holds 0 safe prompts"):
        with_splits(lopsided.isel(prompt=np.flatnonzero(keep)))
    with pytest.raises(RunError, match="The split threshold holds"):
        with_splits(synthetic_run(pairs=4))


def test_measures_want_both_classes() -> None:
    with pytest.raises(CriterionError, match="got 3 unsafe, 0 safe"):
        measures_on(np.arange(3.0), np.ones(3, bool), family=np.full(3, ""), pairs=np.full(3, ""), threshold=1.0)
