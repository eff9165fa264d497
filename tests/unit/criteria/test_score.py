"""`score`: its columns against plain numpy, its splits, and what it refuses."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from tests.unit.synthetic_run import synthetic_run
from workbench.criteria import SCORE_COLUMNS, Criterion, list_criteria, prompt_values, register_criterion, score
from workbench.criteria import registry as registry_module
from workbench.errors import CriterionError, RunError, WorkbenchError
from workbench.runs.reading import SCHEMAS

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def run() -> xr.Dataset:
    return synthetic_run()


@pytest.fixture(scope="module")
def scores(run: xr.Dataset) -> pd.DataFrame:
    return score(run, "all", bootstrap=200, permutations=400)


def row(scores: pd.DataFrame, criterion: str, projection: str, layer: int, head: int) -> pd.Series:
    found = scores.query("criterion == @criterion and projection == @projection and layer == @layer and head == @head")
    assert len(found) == 1
    return found.iloc[0]


def test_one_row_a_head_with_exactly_the_columns(run: xr.Dataset, scores: pd.DataFrame) -> None:
    assert tuple(scores.columns) == SCORE_COLUMNS
    assert not scores.duplicated(["criterion", "projection", "layer", "head"]).any()
    per_projection = scores.groupby(["criterion", "projection"]).size()
    assert (per_projection == run.sizes["layer"] * run.sizes["head"]).all()
    assert set(scores["criterion"]) == {c.name for c in list_criteria()}


def test_default_criteria_are_the_three_published_ones(run: xr.Dataset) -> None:
    assert list(dict.fromkeys(score(run, bootstrap=0, permutations=0)["criterion"])) == ["deflection", "ships", "probe"]


@pytest.mark.parametrize(
    ("criterion", "variable"),
    [
        ("deflection", "deflection"),
        ("ships", "kl"),
        ("js", "js"),
        ("tv", "tv"),
        ("top1_change", "top1_change"),
        ("l2", "l2"),
        ("norm_ratio", "norm_ratio"),
        ("refusal_change", "refusal_change"),
    ],
)
def test_means_are_the_runs_own(run: xr.Dataset, scores: pd.DataFrame, criterion: str, variable: str) -> None:
    values = run[variable].sel(projection="value").values[:, 2, 1].astype(float)
    unsafe = run["label"].values == "unsafe"
    found = row(scores, criterion, "value", 2, 1)
    assert found.unsafe == pytest.approx(values[unsafe].mean(), rel=1e-9)
    assert found.safe == pytest.approx(values[~unsafe].mean(), rel=1e-9)
    assert found.difference == pytest.approx(values[unsafe].mean() - values[~unsafe].mean(), rel=1e-6)
    assert found.ci_low < found.difference < found.ci_high


def test_auroc_effect_size_and_direction(run: xr.Dataset, scores: pd.DataFrame) -> None:
    unsafe = run["label"].values == "unsafe"
    # More negative = stronger: the sign of the statistics follows the strength, that of the means the run.
    change = run["refusal_change"].sel(projection="query").values[:, 2, 1].astype(float)
    above = (-change[unsafe][:, None] > -change[~unsafe]).mean()
    found = row(scores, "refusal_change", "query", 2, 1)
    assert found.auroc == pytest.approx(above)
    assert found.auroc > 0.9
    assert found.difference < 0 < found.effect_size
    pooled = np.sqrt((change[unsafe].var(ddof=1) + change[~unsafe].var(ddof=1)) / 2)
    assert found.effect_size == pytest.approx((change[~unsafe].mean() - change[unsafe].mean()) / pooled)


def test_discoveries_are_the_planted_head_and_nothing_else(scores: pd.DataFrame) -> None:
    found = scores.query("criterion == 'deflection' and q_value < 0.05")
    assert {(r.projection, r.layer, r.head) for r in found.itertuples()} == {("query", 2, 1), ("value", 2, 1)}


def test_no_discovery_without_an_effect() -> None:
    null = synthetic_run(effect=1.0, seed=3)
    found = score(null, ("deflection", "ships"), bootstrap=0)
    assert (found["q_value"] > 0.05).all()


def test_a_mask_that_does_nothing_scores_zero(run: xr.Dataset) -> None:
    still = run.copy()
    still["deflection"] = still["deflection"] * 0
    found = score(still, "deflection", bootstrap=100)
    assert (found[["unsafe", "safe", "difference", "ci_low", "ci_high"]] == 0).all(axis=None)
    assert (found["auroc"] == 0.5).all()
    assert (found["p_value"] == 1).all()
    assert found["effect_size"].isna().all()


def test_what_a_kind_does_not_have_is_nan(scores: pd.DataFrame) -> None:
    missing = {
        "svd_left": {"auroc", "effect_size", "ci_low", "ci_high", "p_value", "q_value"},
        "probe": {"safe", "difference", "effect_size", "p_value", "q_value"},
        "deflection": set(),
    }
    for criterion, names in missing.items():
        part = scores[scores["criterion"] == criterion]
        assert set(part.columns[part.isna().all()]) == names
        assert not part.drop(columns=list(names)).isna().any(axis=None)


def test_the_selection_split_is_what_counts() -> None:
    run = synthetic_run(splits=("selection", "threshold", "test"))
    chosen = run.isel(prompt=np.flatnonzero(run["split"] == "selection"))
    found = score(run, "deflection", seed=1)
    pd.testing.assert_frame_equal(found, score(chosen, "deflection", seed=1))
    assert found.attrs["split"] == "selection"
    assert found.attrs["n_unsafe"] == int((chosen["label"] == "unsafe").sum())
    # The other prompts may hold anything.
    spoilt = run.copy(deep=True)
    spoilt["deflection"][np.flatnonzero(run["split"] != "selection")] = 170.0
    pd.testing.assert_frame_equal(found, score(spoilt, "deflection", seed=1))


def test_one_declared_split_is_used_whole_and_two_without_selection_are_refused() -> None:
    assert score(synthetic_run(splits=("test",)), "deflection").attrs["split"] == "test"
    with pytest.raises(RunError, match="threshold, test and none is 'selection'"):
        score(synthetic_run(splits=("threshold", "test")), "deflection")


def test_a_pair_across_splits_is_refused() -> None:
    run = synthetic_run(splits=("selection", "test"))
    split = run["split"].values.copy()
    split[0] = "test"  # prompts 0 and 1 are pair 0
    with pytest.raises(RunError, match="1 pairs have prompts in two splits, for example pair 'pair 0'"):
        score(run.assign_coords(split=("prompt", split)), "deflection")


def test_heads_left_out_of_a_sweep_stay_nan_and_do_not_count(run: xr.Dataset) -> None:
    part = run.copy(deep=True)
    for name in ("deflection", "state"):
        part[name][:, :, 0] = np.nan
    found = score(part, ("deflection", "svd_left"), bootstrap=100)
    left_out = found["layer"] == 0
    assert found.loc[left_out, "unsafe":].isna().all(axis=None)
    assert found.loc[~left_out, "difference"].notna().all()
    whole = score(run, "deflection", bootstrap=100)
    kept = found[(found["criterion"] == "deflection") & ~left_out].reset_index(drop=True)
    expected = whole[whole["layer"] != 0].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept.drop(columns="q_value"), expected.drop(columns="q_value"))


def test_heads_that_a_search_dropped_are_not_scored(run: xr.Dataset) -> None:
    dropped = run.copy(deep=True)
    dropped["deflection"][30:, 0, 1, 2] = np.nan
    dropped["prompts_used"] = dropped["deflection"].notnull().sum("prompt")
    found = score(dropped, "deflection", bootstrap=0)
    assert found.query("projection == 'query' and layer == 1 and head == 2")["unsafe"].isna().all()
    assert found["unsafe"].isna().sum() == 1


def test_holes_and_infinities_are_refused_with_their_place(run: xr.Dataset) -> None:
    broken = run.copy(deep=True)
    broken["kl"][3, 1, 2, 0] = np.nan
    with pytest.raises(CriterionError, match=r"'ships' is missing for 1 of 80 prompts at L2H0 value .*'safe 1'"):
        score(broken, "ships")
    broken["kl"][3, 1, 2, 0] = np.inf
    with pytest.raises(CriterionError, match=r"'ships' is infinite for 1 of 80 prompts at L2H0 value"):
        score(broken, "ships")
    with pytest.raises(CriterionError, match="missing for every head"):
        score(run.assign(kl=run["kl"] * np.nan), "ships")
    broken["head_output"][5, 1, 3, 0] = np.nan
    with pytest.raises(CriterionError, match=r"'probe'.*first at L1H3"):
        score(broken, "probe")


def test_one_class_and_four_prompts_are_refused(run: xr.Dataset) -> None:
    with pytest.raises(RunError, match="hold 0 safe"):
        score(run.isel(prompt=np.flatnonzero(run["label"] == "unsafe")), "deflection")
    with pytest.raises(RunError, match="at least 3 prompts of each; these 4 hold 2 unsafe"):
        score(run.isel(prompt=slice(4)), "deflection")


def test_identical_states_are_refused(run: xr.Dataset) -> None:
    same = run.copy(deep=True)
    same["base_state"][:] = same["base_state"][0]
    same["head_output"][:] = same["head_output"][0]
    with pytest.raises(CriterionError, match="all 40 prompts have the same unmasked state"):
        score(same, "svd_right")
    with pytest.raises(CriterionError, match="the same for all 80 prompts"):
        score(same, "probe")


def test_another_schema_another_object_and_missing_variables(run: xr.Dataset) -> None:
    with pytest.raises(RunError, match="schema '99'; this version reads '2'"):
        score(run.assign_attrs(schema="99"))
    with pytest.raises(RunError, match=r"xarray\.Dataset.*got dict"):
        score({"deflection": 1})  # type: ignore[arg-type]
    with pytest.raises(CriterionError, match=r"'svd_left' needs run\.state.*keep_states=True"):
        score(synthetic_run(keep_states=False), "svd_left")
    with pytest.raises(CriterionError, match=r"'probe_write' needs run\.write_root.*per query head.*grain='kv_group'"):
        score(run.drop_vars("write_root"), "probe_write")
    with pytest.raises(RunError, match="80 prompts of this run repeat the id of another, the first 'unsafe 0'"):
        score(xr.concat([run, run], "prompt", data_vars="minimal"))
    with pytest.raises(RunError, match="also has 'harmful'"):
        score(run.assign_coords(label=("prompt", np.where(run["label"] == "safe", "safe", "harmful"))))


def test_the_schema_read_is_the_schema_written() -> None:
    from workbench.runs.schema import SCHEMA

    assert SCHEMA in SCHEMAS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("work", "absent"),
    [
        ("import workbench.criteria", ("torch", "transformers", "sklearn", "scipy.stats")),
        (
            """
