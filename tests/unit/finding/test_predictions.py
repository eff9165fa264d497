"""What is said of cells that were not computed: means that estimates correct, and predictions with their scatter."""

import numpy as np
import pytest

from workbench.finding.bounds import Fit
from workbench.finding.predictions import Predictions, predicted


def test_estimates_move_means_and_leave_them_unbiased():
    # The corrected mean over many samples is the mean of the population, whatever the estimate is worth.
    random = np.random.default_rng(0)
    cells = random.lognormal(0, 0.5, (40, 1, 3, 8))
    good, none = cells * 0.5 + 0.01 * random.random(cells.shape), random.random(cells.shape)
    for estimate in (good, none):
        errors, plain, inside = [], [], []
        for _ in range(200):
            drawn = random.permutation(40)[:10]
            known = np.full_like(cells, np.nan)
            known[drawn] = cells[drawn]
            means = Fit.of(known, estimate, np.zeros(cells.shape, bool)).means()
            errors.append(means.mean - cells.mean(0))
            plain.append(cells[drawn].mean(0) - cells.mean(0))
            inside.append(np.abs(errors[-1]) <= means.reach(0.025))
        errors, plain = np.array(errors), np.array(plain)
        assert np.abs(errors.mean(0)).max() < 5 * plain.std(0).max() / np.sqrt(200)
        assert np.mean(inside) > 0.93
        assert errors.std() < (0.2 if estimate is good else 1.1) * plain.std()


def test_what_is_known_whole_is_exact_and_cells_taken_for_certain_add_up():
    random = np.random.default_rng(1)
    cells, estimate = random.random((12, 2, 3, 4)), random.random((12, 2, 3, 4))
    sure, everyone = estimate > 0.8, [np.ones(12, dtype=bool)]
    fit = Fit.of(cells, estimate, sure)
    np.testing.assert_allclose(fit.mean, cells.mean(0))
    assert not fit.means().error.any()
    draws = predicted(cells, estimate, sure, sure, everyone).draws(random, 5)
    np.testing.assert_allclose(draws, np.tile(fit.mean, (1, 5, 1, 1, 1)))
    # A head all of whose other cells are alike is known from any of them.
    cells = np.where(sure, cells, 2.0)
    known = np.where(sure | (np.arange(12) < 6)[:, None, None, None], cells, np.nan)
    np.testing.assert_allclose(Fit.of(known, estimate, sure).mean, cells.mean(0))


def test_predictions_are_exact_where_cells_are_estimates_times_a_factor_of_the_head():
    random = np.random.default_rng(2)
    estimate = random.lognormal(0, 0.4, (30, 1, 3, 6))
    cells = estimate * random.uniform(0.5, 2, (3, 6))
    known = np.where((np.arange(30) % 5 == 0)[:, None, None, None], cells, np.nan)
    none, unsafe = np.zeros(cells.shape, dtype=bool), np.arange(30) < 15
    found = predicted(known, estimate, none, none, [unsafe, ~unsafe])
    for side, middle in zip((unsafe, ~unsafe), found.middle, strict=True):
        np.testing.assert_allclose(middle, cells[side].mean(0), rtol=1e-9)
    assert max(found.apart.max(), found.own.max(), found.common.max()) < 1e-6
    # Nor do heads whose masks change nothing, whole layers of them included.
    still = np.where(np.arange(3)[:, None] < 1, 0.0, 1.0)
    again = predicted(known * still, estimate * still, none, none, [unsafe, ~unsafe])
    assert np.abs(again.middle[:, :, 0]).max() < 1e-12
    np.testing.assert_allclose(again.middle[:, :, 1:], found.middle[:, :, 1:], rtol=1e-9)
    # Nor is anything uncertain where all was computed, without a single estimate.
    whole = predicted(cells, 0 * estimate, none, none, [unsafe, ~unsafe])
    np.testing.assert_allclose(whole.draws(random, 3)[0], np.tile(cells[unsafe].mean(0), (3, 1, 1, 1)), rtol=1e-6)
    # Heads that were not asked for have none, and change nothing for the others.
    estimate[..., -1], known[..., -1] = np.nan, np.nan
    again = predicted(known, estimate, none, none, [unsafe, ~unsafe]).middle
    assert np.isnan(again[..., -1]).all()
    np.testing.assert_allclose(again[..., :-1], found.middle[..., :-1], rtol=1e-9)


@pytest.mark.parametrize(("apart", "together"), [(1.0, 0.0), (1.3, 0.0), (1.3, 0.5)])
def test_predictions_scatter_as_much_as_they_say(apart, together):
    # `apart`: how much larger the factor is in the first class, for half of the heads. `together`: how much all heads
    # scatter alike from prompt to prompt, of a pair alike too.
    random = np.random.default_rng(3)
    none, unsafe, errors = np.zeros((40, 1, 5, 20), dtype=bool), np.arange(40) < 20, []
    for _ in range(24):
        estimate = random.lognormal(0, 0.4, none.shape)
        cells = random.lognormal(0, 0.1, none.shape[1:]) * estimate**0.9 * random.lognormal(0, 0.2, none.shape)
        cells[:20, ..., ::2] *= apart
        cells *= np.tile(random.lognormal(0, together, (20, 1, 1, 1)), (2, 1, 1, 1))
        known = np.full(cells.shape, np.nan)
        places = [random.permutation(20)[:6] for _ in range(2)]
        drawn = np.concatenate([places[0], 20 + places[0 if together else 1]])
        known[drawn] = cells[drawn]
        found = predicted(known, estimate, none, none, [unsafe, ~unsafe])
        draws = found.draws(random, 400)
        truth = np.stack([cells[side].mean(0) for side in (unsafe, ~unsafe)])
        errors.append(
            np.concatenate(
                [
                    (truth - draws.mean(1)) / draws.std(1),
                    (truth[:1] - truth[1:] - (draws[0] - draws[1]).mean(0)) / (draws[0] - draws[1]).std(0),
                ]
            )
        )
    # What prompts have in common moves all heads of a class, and is not drawn; between the classes of pairs it cancels.
    spread = np.array(errors)[:, 2 if together else 0 :]
    assert np.abs(spread.mean((0, 2, 3, 4))).max() < 0.15
    off = spread.std((0, 2, 3, 4))
    assert off.min() > 0.7
    assert off.max() < (1.0 if together else 1.1)


def test_draws_have_the_scatter_and_the_skew_that_they_should():
    shape = (1, 1, 1, 3)
    skew = np.array([0.0, 1.0, 2.0]).reshape(shape)
    found = Predictions(*(np.full(shape, value) for value in (7.0, 0.0, 0.0, 2.0)), skew, np.zeros(shape))
    draws = found.draws(np.random.default_rng(0), 200_000)[0, :, 0, 0]
    away = draws - 7.0
    np.testing.assert_allclose(away.mean(0), 0, atol=0.02)
    np.testing.assert_allclose(away.std(0), 2, rtol=0.01)
    np.testing.assert_allclose((away**3).mean(0) / 8, skew.ravel(), atol=0.12)
