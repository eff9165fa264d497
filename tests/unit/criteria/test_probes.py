"""Probes: coefficients against scikit-learn, folds, few shots, and the speed the batching is for."""

import time

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from tests.unit.synthetic_run import synthetic_run
from workbench.criteria import get_criterion, score
from workbench.criteria.logistic import fit_logistic
from workbench.criteria.probes import cross_validated, few_shot_masks, fold_numbers
from workbench.errors import CriterionError
from workbench.sweeps.peak import peak_bytes, reset_peak

NO_PAIRS = np.full(120, "", dtype=object)


def clouds(
    heads: int, n: int, d: int, *, apart: float = 0.5, scale: float = 1.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    unsafe = np.arange(n) % 3 == 0
    x = rng.normal(size=(heads, n, d))
    x[:, unsafe] += apart * rng.normal(size=(heads, 1, d))
    return x * scale, unsafe


def reference(x: np.ndarray, y: np.ndarray, C: float = 1.0) -> tuple[np.ndarray, float]:
    model = LogisticRegression(C=C, tol=1e-12, max_iter=100_000).fit(x, y)
    return model.coef_[0], model.intercept_[0]


@pytest.mark.parametrize(
    ("apart", "scale", "C"),
    [(0.5, 1.0, 1.0), (0.0, 1.0, 1.0), (4.0, 1.0, 1.0), (0.5, 0.01, 1.0), (0.3, 20.0, 1.0), (0.5, 1.0, 0.01)],
    ids=["ordinary", "null", "separable", "tiny features", "large features", "strong penalty"],
)
def test_coefficients_are_scikit_learns(apart: float, scale: float, C: float) -> None:
    x, unsafe = clouds(4, 120, 8, apart=apart, scale=scale)
    fold = fold_numbers(unsafe, NO_PAIRS)
    weight = (fold != np.arange(5)[:, None]).astype(float)
    coef, intercept = fit_logistic(x, unsafe, weight=weight, C=C)
    assert (coef.shape, intercept.shape) == ((4, 5, 8), (4, 5))
    for head in range(4):
        for part in range(5):
            expected = reference(x[head][fold != part], unsafe[fold != part], C)
            np.testing.assert_allclose(coef[head, part], expected[0], atol=1e-4)
            assert intercept[head, part] == pytest.approx(expected[1], abs=1e-4)


def test_the_slow_road_reaches_the_optimum_too() -> None:
    """Features far from 1, and a few shots: what float32 steps cannot finish."""
    x, unsafe = clouds(3, 60, 6, apart=1.0, scale=300.0)
    x += 1000.0
    coef, intercept = fit_logistic(x, unsafe)
    decision = np.einsum("hnd,hd->hn", x, coef) + intercept[:, None]
    miss = 1 / (1 + np.exp(decision)) * unsafe - 1 / (1 + np.exp(-decision)) * ~unsafe
    gradient = coef - np.einsum("hn,hnd->hd", miss, x)
    assert np.abs(gradient).max() < 1e-7 * np.abs(x).max() * 60
    assert np.abs(miss.sum(1)).max() < 1e-6


def test_steps_that_overshoot_are_halved() -> None:
    """Six samples with a weak penalty on which plain Newton steps never settle."""
    x = np.array([[-357.0, 149], [107, 171], [-28, 273], [791, -97], [569, -5], [780, -80]])
    unsafe = np.array([True, False, False, True, False, False])
    coef, intercept = fit_logistic(x, unsafe, C=17_000)
    decision = x @ coef + intercept
    miss = unsafe / (1 + np.exp(decision)) - ~unsafe / (1 + np.exp(-decision))
    assert np.abs(coef - 17_000 * miss @ x).max() < 1e-8 * 17_000 * 6 * 791


def test_shapes_follow_the_batch() -> None:
    x, unsafe = clouds(6, 40, 3)
    coef, intercept = fit_logistic(x.reshape(2, 3, 40, 3), unsafe)
    assert (coef.shape, intercept.shape) == ((2, 3, 3), (2, 3))
    single, _ = fit_logistic(x[4], unsafe)
    np.testing.assert_allclose(single, coef[1, 1], atol=1e-7)


def test_many_heads_are_solved_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, unsafe = clouds(5, 40, 3)
    whole = fit_logistic(x, unsafe)
    monkeypatch.setattr("workbench.criteria.logistic.NUMBERS_AT_ONCE", 40 * 4 * 2)  # two heads at a time
    for blocked, expected in zip(fit_logistic(x, unsafe), whole, strict=True):
        np.testing.assert_allclose(blocked, expected, atol=1e-7)


def test_bad_fits_are_refused() -> None:
    x, unsafe = clouds(2, 20, 3)
    with pytest.raises(CriterionError, match="one class only"):
        fit_logistic(x, np.ones(20))
    with pytest.raises(CriterionError, match="one class only"):
        fit_logistic(x, unsafe, weight=np.stack([np.ones(20), ~unsafe]))
    with pytest.raises(CriterionError, match=r"features \(2, 20, 3\), labels \(19,\)"):
        fit_logistic(x, unsafe[1:])
    x[0, 0, 0] = np.inf
    with pytest.raises(CriterionError, match="NaN or infinite"):
        fit_logistic(x, unsafe)


def test_folds_are_balanced_and_keep_pairs_together() -> None:
    unsafe = np.array([True, False] * 23 + [True] * 9)
    pairs = np.array([f"p{i // 2}" for i in range(46)] + [""] * 9, dtype=object)
    fold = fold_numbers(unsafe, pairs, seed=3)
    assert (fold[0:46:2] == fold[1:46:2]).all()
    for side in (True, False):
        counts = np.bincount(fold[unsafe == side], minlength=5)
        assert counts.max() - counts.min() <= 2
    assert (fold != fold_numbers(unsafe, pairs, seed=4)).any()
    assert fold_numbers(unsafe[:6], pairs[:6]).max() == 2, "three pairs give three folds"


def test_held_out_decisions_are_a_loop_over_folds() -> None:
    x, unsafe = clouds(3, 60, 4)
    fold = fold_numbers(unsafe, NO_PAIRS[:60])
    found = cross_validated(x, unsafe, fold)
    for head in range(3):
        for part in range(5):
            coef, intercept = reference(x[head][fold != part], unsafe[fold != part])
            expected = x[head][fold == part] @ coef + intercept
            np.testing.assert_allclose(found[head, fold == part], expected, atol=1e-3)


def test_accuracy_and_auroc_in_the_table_are_held_out() -> None:
    run = synthetic_run(pairs=30)
    found = score(run, "probe", seed=2).set_index(["layer", "head"])
    unsafe = run["label"].values == "unsafe"
    decision = get_criterion("probe").values(run, seed=2).isel(repeat=0).sel(layer=2, head=1).values
    assert found.loc[(2, 1), "unsafe"] == pytest.approx(((decision > 0) == unsafe).mean())
    assert found.loc[(2, 1), "auroc"] == pytest.approx(roc_auc_score(unsafe, decision))
    assert found.loc[(2, 1), "ci_low"] < found.loc[(2, 1), "unsafe"] < found.loc[(2, 1), "ci_high"]
    # Random outputs: held-out accuracy stays at chance, where a fit on its own prompts would not.
    others = found.drop(index=(2, 1))["unsafe"]
    assert 0.35 < others.mean() < 0.58


def test_twins_never_vouch_for_each_other() -> None:
    """Both prompts of a pair share a signature but not a label; a probe trained on one twin mistakes the other."""
    run = synthetic_run(pairs=20, d_head=30, planted=())
    signature = np.random.default_rng(0).normal(size=(20, 3, 4, 30)) * 3
    run["head_output"][:] = np.repeat(signature, 2, axis=0)
    together = score(run, "probe")["unsafe"]
    apart = score(run.assign_coords(pair_id=("prompt", np.full(40, ""))), "probe")["unsafe"]
    assert together.mean() == pytest.approx(0.5), "one of two twins is always wrong, the other right"
    assert apart.mean() < 0.45


def test_few_shots_train_on_the_shots_only() -> None:
    unsafe = np.arange(60) % 2 == 0
    category = np.array([f"c{i % 3}" for i in range(60)], dtype=object)
    masks = few_shot_masks(unsafe, category, shots=2, repeats=7, seed=0)
    assert (masks.sum(1) == 12).all()
    for name in set(category):
        assert (masks[:, (category == name) & unsafe].sum(1) == 2).all()
    assert len({m.tobytes() for m in masks}) == 7

    run = synthetic_run(pairs=40)
    decisions = get_criterion("probe_few_shot").values(run, seed=1)
    trained = np.isnan(decisions.values[0, :, 2, 1])
    assert trained.sum() == 2 * 2 * 3
    z = run["head_output"].values[:, 2, 1].astype(float)
    labels = run["label"].values == "unsafe"
    coef, intercept = reference(z[trained], labels[trained])
    np.testing.assert_allclose(decisions.values[0, ~trained, 2, 1], z[~trained] @ coef + intercept, atol=1e-4)


def test_a_probe_on_the_write_is_one_on_z_times_output_weights() -> None:
    run = synthetic_run(pairs=30, d_head=4)
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(3, 4, 4, 9))  # W_O of each head: d_head × d_model
    for layer, head in np.ndindex(3, 4):
        run["write_root"][layer, head] = np.linalg.cholesky(weights[layer, head] @ weights[layer, head].T)
    found = get_criterion("probe_write").values(run, seed=0).isel(repeat=0)
    unsafe, pairs = run["label"].values == "unsafe", run["pair_id"].values.astype(object)
    fold = fold_numbers(unsafe, pairs, seed=0)
    for layer, head in ((2, 1), (0, 0)):
        write = run["head_output"].values[:, layer, head].astype(float) @ weights[layer, head]
        coef, intercept = reference(write[fold != 0], unsafe[fold != 0])
        expected = write[fold == 0] @ coef + intercept
        np.testing.assert_allclose(found.sel(layer=layer, head=head).values[fold == 0], expected, atol=1e-3)


