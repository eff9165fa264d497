"""The arena on models whose answer is known, and its parts against numbers worked out by hand."""

import io
import json
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from sklearn.metrics import roc_auc_score

import workbench as wb
from tests.unit.planted_parts import model, prompts, split
from workbench import cli
from workbench.comparison.arena_tables import arena_tables, latex, says
from workbench.comparison.differences import CHANCE, differences_of, holm, mcnemar
from workbench.comparison.entrants import entrants
from workbench.comparison.guarded import quality
from workbench.comparison.measures import COLUMNS
from workbench.criteria.statistics import bootstrap_weights, resampled_auroc
from workbench.detectors import JudgeDetector
from workbench.errors import DetectorError
from workbench.prompts.prompt import Prompt, PromptSet
from workbench.prompts.worlds.planted import COMPLIANCE, REFUSAL
from workbench.replies.guards import Guard
from workbench.views.figures.arena import save_arena

QUICK = {"bootstrap": 200, "costed": 2, "max_new_tokens": 8}
PASSIVE = ("sahs", "hidden-detect", "first-token", "last-layer", "rcs-mcd", "direction")
DETECTORS = ("one-head", "ships", "one-head-random:k=3", *PASSIVE)


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return wb.arena(model(), prompts(), DETECTORS, ("recipe", "indicating", "safety-prompt"), **QUICK)


def value(table: pd.DataFrame, detector: str, measure: str, source: str = "all", family: str = "all") -> float:
    rows = table[(table["detector"] == detector) & (table["measure"] == measure)]
    rows = rows[(rows["source"] == source) & (rows["family"] == family)]
    assert len(rows) == 1, f"{detector} {measure} {source} {family}: {len(rows)} rows"
    return float(rows["value"].iloc[0])


@pytest.mark.slow
def test_one_head_detects_everything_without_false_alarms_and_ships_falls_for_the_decoy(table):
    assert tuple(table.columns) == COLUMNS
    for measure, wanted in {"detection_rate_kde": 1, "fpr_kde": 0, "auroc": 1, "tpr_at_1": 1, "tpr_at_5": 1}.items():
        assert value(table, "one-head", measure) == wanted
    assert value(table, "ships", "auroc") < 0.7
    assert value(table, "ships", "fpr_kde") > 0.2
    for detector in PASSIVE:
        assert value(table, detector, "auroc") == 1, detector
    assert not table.attrs["left_out"]
    assert set(table["source"]) == {"all", "planted"}
    assert {"text", "typographic", "icon", "wrapper"} < set(table["family"])


@pytest.mark.slow
def test_every_interval_holds_its_value_and_counts_its_prompts(table):
    rows = table[table["ci_low"].notna()]
    assert (rows["ci_low"] <= rows["value"] + 1e-12).all()
    assert (rows["ci_high"] >= rows["value"] - 1e-12).all()
    test = split("test")
    counts = table[(table["measure"] == "detection_rate_kde") & (table["source"] == "planted")]
    for family, n in counts[["family", "n"]].itertuples(index=False):
        assert n == sum(p.label == "unsafe" and family in ("all", p.family) for p in test)


@pytest.mark.slow
def test_measures_are_those_of_the_detector_alone(table):
    """Two roads: the arena's shared looks, and the detector by itself."""
    test = split("test")
    unsafe = np.array([p.label == "unsafe" for p in test])
    for name in ("ships", "hidden-detect"):
        (entrant,) = entrants(name, seed=0)
        scores = entrant.detector.fit(model(), prompts()).decision_function(model(), test)
        assert value(table, name, "auroc") == pytest.approx(roc_auc_score(unsafe, scores))
        assert value(table, name, "fpr_kde") == pytest.approx(np.mean(scores[~unsafe] > entrant.detector.threshold))
        assert table.attrs["thresholds"][name] == pytest.approx(entrant.detector.threshold, rel=1e-4)


