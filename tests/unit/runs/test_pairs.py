"""Prompts of a run that ask the same under several ids are one unit wherever prompts are dealt, folded or drawn."""

import logging

import numpy as np
import pytest
import xarray as xr

from tests.unit.synthetic_run import synthetic_run
from workbench.criteria import statistics
from workbench.criteria.probes import fold_numbers
from workbench.criteria.score import score
from workbench.detectors.calibration import stand_ins
from workbench.errors import RunError
from workbench.prompts import split_prompts
from workbench.runs.pairs import told_repeats, unit_names
from workbench.runs.splits import with_splits


def repeated(copies: int = 3, **how) -> xr.Dataset:
    """A run whose prompts all stand `copies` times, under other ids."""
    once = synthetic_run(**{"pairs": 24, "paired": False} | how)
    n = once.sizes["prompt"]
    run = once.isel(prompt=np.tile(np.arange(n), copies))
    names = [f"{p} copy {i // n}" for i, p in enumerate(run["prompt"].values)]
    return run.assign_coords(prompt=names, content=("prompt", np.tile([f"c{i}" for i in range(n)], copies)))


def per_content(run: xr.Dataset, values: np.ndarray) -> list[set]:
    contents = run["content"].values
    return [set(values[contents == c].tolist()) for c in np.unique(contents)]


def test_copies_are_one_unit_everywhere() -> None:
    run = repeated()
    units, unsafe = unit_names(run), run["label"].values == "unsafe"
    dealt, told = with_splits(run)
    assert all(len(splits) == 1 for splits in per_content(run, dealt["split"].values))
    assert "144 prompts repeat 48 questions under several ids" in told
    assert all(len(folds) == 1 for folds in per_content(run, fold_numbers(unsafe, units)))
    for weights in statistics.bootstrap_weights(unsafe, units, resamples=5, seed=0):
        assert all(len(drawn) == 1 for drawn in per_content(run, weights))
    shuffles = statistics.shuffled_labels(unsafe, units, contents=run["content"].values, permutations=20, seed=0)
    assert (shuffles.labels().sum(1) == unsafe.sum()).all()
    assert len(np.unique(shuffles.labels(), axis=0)) > 10
    for labels in shuffles.labels():
        assert all(len(label) == 1 for label in per_content(run, labels))
    parts = [{p.text for p in part} for part in split_prompts(stand_ins(run)).values()]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 48


def test_copies_in_pairs_move_with_their_twins() -> None:
    run = repeated(2, paired=True, pairs=12)
    unsafe = run["label"].values == "unsafe"
    shuffles = statistics.shuffled_labels(
        unsafe, unit_names(run), contents=run["content"].values, permutations=40, seed=0
    )
    pairs = run["pair_id"].values
    for labels in shuffles.labels():
        assert all(len(label) == 1 for label in per_content(run, labels))
        assert all(labels[pairs == p].sum() == 2 for p in np.unique(pairs)), "two of the four, both of one question"
    assert 0.3 < (shuffles.labels() != unsafe).mean() < 0.7


def test_a_question_labelled_both_ways_keeps_its_labels() -> None:
    unsafe = np.array([True, False, True, False, True, False])
    contents = np.array(["a", "a", "b", "c", "d", "e"], dtype=object)
    units = np.array(["u", "u", "", "", "", ""], dtype=object)
    shuffles = statistics.shuffled_labels(unsafe, units, contents=contents, permutations=50, seed=0)
    assert (shuffles.labels()[:, :2] == [1, 0]).all()
    assert (shuffles.labels().sum(1) == 3).all()
    assert shuffles.labels()[:, 2:].std(0).min() > 0


def test_p_stays_uniform_when_rows_are_repeated() -> None:
    """Four copies of 40 independent prompts: shuffled one by one, p under 0.05 comes about 0.2 of the time."""
    rng = np.random.default_rng(3)
    unsafe = np.tile([True, False] * 20, 4)
    contents = np.tile([f"c{i}" for i in range(40)], 4).astype(object)
    values = np.tile(rng.exponential(size=(40, 1500)), (4, 1))
    alone = np.full(160, "", dtype=object)
    wrong = statistics.permutation_p(
        values, unsafe, statistics.shuffled_labels(unsafe, alone, permutations=499, seed=4)
    )
    p = statistics.permutation_p(
        values, unsafe, statistics.shuffled_labels(unsafe, contents, contents=contents, permutations=499, seed=4)
    )
    assert (wrong <= 0.05).mean() > 0.15
    assert (p <= 0.05).mean() == pytest.approx(0.05, abs=3.5 * np.sqrt(0.05 * 0.95 / 1500))


def test_random_labels_cannot_be_learnt_from_copies() -> None:
    rng = np.random.default_rng(0)
    areas = []
    for copies in (1, 4):
        run = repeated(copies, planted=(), decoy=None, d_head=24)
        label = np.tile(rng.permutation(["safe", "unsafe"] * 24), copies)
        areas.append(score(run.assign_coords(label=("prompt", label)), "probe")["auroc"].mean())
    assert areas == pytest.approx([0.5, 0.5], abs=0.1)
    apart = run.assign_coords(label=("prompt", label)).drop_vars("content")
    assert score(apart, "probe")["auroc"].mean() > 0.9, "without knowing the copies they are learnt by heart"


def test_few_shots_are_not_tested_on_copies_of_what_they_saw() -> None:
    rng = np.random.default_rng(0)
    run = repeated(4, planted=(), decoy=None, d_head=40)
    label = np.tile(rng.permutation(["safe", "unsafe"] * 24), 4)
    run = run.assign_coords(label=("prompt", label))
    assert score(run, "probe_few_shot")["auroc"].mean() == pytest.approx(0.5, abs=0.08)


def test_it_is_said_and_splits_that_share_a_question_are_refused(caplog) -> None:
    run = repeated()
    with caplog.at_level(logging.INFO, logger="workbench"):
        score(run, "deflection", bootstrap=0, permutations=0)
    assert "first 'unsafe 0 copy 0', 'unsafe 0 copy 1'" in caplog.text
    once = synthetic_run()
    assert told_repeats(once) == ""
    np.testing.assert_array_equal(unit_names(once) == "", False)
    split = np.where(np.arange(run.sizes["prompt"]) < 48, "selection", "test")
    with pytest.raises(RunError, match="48 questions have prompts in two splits, for example question 'c0'"):
        with_splits(run.assign_coords(split=("prompt", split)))
