"""What detectors refuse to be fitted on, asked about, or made with."""

from dataclasses import replace

import numpy as np
import pytest

from tests.unit.planted_parts import model, prompts, split
from workbench.detectors import OneHeadDetector, SAHsDetector
from workbench.detectors.calibration import calibration_parts
from workbench.errors import ArgumentError, DetectorError, PromptError, RunError, WorkbenchError
from workbench.prompts.prompt import PromptSet
from workbench.sweeps.sweep import sweep


def undeclared(n: int | None = None) -> PromptSet:
    return PromptSet(replace(p, split="") for p in prompts()[:n])


def test_a_detector_is_kept_to_its_model(one_head):
    other = model("planted-pair")
    with pytest.raises(DetectorError, match=f"{one_head.weight_hash}.*{other.weight_hash}"):
        one_head.decision_function(other, split("test"))
    with pytest.raises(DetectorError, match="not fitted"):
        OneHeadDetector().predict(model(), split("test"))
    with pytest.raises(DetectorError, match="no prompts to judge"):
        one_head.predict(model(), [])
    with pytest.raises(DetectorError, match="got a str"):
        OneHeadDetector().fit("planted", prompts())


def test_calibration_sets_that_prove_nothing():
    wrong = {
        "hold 48 safe and 0 unsafe": [p for p in undeclared() if p.label == "safe"],
        "hold 2 safe and 2 unsafe": undeclared(4),
        "All 32 prompts are declared test": list(split("test")),
        "32 of 64 prompts declare no split": [*split("selection"), *(replace(p, split="") for p in split("test"))],
        "selection part.*hold 0 safe": [p for p in prompts() if p.split != "selection" or p.label == "unsafe"],
    }
    for message, given in wrong.items():
        with pytest.raises(DetectorError, match=message):
            OneHeadDetector().fit(model(), given)
    shared = [*split("selection"), *(replace(p, id=f"{p.id} again", split="threshold") for p in split("selection"))]
    with pytest.raises(PromptError, match="overlap"):
        OneHeadDetector().fit(model(), shared)


def test_prompts_that_are_all_the_same_to_the_model_set_no_threshold():
    one = split("test")[0]
    same = [
        replace(
            one, id=f"{i}", text=f"how unheard{i}", label=("safe", "unsafe")[i % 2], split="", pair_id="", image=None
        )
        for i in range(24)  # to its tokenizer all of them are "how <unk>"
    ]
    with pytest.raises(WorkbenchError, match=r"values are all|All \d+ unsafe and \d+ safe values are"):
        OneHeadDetector(head=(3, 1)).fit(model(), same)
    with pytest.raises(WorkbenchError, match="same for all"):
        SAHsDetector().fit(model(), same)


@pytest.mark.slow
def test_runs_that_cannot_be_used(run):
    wrong = {
        "schema '0'": run.assign_attrs(schema="0"),
        "weight_hash": run.assign_attrs(weight_hash=""),
        "projections query, not 'value'": run,
        "Give the detector the run's mask": run.assign_attrs(mask_factor=0.5),
    }
    for message, given in wrong.items():
        detector = OneHeadDetector(projection="value" if "value" in message else "query")
        with pytest.raises((DetectorError, RunError), match=message):
            detector.fit_run(given)
    holes = run.copy(deep=True)
    holes["deflection"][3, 0, 2, 2] = np.nan
    with pytest.raises(WorkbenchError, match="L2H2"):
        OneHeadDetector().fit_run(holes)


def test_a_score_that_is_not_finite_is_an_error_and_never_safe(one_head, monkeypatch):
    def overflown(*args, **options):
        found = sweep(*args, **options)
        return found.assign(deflection=found["deflection"] * np.nan)

    monkeypatch.setattr("workbench.detectors.looks.sweep", overflown)
    with pytest.raises(WorkbenchError, match="missing"):
        one_head.predict(model(), split("test")[:2])


def test_options_without_a_meaning_are_refused_at_once():
    for message, options in {
        "gives no score to a single prompt": {"criterion": "probe"},
        "no meaning for deflection": {"rule": "best"},
        "projection must be": {"projection": "key"},
        "k must be a whole number from 1; got 0": {"k": 0},
        "threshold must be a finite number": {"threshold": float("nan")},
    }.items():
        with pytest.raises((DetectorError, ArgumentError), match=message):
            OneHeadDetector(**options)


def test_parts_without_a_threshold_split_are_made_from_the_selection():
    parts = calibration_parts([*split("selection"), *split("test")], seed=1)
    assert {p.id for p in parts.selection} == {p.id for p in parts.threshold} == {p.id for p in split("selection")}
    assert parts.how == "cross-fitted in 4 folds, seed 1"