def test_guards_act_on_what_is_flagged_and_on_nothing_else(table):
    # Planted refuses every attack by itself; the recipe refuses the safe prompts that Ships' head flags.
    assert value(table, "one-head", "asr_guarded") == value(table, "one-head", "asr_unguarded") == 0
    assert value(table, "one-head", "benign_refusal") == 0
    assert value(table, "ships", "benign_refusal") == value(table, "ships", "fpr_kde")
    assert value(table, "ships", "benign_quality_flagged") == value(table, "ships", "benign_quality_forced") == 0
    assert np.isnan(value(table, "one-head", "benign_quality_flagged"))  # no benign prompt is flagged
    assert value(table, "ships + indicating", "benign_refusal") < value(table, "ships", "benign_refusal")
    assert value(table, "safety-prompt", "benign_refusal") == 0
    assert value(table, "safety-prompt", "passes") > 1


@pytest.mark.slow
def test_a_guard_lowers_attack_success_where_the_model_alone_complies():
    base = replace_all(prompts(), label_of=lambda p: p.label)
    table = wb.arena(model("null"), base, {"told": told()}, ("recipe",), **QUICK)
    assert value(table, "told", "asr_unguarded") == 1
    assert value(table, "told", "asr_guarded") == 0
    assert value(table, "told", "benign_refusal") == 0


def told() -> JudgeDetector:
    return JudgeDetector(lambda p: float(p.label == "unsafe"), threshold=0.5)


def replace_all(given: PromptSet, *, label_of) -> PromptSet:
    return PromptSet(replace(p, label=label_of(p)) for p in given)


def test_who_is_better_is_said_paired_and_corrected(table):
    differences = differences_of(table)
    chance = differences[differences["other"] == CHANCE].set_index("detector")
    assert chance.loc["one-head", "p_corrected"] < 0.01
    assert chance.loc["ships", "p_corrected"] > 0.1
    pair = differences[(differences["detector"] == "one-head") & (differences["other"] == "ships")]
    areas = pair[pair["measure"] == "auroc"].iloc[0]
    assert areas["difference"] == pytest.approx(value(table, "one-head", "auroc") - value(table, "ships", "auroc"))
    assert areas["p_corrected"] >= areas["p_value"]
    assert (differences["p_corrected"] >= differences["p_value"] - 1e-15).all()
    assert (
        differences.groupby("measure")["comparisons"].max()["accuracy_kde"]
        == len(DETECTORS) * (len(DETECTORS) - 1) // 2
    )


@pytest.mark.slow
def test_on_the_null_model_and_on_random_labels_nothing_is_found():
    names = ("one-head", "one-head-fused:k=3", "sahs", "last-layer", "rcs-kcd")
    rng = np.random.default_rng(5)
    of_pair = {p.pair_id: bool(rng.integers(2)) for p in prompts()}
    turn = {"safe": "unsafe", "unsafe": "safe"}
    shuffled = replace_all(prompts(), label_of=lambda p: turn[p.label] if of_pair[p.pair_id] else p.label)
    for where, given in {"null": prompts(), "planted": shuffled}.items():
        table = wb.arena(model(where), given, names, **{**QUICK, "costed": 0})
        tested = differences_of(table)
        assert (tested["p_corrected"] > 0.05).all(), tested[tested["p_corrected"] <= 0.05]
        areas = table[(table["measure"] == "auroc") & (table["source"] == "all")]
        assert len(areas) == len(names)
        low, high = (0.5, 0.5) if where == "null" else (0.1, 0.9)
        assert areas["value"].between(low, high).all()


@pytest.mark.slow
def test_the_work_does_not_grow_with_the_number_of_detectors():
    def work(names: tuple[str, ...]) -> int:
        before = model().work.layer_tokens
        wb.arena(model(), prompts(48), names, bootstrap=0, costed=0)
        return model().work.layer_tokens - before

    one = work(("direction",))
    assert work(("direction", "first-token", "last-layer", "hidden-detect")) == one
    assert work(("one-head", "ships", "one-head-fused:k=3/5")) < 1.3 * work(("one-head-fused:k=5",))


