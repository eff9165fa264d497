"""Whether masked heads free more than random ones: a paired test, corrected for the heads looked at."""

import numpy as np
import pandas as pd
from scipy.stats import binom, binomtest

from workbench.comparison.causal_rows import holm, more_than_each
from workbench.comparison.findings import LEVEL

SETS, DRAWS, PROMPTS, STUDIES = 8, 3, 40, 300


def study(rng: np.random.Generator, rates: np.ndarray) -> np.ndarray:
    """Corrected p-values of one study, [set of heads]: prompts differ in how easily they are freed."""
    ease = rng.beta(2, 4, size=PROMPTS)
    controls = [[rng.random(PROMPTS) < ease for _ in range(DRAWS)] for _ in rates]
    return holm(
        np.array(
            [more_than_each(rng.random(PROMPTS) < np.maximum(ease, r), c) for r, c in zip(rates, controls, strict=True)]
        )
    )


def test_where_no_head_is_a_cause_hardly_any_study_finds_one():
    rng = np.random.default_rng(0)
    found = sum((study(rng, np.zeros(SETS)) < LEVEL).any() for _ in range(STUDIES))
    assert found <= binom.ppf(0.999, STUDIES, LEVEL), f"{found} of {STUDIES} studies find what is not there"


def test_a_planted_cause_is_found_and_nothing_else():
    rng = np.random.default_rng(1)
    rates = np.zeros(SETS)
    rates[3] = 0.95
    found = np.array([study(rng, rates) < LEVEL for _ in range(STUDIES // 3)])
    assert found[:, 3].mean() > 0.95
    assert np.delete(found, 3, axis=1).any(1).mean() < LEVEL


def test_one_draw_of_random_heads_that_does_as_much_is_enough_to_find_nothing():
    all_freed, none = np.ones(20, dtype=bool), np.zeros(20, dtype=bool)
    assert more_than_each(all_freed, [none, none]) == 2.0**-20
    assert more_than_each(all_freed, [none, all_freed]) == 1
    assert more_than_each(none, [all_freed]) == 1
    assert np.isnan(more_than_each(all_freed, []))
    assert np.isnan(more_than_each(none[:0], [none[:0]]))


def test_the_test_is_mcnemars_on_the_prompts_that_differ():
    rng = np.random.default_rng(2)
    a, b = rng.random(50) < 0.6, rng.random(50) < 0.3
    table = pd.crosstab(a, b)
    expected = binomtest(int(table.loc[True, False]), int(table.loc[True, False] + table.loc[False, True]), 0.5)
    assert more_than_each(a, [b]) > expected.pvalue / 2 - 1e-12  # one-sided, of a two-sided test
    assert more_than_each(a, [b]) <= expected.pvalue


def test_holms_correction_by_hand():
    np.testing.assert_allclose(holm(np.array([0.01, np.nan, 0.04, 0.03])), [0.03, np.nan, 0.06, 0.06])
    np.testing.assert_allclose(holm(np.array([0.9, 0.8])), [1, 1])
