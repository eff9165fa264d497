"""Statistics against scipy and closed forms, and by simulation: coverage, uniform p-values, false discoveries."""

import numpy as np
import pytest
from scipy.stats import binomtest, kstest, mannwhitneyu
from sklearn.metrics import roc_auc_score

from workbench.criteria import statistics
from workbench.prompts.ties import strata


def alone(n: int) -> np.ndarray:
    return np.full(n, "", dtype=object)


def twins(n: int) -> np.ndarray:
    return np.array([f"pair {i // 2}" for i in range(n)], dtype=object)


def p_values(values: np.ndarray, unsafe: np.ndarray, pairs: np.ndarray, **how) -> np.ndarray:
    return statistics.permutation_p(values, unsafe, statistics.shuffled_labels(unsafe, pairs, **how))


def interval(values: np.ndarray, unsafe: np.ndarray, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    weights = statistics.bootstrap_weights(unsafe, pairs, resamples=400, seed=2)
    return statistics.bootstrap_difference(values, unsafe, weights)


def test_auroc_with_ties_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 6, size=(50, 7)).astype(float)
    unsafe = rng.random(50) < 0.4
    values[:, 3] = 2.0
    expected = [roc_auc_score(unsafe, values[:, cell]) for cell in range(7)]
    np.testing.assert_allclose(statistics.auroc(values, unsafe), expected)
    u = mannwhitneyu(values[unsafe, 0], values[~unsafe, 0]).statistic / (unsafe.sum() * (~unsafe).sum())
    assert statistics.auroc(values, unsafe)[0] == pytest.approx(u)
    values[4, 5] = np.nan
    assert np.isnan(statistics.auroc(values, unsafe)[5])