def test_draws_have_their_spread(table):
    draws = pd.DataFrame(table.attrs["draws"])
    assert set(draws["detector"]) == {"one-head-random:k=3"}
    areas = draws[draws["measure"] == "auroc"]["value"]
    assert len(areas) == 20
    assert areas.nunique() > 3
    assert value(table, "one-head-random:k=3", "auroc") == pytest.approx(areas.mean())
    row = table[(table["detector"] == "one-head-random:k=3") & (table["measure"] == "auroc")].iloc[0]
    assert row["ci_low"] <= areas.quantile(0.025) + 1e-12
    assert row["ci_high"] >= areas.quantile(0.975) - 1e-12


@pytest.mark.slow
def test_a_second_run_writes_the_same_bytes_but_for_the_times(tmp_path):
    asked = {"detectors": ("one-head", "one-head-random:k=2", "rcs-kcd"), "guards": ("recipe",), **QUICK}
    both = [wb.arena(model(), prompts(48), out=out, **asked) for out in (None, tmp_path)]
    first, second = (save_arena(found, tmp_path / name) for found, name in zip(both, "ab", strict=True))
    names = ["arena.csv", "times.csv", "differences.csv", "arena.json", "arena.tex", "arena.pdf", "arena.png"]
    assert [f.name for f in first] == names
    same = {a.name: a.read_bytes() == b.read_bytes() for a, b in zip(first, second, strict=True)}
    assert all(same[name] for name in names if name != "times.csv"), same
    assert set(pd.read_csv(first[1])["measure"]) == {"milliseconds"}
    assert json.loads(first[3].read_text())["weight_hash"] == model().weight_hash
    assert len(list(tmp_path.glob("seen-*.zarr"))) == 2  # all heads to choose, then the chosen ones


def test_the_printed_table_fits_and_the_latex_one_is_escaped(table):
    console = Console(width=80, record=True, file=io.StringIO())
    for shown in arena_tables(table):
        console.print(shown)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert any("one-head" in line and "1.00" in line and "100" in line for line in lines)
    renamed = table.assign(detector=table["detector"].replace("ships", "100%_of{it}"))
    assert r"100\%\_of\{it\} &" in latex(renamed)
    told_ = says(table, differences_of(table))
    assert "ships" not in told_[0]
    assert "one-head" in told_[0]


@pytest.mark.slow
def test_the_command_prints_a_table_that_fits_and_writes_its_files(tmp_path, monkeypatch, capsys):
    words = "arena -m planted -p planted -n 48 --detectors direction,one-head-fused:k=1/2 --guards recipe"
    monkeypatch.setattr(
        sys, "argv", ["workbench", *words.split(), "--out", str(tmp_path), "--max-new-tokens", "6", "--bootstrap", "50"]
    )
    with pytest.raises(SystemExit) as stop:
        cli.main()
    printed = capsys.readouterr().out
    assert not stop.value.code
    tables = printed.split("\n- ")[0]  # the sentences below them are not folded into a pipe
    assert max(map(len, tables.splitlines())) <= 80
    assert "one-head-fused:k=2" in printed
    written = pd.read_csv(tmp_path / "arena.csv")
    assert set(written["detector"]) == {"direction", "one-head-fused:k=1", "one-head-fused:k=2"}
    assert "milliseconds" not in set(written["measure"])
    assert r"\toprule" in (tmp_path / "arena.tex").read_text()