from tests.unit.synthetic_run import synthetic_run
from workbench.criteria import score, top_heads
scores = score(synthetic_run(), ("deflection", "ships"))
assert len(top_heads(scores, criterion="ships", rule="selectivity", k=3)) == 3
""",
            ("torch", "transformers", "sklearn", "matplotlib", "plotly"),
        ),
    ],
    ids=["importing", "scoring by deflection and ships"],
)
def test_criteria_load_nothing_heavy(work: str, absent: tuple[str, ...]) -> None:
    code = f"{work}\nimport sys\nprint([m for m in {absent!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_unknown_names_are_answered_with_the_close_ones(run: xr.Dataset) -> None:
    with pytest.raises(CriterionError, match=r"'deflexion'\. Did you mean 'deflection'\? There are deflection, l2"):
        score(run, "deflexion")
    with pytest.raises(WorkbenchError, match="No criterion was named"):
        score(run, [])


def test_image_attention_counts_prompts_with_an_image_only(run: xr.Dataset) -> None:
    part = run.copy(deep=True)
    without = np.arange(80) >= 60
    part["image_attention"][without] = np.nan
    part = part.assign_coords(has_image=("prompt", ~without))
    found = row(score(part, "image_attention"), "image_attention", "none", 1, 1)
    unsafe = (run["label"].values == "unsafe") & ~without
    assert found.unsafe == pytest.approx(float(run["image_attention"].values[unsafe, 1, 1].astype(float).mean()))
    with pytest.raises(CriterionError, match="prompts with an image"):
        score(part.assign_coords(has_image=("prompt", np.zeros(80, dtype=bool))), "image_attention")


def test_seeds_decide_and_repeat(run: xr.Dataset) -> None:
    first = score(run, ("deflection", "probe"), seed=5, bootstrap=100, permutations=100)
    pd.testing.assert_frame_equal(first, score(run, ("deflection", "probe"), seed=5, bootstrap=100, permutations=100))
    other = score(run, ("deflection", "probe"), seed=6, bootstrap=100, permutations=100)
    assert (first["ci_low"] != other["ci_low"]).any()
    probes = first["criterion"] == "probe"
    assert (first.loc[probes, "unsafe"] != other.loc[probes, "unsafe"]).any()


def test_the_documented_example_registers_and_appears(run: xr.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry_module.CRITERIA, "confidence_lost", None)  # and is taken out again afterwards
    example = registry_module.__doc__.split("under its name:\n")[1].split("\nWhat `values`")[0]
    exec("\n".join(line.removeprefix("    ") for line in example.splitlines()), {})  # the text a reader would paste
    found = score(run, "all", bootstrap=0, permutations=0).query("criterion == 'confidence_lost'")
    expected = (run["tv"] * run["top1_change"]).sel(projection="query")[run["label"].values == "unsafe"].mean("prompt")
    np.testing.assert_allclose(found.query("projection == 'query'")["unsafe"], expected.values.ravel(), rtol=1e-6)


def test_a_taken_name_and_an_unknown_kind_are_refused() -> None:
    like = {"values": prompt_values, "needs": (), "unit": "", "label": "x", "direction": "", "source": "here"}
    with pytest.raises(CriterionError, match="already is a criterion 'deflection'"):
        register_criterion(Criterion(name="deflection", kind="per prompt", **like))
    with pytest.raises(CriterionError, match="kind 'per token'; a kind is one of 'per prompt', 'per data set'"):
        register_criterion(Criterion(name="mine", kind="per token", **like))


def test_pocket_sized_scores_take_seconds() -> None:
    run = synthetic_run(pairs=120, layers=8, heads=8, d_head=16, keep_states=False)
    score(run)
    start = time.perf_counter()
    score(run)
    # About 0.4 s on a free machine; minutes with a loop over heads.
    assert time.perf_counter() - start < 10
