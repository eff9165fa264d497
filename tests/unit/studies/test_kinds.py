"""Data sets that are swapped, and risk grades: what studies group prompts by."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr

from tests.unit import planted_parts
from tests.unit.synthetic_run import synthetic_run
from workbench.errors import PromptError, StudyError
from workbench.prompts.prompt import PromptSet
from workbench.prompts.worlds.planted import draw_planted_prompts
from workbench.runs.splits import with_splits
from workbench.studies import Material, make_study
from workbench.studies.grades import declared_grade, risk_grades, trend
from workbench.studies.measuring import is_unsafe

PLANTED = "L3H1"


@pytest.mark.slow
def test_other_prompt_sets_are_swapped_and_each_is_held_against_its_own_safe_prompts():
    others = draw_planted_prompts(n=72, seed=5)
    material = Material(planted_parts.model(), planted_parts.prompts(), (others,), progress=False)
    sources = material.sources
    assert sources.by == "set"
    assert sources.names == sorted([planted_parts.prompts().name, others.name])
    assert len(set(sources.run["prompt"].values)) == len(planted_parts.prompts()) + len(others)
    mine = sources.of(others.name)
    assert mine.sum() == len(others)
    assert (sources.kind[mine] == others.name).all()
    for name in ("transfer", "selection-set"):
        areas = make_study(name, material).table
        areas = areas[areas["measure"].str.casefold() == "auroc"]
        column = areas.columns[0]
        areas = areas[~areas[column].isin(["random labels", "all"])]
        assert len(areas) == 4
        assert (areas["value"] == 1).all()
    heads = make_study("selection-set", material).table["heads"]
    assert heads[0].split()[0] == PLANTED


@pytest.mark.slow
def test_one_set_is_swapped_by_source_where_there_are_several_and_else_by_family():
    prompts = planted_parts.prompts()
    material = Material(planted_parts.model(), prompts, progress=False)
    assert material.sources.by == "family"
    unsafe = is_unsafe(material.sources.run)
    assert (material.sources.of("icon") | unsafe).all()  # families share their safe prompts
    two = PromptSet(replace(p, source=f"set {int(p.pair_id[-1]) % 2}") for p in prompts)
    assert Material(planted_parts.model(), two, progress=False).sources.by == "source"
    alone = PromptSet(replace(p, family="text") for p in prompts)
    with pytest.raises(StudyError, match="another prompt set"):
        make_study("transfer", Material(planted_parts.model(), alone, progress=False))


@pytest.mark.slow
def test_labels_dealt_by_chance_are_found_in_nothing():
    """Where pairs are turned by the toss of a coin, the planted head tells no label from the other."""
    rng, turned = np.random.default_rng(5), {"safe": "unsafe", "unsafe": "safe"}
    toss = {p.pair_id: bool(rng.integers(2)) for p in planted_parts.prompts()}
    dealt = PromptSet(
        replace(p, label=turned[p.label] if toss[p.pair_id] else p.label) for p in planted_parts.prompts()
    )
    material = Material(planted_parts.model(), dealt, progress=False)
    for name in (
        "maps",
        "projections",
        "measures",
        "head-count",
        "graded",
        "selection-set",
        "transfer",
        "probe-curves",
    ):
        assert make_study(name, material).found == (), name


def test_names_that_tables_use_are_refused_at_the_door():
    named = PromptSet(replace(p, family="safe") for p in planted_parts.prompts(48))
    with pytest.raises(PromptError, match="'safe', and tables mean something else"):
        Material(planted_parts.model(), named, progress=False)


def test_grades_are_what_names_declare_and_else_the_ladder_of_pairs():
    names = {"visualadv_16": 16, "bap_255": 255, "Risk: 2": 2, "severity=0.5": 0.5, "medium": 2, "eps 8": 8}
    assert {name: declared_grade(name) for name in names} == names
    assert declared_grade("visualadv_unconstrained") == np.inf
    assert np.isnan([declared_grade(name) for name in ("policy 3", "fraud", "", "grades", "01-Illegal", "risky")]).all()
    run, _ = with_splits(synthetic_run(pairs=24, keep_states=False))
    grades, called = risk_grades(run)
    assert called == {1.0: "safe twin", 2.0: "unsafe"}
    np.testing.assert_array_equal(grades == 2, is_unsafe(run))
    eps = np.where(np.arange(run.sizes["prompt"]) % 3 == 0, "visualadv_16", "visualadv_unconstrained").astype(object)
    grades, called = risk_grades(run.assign_coords(family=("prompt", eps)))
    assert list(called.values()) == ["visualadv_16", "visualadv_unconstrained"]
    assert np.isnan(grades[~is_unsafe(run)]).all()


def test_the_trend_is_spearmans_and_chance_finds_none():
    rng = np.random.default_rng(0)
    grades, alone = np.repeat([0.0, 1.0, 2.0], 12), np.full(36, "")
    values = rng.normal(size=36) + grades
    found, p = trend(values, grades, alone, seed=0)
    assert found == pytest.approx(spearmanr(values, grades).statistic)
    assert p < 0.01
    null = [trend(rng.normal(size=36), grades, alone, seed=i)[1] for i in range(60)]
    assert np.mean(np.array(null) < 0.05) < 0.15
    assert np.isnan(trend(np.ones(36), grades, alone, seed=0)).all()
    # Of pairs, each of both grades and alike in all else, chance can only swap two and two.
    pairs = np.repeat([f"p{i}" for i in range(4)], 2)
    _, p = trend(np.repeat(np.arange(4.0), 2) * 10 + np.tile([0.0, 1.0], 4), np.tile([0.0, 1.0], 4), pairs, seed=0)
    assert p == pytest.approx(1 / 16, abs=0.02)