@pytest.mark.slow
def test_one_that_breaks_takes_nobody_with_it():
    class Broken(Guard):
        name = "broken"

        def replies(self, model, prompts, plain, **options):
            raise ZeroDivisionError("division by zero")

    calls = []

    def tires(prompt: Prompt) -> float:
        calls.append(prompt.id)
        if len(calls) > 20:
            raise RuntimeError("tired")
        return float(prompt.label == "unsafe")

    given = {"tired": JudgeDetector(tires, threshold=0.5), "told": told()}
    table = wb.arena(model(), prompts(48), given, ("recipe", Broken()), **{**QUICK, "costed": 0})
    assert table.attrs["left_out"] == {"tired": "RuntimeError: tired", "broken": "ZeroDivisionError: division by zero"}
    assert value(table, "told", "asr_guarded") == 0
    with pytest.raises(DetectorError, match=r"None of the guards could enter the arena\. broken: ZeroDivision"):
        wb.arena(model(), prompts(48), (), Broken())


@pytest.mark.slow
def test_a_run_stands_in_for_the_sweeps_and_changes_no_number():
    asked = {"detectors": ("one-head", "one-head-fused:k=3", "sahs"), "bootstrap": 0, "costed": 0}
    run = wb.sweep(model(), prompts(48), projections=("query",), progress=False)
    before = model().work.layer_tokens
    swept = wb.arena(model(), prompts(48), **asked)
    half = model().work.layer_tokens
    stored = wb.arena(model(), prompts(48), run=run, **asked)
    assert half > before
    assert model().work.layer_tokens == half
    pd.testing.assert_frame_equal(stored, swept, rtol=1e-4)
    assert stored.attrs["thresholds"] == pytest.approx(swept.attrs["thresholds"], rel=1e-4)
    with pytest.raises(DetectorError, match="16 of the 48 given are not among them"):
        wb.arena(model(), prompts(48), run=run.isel(prompt=run["split"].values != "test"), **asked)


@pytest.mark.slow
def test_controls_say_what_masking_the_heads_does():
    table = wb.arena(model(), prompts(48), ("one-head", "direction"), controls=1, **{**QUICK, "costed": 0})
    assert value(table, "no head masked", "attack_success") == 0
    assert (value(table, "one-head", "attack_success"), value(table, "one-head", "attack_success_control")) == (1, 0)
    assert "attack_success" not in set(table[table["detector"] == "direction"]["measure"])
    freed = [test for test in table.attrs["tests"] if test["test"] == "freed"]
    assert [(test["detector"], test["heads"], test["sets"]) for test in freed] == [("one-head", "L3H1", 1)]
    assert freed[0]["p_value"] < 0.01


def test_resampled_areas_are_the_areas_of_the_resamples():
    rng = np.random.default_rng(0)
    values, unsafe = rng.integers(0, 6, 40).astype(float), rng.random(40) < 0.4
    weights = bootstrap_weights(unsafe, np.full(40, ""), resamples=30, seed=1)
    for area, drawn in zip(resampled_auroc(values, unsafe, weights), weights.astype(int), strict=True):
        assert area == pytest.approx(roc_auc_score(np.repeat(unsafe, drawn), np.repeat(values, drawn)), abs=1e-12)
    assert resampled_auroc(values, unsafe, np.ones((1, 40)))[0] == pytest.approx(roc_auc_score(unsafe, values))


def test_small_numbers_by_hand():
    one, two = np.array([1, 1, 1, 1, 1, 0.0]), np.array([0, 0, 0, 0, 0, 0.0])
    assert mcnemar(one, two) == pytest.approx(2 / 32)
    assert mcnemar(one, one) == 1
    assert holm(np.array([0.01, 0.04, np.nan, 0.03])) == pytest.approx([0.03, 0.06, np.nan, 0.06], nan_ok=True)
    asked = Prompt("p", "what is this")
    assert quality(asked, "A red square", "a red circle") == pytest.approx(2 / 3)
    known = replace(asked, expected=COMPLIANCE)
    assert (quality(known, COMPLIANCE, REFUSAL), quality(known, REFUSAL, REFUSAL)) == (1, 0)