def test_few_shots_need_prompts_left_to_test_on() -> None:
    run = synthetic_run(pairs=6)
    with pytest.raises(CriterionError, match="nothing is left to test on"):
        score(run, "probe_few_shot")


def test_heads_not_swept_stay_nan() -> None:
    run = synthetic_run(pairs=20)
    run["head_output"][:, 1, 2] = np.nan
    found = score(run, ("probe", "probe_few_shot")).set_index(["layer", "head"])
    assert found.loc[[(1, 2)], ["unsafe", "auroc", "ci_low"]].isna().all(axis=None)
    assert found.drop(index=[(1, 2)])["unsafe"].notna().all()


def test_all_heads_and_folds_together_beat_a_loop() -> None:
    """48 heads × 5 folds; about 25-40 times faster than scikit-learn on one free core (the benchmark shows the
    number).
    """
    x, unsafe = clouds(48, 200, 16)
    fold = fold_numbers(unsafe, np.full(200, "", dtype=object))
    cross_validated(x[:2], unsafe, fold)
    ours = min(_seconds(lambda: cross_validated(x, unsafe, fold)) for _ in range(5))
    loop = 0.0
    for head in range(6):
        for part in range(5):
            loop += _seconds(lambda h=head, p=part: reference(x[h][fold != p], unsafe[fold != p]))
    assert loop * 8 > 6 * ours, "a busy machine blurs the ratio; a loop of ours would not reach 2"


def _seconds(job) -> float:
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def test_features_are_widened_a_few_heads_at_a_time() -> None:
    """32 heads of 5,000 prompts: 41 MB as they are stored, 82 MB in float64, which no array may hold at once."""
    draws, unsafe = np.random.default_rng(0), np.arange(5000) % 2 == 0
    features = draws.normal(size=(5000, 32, 64)).astype(np.float32).swapaxes(0, 1)
    features[:, unsafe, 0] += 1
    fold = fold_numbers(unsafe, np.full(len(unsafe), "", dtype=object))
    cross_validated(features[:1], unsafe, fold)
    device = torch.device("cpu")
    reset_peak(device)
    before = peak_bytes(device)
    decisions = cross_validated(features, unsafe, fold)
    assert peak_bytes(device) - before < 40e6
    assert ((decisions > 0) == unsafe).mean() > 0.65
