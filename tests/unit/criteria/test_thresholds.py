"""The published threshold against a dense grid, and thresholds by false-positive rate by hand."""

import numpy as np
import pytest
from scipy.stats import gaussian_kde, ttest_ind

from workbench.criteria.thresholds import fpr_threshold, kde_threshold, tpr_at_fpr
from workbench.errors import CriterionError


@pytest.mark.parametrize("seed", range(5))
def test_the_crossing_is_that_of_a_dense_grid(seed: int) -> None:
    rng = np.random.default_rng(seed)
    unsafe, safe = rng.gamma(6, 1.0, size=80), rng.gamma(3, 0.6, size=110)
    found = kde_threshold(unsafe, safe)
    grid = np.linspace(min(unsafe.min(), safe.min()), max(unsafe.max(), safe.max()), 200_001)
    sign = np.sign(gaussian_kde(unsafe)(grid) - gaussian_kde(safe)(grid))
    crossings = grid[np.flatnonzero(np.diff(sign))]
    scores = [1 - ((unsafe < c).mean() + (safe >= c).mean()) / 2 for c in crossings]
    assert found.method == "crossing"
    assert found.value == pytest.approx(crossings[int(np.argmax(scores))], abs=2e-4)
    assert found.balanced_accuracy == pytest.approx(max(scores))
    assert found.candidates[0] == (found.value, found.balanced_accuracy)
    test = ttest_ind(unsafe, safe, equal_var=False)
    assert (found.welch_t, found.welch_p) == pytest.approx((test.statistic, test.pvalue))


def test_the_best_of_several_crossings_wins() -> None:
    rng = np.random.default_rng(0)
    safe = np.concatenate([rng.normal(0, 0.3, 50), rng.normal(6, 0.3, 10)])
    unsafe = rng.normal(3, 0.5, 60)
    found = kde_threshold(unsafe, safe)
    assert len(found.candidates) == 2
    assert found.candidates[0][1] > found.candidates[1][1]
    assert 0.5 < found.value < 2.5


def test_far_clouds_are_parted_between_them() -> None:
    rng = np.random.default_rng(1)
    safe, unsafe = rng.normal(1, 0.01, 40), rng.normal(50, 0.01, 40)  # the densities underflow to 0 in between
    found = kde_threshold(unsafe, safe)
    assert safe.max() < found.value < unsafe.min()
    assert found.balanced_accuracy == 1.0


def test_no_crossing_falls_back_to_the_midpoint_of_the_medians() -> None:
    values = np.array([1.0, 2.0, 3.0, 4.0, 7.0])
    found = kde_threshold(values, values)
    assert (found.method, found.value, found.candidates) == ("midpoint", 3.0, ())


def test_a_constant_class_has_no_density_and_is_parted_at_the_midpoint() -> None:
    found = kde_threshold(np.array([4.0, 6.0, 5.0, 7.0]), np.zeros(4))
    assert (found.method, found.value, found.balanced_accuracy) == ("midpoint", 2.75, 1.0)
    assert np.isnan(found.welch_t)
    assert kde_threshold(np.full(3, 1.6), np.full(3, -1.6)).value == 0


def test_threshold_at_a_false_positive_rate_by_hand() -> None:
    safe = np.arange(1.0, 101.0)
    assert fpr_threshold(safe, 0.05) == 95.0  # 96 to 100 exceed it
    assert fpr_threshold(safe, 0.01) == 99.0
    assert fpr_threshold(safe, 0.0) == 100.0
    assert fpr_threshold(np.array([1.0, 2.0, 2.0, 2.0]), 0.5) == 2.0, "ties never exceed themselves"
    assert fpr_threshold(safe[:20], 0.01) == 20.0, "20 prompts cannot show 1 %"
    assert tpr_at_fpr(np.array([95.0, 95.5, 99.0, 120.0]), safe, 0.05) == 0.75


def test_bad_values_are_refused() -> None:
    good = np.array([1.0, 2.0, 3.0, 4.0])
    with pytest.raises(CriterionError, match="at least 3 safe values; got 2"):
        kde_threshold(good, good[:2])
    with pytest.raises(CriterionError, match="at least 3 unsafe values; got 0"):
        kde_threshold(good[:0], good)
    with pytest.raises(CriterionError, match="1 of 4 unsafe values are NaN"):
        kde_threshold(np.where(good > 3, np.nan, good), good)
    with pytest.raises(CriterionError, match="The 4 unsafe and 4 safe values are all 0, and the density"):
        kde_threshold(good * 0, good * 0)
    with pytest.raises(CriterionError, match="at least 0 and under 1; got 5"):
        fpr_threshold(good, 5)
