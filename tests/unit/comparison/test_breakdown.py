"""`compare`, the arena on a stored run: on the planted models the answer is known, head by head."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from sklearn.metrics import roc_auc_score

from tests.unit.planted_parts import model, prompts, split
from tests.unit.synthetic_run import synthetic_run
from workbench.cli.detect import compare_command
from workbench.comparison.breakdown import KEYS, compare, save_breakdown
from workbench.comparison.causal_rows import NOTHING
from workbench.comparison.differences import differences_of
from workbench.comparison.findings import findings
from workbench.comparison.measures import COLUMNS, Field
from workbench.criteria import score
from workbench.detectors import looks
from workbench.errors import ArgumentError, CriterionError, DetectorError, PromptError, RunError
from workbench.models.masks import Mask
from workbench.prompts.prompt import Prompt, PromptSet
from workbench.runs.origin import prompts_of
from workbench.sweeps.sweep import sweep

QUICK = {"controls": 1, "bootstrap": 100, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def run():
    return sweep(model(), prompts(), progress=False, keep_states=False)


@pytest.fixture(scope="module")
def stored(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run.zarr"
    sweep(model(), prompts(), projections=("query",), progress=False, keep_states=False, out=path)
    return str(path)


@pytest.fixture(scope="module")
def breakdown(run) -> pd.DataFrame:
    return compare(
        run.sel(projection=["query"]),
        model(),
        prompts=prompts(),
        criteria=("deflection", "ships"),
        rules=("sensitivity", "selectivity"),
        n_heads=(1, 2),
        judges=("exact", "ships-2025"),
        **QUICK,
    )


def value(table: pd.DataFrame, measure: str, family: str = "all", **keys: object) -> float:
    rows = table[(table["measure"] == measure) & (table["family"] == family)]
    rows = rows[(rows["source"] == "all") | (rows["family"] != "all")]
    for name, wanted in keys.items():
        rows = rows[rows[name] == wanted]
    assert len(rows) == 1, f"{measure} of {family}: {len(rows)} rows"
    return float(rows.iloc[0]["value"])


@pytest.mark.slow
def test_the_published_detector_finds_everything_and_ships_head_nothing(breakdown):
    table = breakdown
    oh = {"criterion": "deflection", "rule": "selectivity", "n_heads": 1}
    ships = {"criterion": "ships", "rule": "sensitivity", "n_heads": 1}
    assert set(table.loc[(table["criterion"] == "deflection") & (table["n_heads"] == 1), "heads"]) == {"L3H1", "L0H2"}
    assert [value(table, "auroc_matched", family, **oh) for family in ("all", "text", "icon")] == [1, 1, 1]
    assert value(table, "detection_rate_kde", **oh) == 1
    assert value(table, "fpr_kde", **oh) == 0
    assert value(table, "auroc", **ships) < 0.7
    assert tuple(table.columns) == ("detector", *KEYS, "heads", "threshold", *COLUMNS[1:])
    known = table[table["ci_low"].notna()]
    assert known["ci_low"].le(known["value"] + 1e-9).all()
    assert known["ci_high"].ge(known["value"] - 1e-9).all()


@pytest.mark.slow
def test_every_head_set_says_what_masking_it_does_beside_random_heads(breakdown):
    table = breakdown
    planted = {"criterion": "deflection", "rule": "selectivity", "n_heads": 1}
    decoy = {"criterion": "deflection", "rule": "sensitivity", "n_heads": 1}
    nothing = {"detector": NOTHING}
    assert value(table, "attack_success", **nothing) == 0
    assert value(table, "refused", **nothing) == 1
    assert value(table, "attack_success", **planted) == 1
    assert value(table, "attack_success", "wrapper", **planted) == 1
    assert value(table, "attack_success_control", **planted) == 0
    assert (value(table, "freed", **planted), value(table, "freed_control", **planted)) == (1, 0)
    assert value(table, "freed", **nothing) == 0
    assert value(table, "benign_exact", **planted) == 1
    assert value(table, "attack_success", **decoy) == 0
    assert "auroc_missed" not in set(table["measure"])  # the planted model refuses every unsafe prompt


def test_two_judges_are_compared_on_the_unmasked_replies(breakdown):
    # The planted replies are so short that the released list takes all of them for refusals.
    assert breakdown.attrs["agreement"]["n"] == len(split("test"))
    assert breakdown.attrs["agreement"]["rate"] == 0.5
    assert breakdown.attrs["agreement"]["kappa"] == 0


def test_what_each_ingredient_adds_is_a_paired_difference(breakdown):
    table = differences_of(breakdown)
    oh, decoy = (
        f"one-head:criterion=deflection:rule={rule}:projection=query" for rule in ("selectivity", "sensitivity")
    )
    contrast = table[
        (table["ingredient"] == "contrast with safe inputs")
        & (table["detector"] == oh)
        & (table["measure"] == "auroc_matched")
    ]
    assert contrast["other"].tolist() == [decoy]
    areas = [value(breakdown, "auroc_matched", detector=key) for key in (oh, decoy)]
    assert contrast["difference"].iloc[0] == pytest.approx(areas[0] - areas[1])
    assert contrast["ci_low"].iloc[0] > 0.2
    assert contrast["p_corrected"].iloc[0] < 0.01
    assert set(table["ingredient"].dropna()) == {"measure", "contrast with safe inputs", "many heads"}


def test_without_the_model_there_are_no_causal_measures(run):
    found = compare(
        run, criteria=("deflection", "probe"), rules=("sensitivity", "layer_matched"), n_heads=(1,), bootstrap=50
    )
    assert not found["measure"].str.contains("attack|exact|refused").any()
    assert set(found["projection"]) == {"query", "value", "none"}
    assert "choice of heads" in set(differences_of(found)["ingredient"])


def test_heads_are_scored_once_for_all_detectors(run, monkeypatch):
    scored = []
    monkeypatch.setattr(looks, "score", lambda seen, names, **how: (scored.append(names), score(seen, names, **how))[1])
    compare(run, criteria=("deflection", "ships"), rules=("sensitivity", "auroc"), n_heads=(1, 3), bootstrap=0)
    assert scored == [("deflection",), ("ships",)]


def test_several_probed_heads_are_one_regression():
    made = synthetic_run(pairs=60, planted=((1, 1), (2, 3)), splits=("selection", "threshold", "test"))
    made = made.assign_attrs(weight_hash="0123", **Mask().describe())
    found = compare(made, criteria=("probe",), rules=("sensitivity", "auroc"), n_heads=(1, 2), bootstrap=50)
    heads = found.drop_duplicates(["rule", "n_heads"]).set_index(["rule", "n_heads"])["heads"]
    assert set(heads["sensitivity", 2].split()) == {"L1H1", "L2H3"}
    differences = differences_of(found).set_index(["ingredient", "detector", "measure"])["difference"]
    one, two = (f"sahs:rule=auroc:k={k}" for k in (1, 2))
    many = differences["many heads", two, "auroc"]
    assert many == pytest.approx(value(found, "auroc", detector=two) - value(found, "auroc", detector=one))


def test_matched_auroc_is_the_mean_over_families_and_pooled_flatters():
    rng = np.random.default_rng(0)
    family = np.repeat(["text", "icon", "question"], 40)
    unsafe = (np.arange(120) % 2 == 0) & (family != "question")
    values = rng.normal(size=120) + 0.5 * unsafe - 5.0 * (family == "question")  # questions are easy negatives
    asked = PromptSet(
        Prompt(str(i), str(i), label="unsafe" if bad else "safe", family=name)
        for i, (bad, name) in enumerate(zip(unsafe, family, strict=True))
    )
    areas = Field(asked, bootstrap=20, seed=0).areas(values)
    assert areas.shape == (2, 21)
    in_family = [roc_auc_score(unsafe[family == f], values[family == f]) for f in ("text", "icon")]
    assert areas[1, 0] == pytest.approx(np.mean(in_family))
    assert areas[0, 0] == pytest.approx(roc_auc_score(unsafe, values))
    assert areas[0, 0] > areas[1, 0] + 0.1
    assert areas[:, 1:].std() > 0


@pytest.mark.parametrize("suffix", ["csv", "parquet", "json"])
def test_a_breakdown_is_stored_whole(breakdown, suffix, tmp_path):
    table, beside, tests = save_breakdown(breakdown, tmp_path / f"breakdown.{suffix}")
    read = {"csv": pd.read_csv, "parquet": pd.read_parquet, "json": pd.read_json}[suffix]
    found = read(table)
    assert len(found) == len(breakdown)
    np.testing.assert_allclose(found["value"].astype(float), breakdown["value"])
    assert len(read(beside)) == len(differences_of(breakdown))
    assert len(read(tests)) == len(breakdown.attrs["tests"]) > 0
    with pytest.raises(ArgumentError, match=r"\.csv, \.parquet, \.json; got 'breakdown\.xlsx'"):
        save_breakdown(breakdown, tmp_path / "breakdown.xlsx")


def test_findings_say_what_the_table_says(breakdown):
    told = "\n".join(findings(breakdown))
    assert "icon: the unmasked model complies with 0 % (0 to " in told
    assert "a single head detects them" in told
    assert "Masking the top 1 by selectivity over deflection (L3H1): complies with 100 %" in told
    assert "Masking the top 1 by Ships (L0H2): complies with 0 %" in told
    assert "The two sets of 1 share 0: none." in told
    causes = [line for line in told.splitlines() if "evidence that they are a cause of refusing" in line]
    assert causes
    assert all("selectivity over deflection" in line for line in causes)
    decoy = next(line for line in told.splitlines() if "top 1 by Ships" in line)
    assert "The mask breaks the model more than random heads do, and frees no more" in decoy
    worse = breakdown.assign(ci_low=np.minimum(breakdown["ci_low"], 0.6))
    told = "\n".join(findings(worse))
    assert "a single head detects" not in told
    assert "no single head's interval shows that it detects them" in told


def test_models_and_prompts_that_are_not_the_runs(run):
    with pytest.raises(DetectorError, match="Give the model of the run"):
        compare(run, model("planted-pair"), prompts=prompts())
    with pytest.raises(PromptError, match="96 prompts, and 32 of them are not among the 64 given"):
        prompts_of(run, [p for p in prompts() if p.split != "test"])
    other = PromptSet([replace(prompts()[0], text="hello"), *prompts()[1:]])
    with pytest.raises(PromptError, match="not its contents: 1 of 96"):
        prompts_of(run, other)
    with pytest.raises(PromptError, match="how to draw its prompts again"):
        prompts_of(run.assign_attrs(prompt_source="{}"))
    recipe = json.dumps({"name_or_path": "planted", "split": None, "seed": 0, "n": 96})
    again = prompts_of(run.assign_attrs(prompt_source=recipe))
    assert [p.id for p in again] == [p.id for p in prompts()]


def test_runs_that_cannot_be_compared(run):
    with pytest.raises(RunError, match="schema"):
        compare(run.assign_attrs(schema="0"))
    with pytest.raises(CriterionError, match="no criterion 'kindness'"):
        compare(run, criteria=("kindness",))
    with pytest.raises(RunError, match="0 unsafe"):
        compare(run.isel(prompt=np.flatnonzero(run["label"] == "safe")))
    constant = run.assign(deflection=run["deflection"] * 0)
    with pytest.raises(CriterionError, match="No combination"):
        compare(constant, criteria=("deflection",), rules=("selectivity",))


@pytest.mark.slow
def test_the_compare_command_prints_and_stores(stored, tmp_path, capsys):
    shown = Console(width=200, record=True)
    options = {"criteria": ("deflection",), "rules": ("sensitivity", "selectivity"), "n_heads": (1,), "bootstrap": 50}
    compare_command(shown, stored, out=tmp_path / "breakdown.csv", **options)
    text = shown.export_text()
    assert "L3H1" in text
    assert "As published (deflection, selectivity, query, one head: L3H1)" in text
    assert "contrast with safe" in text
    assert (tmp_path / "breakdown_ingredients.csv").is_file()
    with pytest.raises(ArgumentError, match=r"got 'breakdown\.doc'"):
        compare_command(shown, stored, out=tmp_path / "breakdown.doc", **options)