def test_effect_size_by_hand() -> None:
    values = np.array([[3.0, 1.0, 2.0], [5.0, 1.0, 2.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    unsafe = np.array([True, True, False, False])
    # Means 4 and 1, variances 2 and 0, pooled 1: d = 3.
    found = statistics.effect_size(values, unsafe)
    assert found[0] == pytest.approx(3.0)
    assert np.isnan(found[1])
    assert found[2] == np.inf


def test_strata_keep_pairs_together_and_like_with_like() -> None:
    pairs = np.array(["a", "b", "a", "", "b", ""], dtype=object)
    groups = strata(pairs, [True, True, False, True, False, False])
    assert [[unit.tolist() for unit in group] for group in groups] == [[[5]], [[0, 2], [1, 4]], [[3]]]


def test_a_resample_has_the_datas_composition_and_whole_pairs() -> None:
    unsafe = np.array([True, False] * 10 + [True] * 5)
    pairs = np.concatenate([twins(20), alone(5)])
    weights = statistics.bootstrap_weights(unsafe, pairs, resamples=50, seed=0)
    assert (weights[:, unsafe].sum(1) == 15).all()
    assert (weights[:, ~unsafe].sum(1) == 10).all()
    assert (weights[:, 0:20:2] == weights[:, 1:20:2]).all()
    assert (weights[:, 20:].sum(1) == 5).all()
    assert weights.std() > 0.5


def test_draws_do_not_depend_on_how_many_are_made_at_once(monkeypatch) -> None:
    rng = np.random.default_rng(0)
    unsafe, contents = rng.random(60) < 0.4, np.array([f"c{i}" for i in rng.integers(0, 20, 60)], dtype=object)
    pairs = np.array([f"u{i}" for i in rng.integers(0, 30, 60)], dtype=object)
    how = {"permutations": 101, "seed": 3, "contents": contents}
    shuffles, counts = (
        statistics.shuffled_labels(unsafe, pairs, **how),
        statistics.bootstrap_counts(unsafe, pairs, resamples=50, seed=1),
    )
    assert (shuffles.bits.nbytes, counts.nbytes) == (13 * 60, 50 * 60), "a bit and a byte each"
    labels = shuffles.labels()
    assert labels.shape == (101, 60)
    assert (labels.sum(1) == unsafe.sum()).all()
    assert (shuffles.labels(5, 19) == labels[5:19]).all()
    weights = statistics.bootstrap_weights(unsafe, pairs, resamples=50, seed=1)
    values = rng.normal(size=(60, 3))
    p, ends = (
        statistics.permutation_p(values, unsafe, shuffles),
        statistics.bootstrap_difference(values, unsafe, weights),
    )
    by_hand = (labels @ values >= values[unsafe].sum(0) - 1e-9).sum(0)
    np.testing.assert_allclose(p, (1 + by_hand) / 102)
    monkeypatch.setattr(statistics, "NUMBERS_AT_ONCE", 200)
    assert (statistics.shuffled_labels(unsafe, pairs, **how).labels() == labels).all()
    assert (statistics.bootstrap_counts(unsafe, pairs, resamples=50, seed=1) == weights).all()
    np.testing.assert_array_equal(statistics.permutation_p(values, unsafe, shuffles), p)
    np.testing.assert_allclose(statistics.bootstrap_difference(values, unsafe, counts), ends, rtol=1e-12)


@pytest.mark.parametrize("paired", [False, True])
def test_bootstrap_intervals_cover(paired: bool) -> None:
    """95 % intervals of a known difference: 300 data sets of 40 + 40 in one call, as cells of their own."""
    rng = np.random.default_rng(1)
    n, cells = 80, 300
    unsafe = np.array([True, False] * (n // 2))
    shared = np.repeat(rng.normal(size=(n // 2, cells)), 2, axis=0)  # what twins have in common
    values = 0.7 * unsafe[:, None] + (2.0 * shared if paired else 0.0) + rng.exponential(size=(n, cells))
    low, high = interval(values, unsafe, twins(n) if paired else alone(n))
    covered = ((low < 0.7) & (high > 0.7)).mean()
    assert 0.90 <= covered <= 0.975, f"95 % intervals cover {covered:.1%}"
    if paired:
        # Without keeping pairs together the intervals would be about twice as wide as the truth asks for.
        wide = interval(values, unsafe, alone(n))
        assert (high - low).mean() < 0.7 * (wide[1] - wide[0]).mean()


@pytest.mark.parametrize("pairs", [alone(40), twins(40)], ids=["alone", "paired"])
def test_p_is_uniform_under_the_null(pairs: np.ndarray) -> None:
    rng = np.random.default_rng(3)
    unsafe = np.array([True, False] * 20)
    values = rng.exponential(size=(40, 1500))
    p = p_values(values, unsafe, pairs, permutations=999, seed=4)
    assert kstest(p, "uniform").pvalue > 0.001
    for level in (0.01, 0.05, 0.2):
        assert (p <= level).mean() == pytest.approx(level, abs=3.5 * np.sqrt(level * (1 - level) / 1500))


def test_p_is_one_sided_exact_and_never_zero() -> None:
    unsafe = np.array([True] * 4 + [False] * 4)
    values = np.stack([unsafe.astype(float), -unsafe.astype(float), np.zeros(8), np.full(8, 0.1)], axis=1)
    p = p_values(values, unsafe, alone(8), permutations=20_000, seed=0)
    assert p[0] == pytest.approx(1 / 70, rel=0.2), "one split of eight into four and four in seventy"
    assert p[1] == 1.0
    assert p[2] == p[3] == 1.0, "ties count, rounding does not"
    strong = p_values(np.arange(400.0)[:, None], np.arange(400) > 199, alone(400), permutations=99, seed=0)
    assert strong[0] == 1 / 100


def test_pairs_are_swapped_within_themselves() -> None:
    """A shift of 1 under a between-pair spread of 30: visible within pairs, invisible across."""
    rng = np.random.default_rng(5)
    unsafe = np.array([True, False] * 20)
    values = np.repeat(rng.normal(scale=30, size=(20, 1)), 2, axis=0) + unsafe[:, None] + 0.1 * rng.normal(size=(40, 1))
    within = p_values(values, unsafe, twins(40), permutations=1999, seed=0)
    across = p_values(values, unsafe, alone(40), permutations=1999, seed=0)
    assert within[0] < 0.001 < 0.2 < across[0]


def test_false_discoveries_are_controlled() -> None:
    rng = np.random.default_rng(6)
    null = rng.uniform(size=(400, 60))
    any_found = np.mean([(statistics.false_discovery(p) < 0.05).any() for p in null])
    assert any_found == pytest.approx(0.05, abs=0.04)
    p = np.array([0.001, np.nan, 0.02, 0.03, 0.9])
    np.testing.assert_allclose(statistics.false_discovery(p), [0.004, np.nan, 0.04, 0.04, 0.9])


@pytest.mark.parametrize(("hits", "of"), [(0, 12), (12, 12), (7, 30), (1, 3)])
def test_rate_intervals_are_scipys_exact_ones(hits: int, of: int) -> None:
    expected = binomtest(hits, of).proportion_ci(0.95, method="exact")
    np.testing.assert_allclose(statistics.rate_interval(hits, of), (expected.low, expected.high), atol=1e-12)


def test_the_rate_of_nothing_has_no_interval() -> None:
    assert np.isnan(statistics.rate_interval(0, 0)).all()


def test_auroc_interval_holds_the_area_and_narrows() -> None:
    rng = np.random.default_rng(7)
    widths = []
    for n in (40, 640):
        unsafe = np.arange(n) % 2 == 0
        values = rng.normal(size=n) + unsafe
        low, high = statistics.auroc_interval(values, unsafe, alone(n), resamples=400, seed=0)
        assert low < roc_auc_score(unsafe, values) < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2.5
