"""Estimates from backward passes: derivatives, directions, and what they cost."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

import workbench as wb
from tests.builders.models import tiny
from tests.builders.prompts import text_prompts
from workbench.models.walk import base_pass
from workbench.runs.job import Job
from workbench.sweeps.engines import first_order
from workbench.sweeps.engines.first_order import ESTIMATED, directions, estimates, first_order_step

BOTH = ("query", "value")


@pytest.fixture(scope="module")
def double():
    return tiny(dtype=torch.float64)


def job_of(*names, n=1, mask=None, seed=0):
    return Job(BOTH, mask or wb.Mask(), None, False, estimates=names, directions=n, seed=seed)


@pytest.mark.slow
@pytest.mark.parametrize("thrifty", [False, True], ids=["graph", "checkpoints"])
@pytest.mark.parametrize("grain", ["query_head", "kv_group"])
@pytest.mark.parametrize("positions", ["all", "last"])
def test_one_backward_pass_gives_every_heads_first_order_change(double, thrifty, grain, positions):
    # A mask that changes almost nothing is linear: its states, exactly computed, are the derivative.
    step = 1e-5
    mask = wb.Mask(form="scale", factor=1 - step, grain=grain, positions=positions)
    exact = wb.sweep(double, text_prompts(), mask=mask, keep_states=True, progress=False)
    job = job_of(mask=mask)
    for index, prompt in enumerate(text_prompts()):
        base = base_pass(double, [double.encode(prompt)])
        along = torch.randn(3, 1, double.d_model, dtype=torch.float64)
        state, taps = first_order.tapped_state(double, base, thrifty=thrifty)
        slopes = torch.autograd.grad(state, list(taps.values()), along, is_grads_batched=True)
        changes = first_order._changes(double, base, job)
        found = first_order._moved(dict(zip(taps, slopes, strict=True)), changes, job, double)[:, 0] / step
        masked, unmasked = exact.state[index].values, base.state[0].numpy()
        wanted = np.stack([((masked - unmasked) @ one[0].numpy()) / step for one in along])
        assert np.abs(wanted).max() > 0.05
        np.testing.assert_allclose(found, wanted, atol=2e-3 * np.abs(wanted).max())


@pytest.mark.slow
def test_estimates_of_a_tiny_change_are_what_the_exact_engine_measures(double):
    # All directions there are, so that nothing is left to chance; KL by many. The change is linear.
    mask = wb.Mask(form="scale", factor=1 - 1e-3)
    exact = wb.sweep(double, text_prompts(1), mask=mask, keep_states=False, progress=False)
    base = base_pass(double, [double.encode(text_prompts(1)[0])])
    for name, n in (("deflection", 4000), ("l2", 4000), ("kl", 4000), ("refusal_change", 1)):
        found = estimates(double, base, job_of(name, n=n, mask=mask), at_once=500)[f"{name}_estimate"]
        wanted = exact[name].values
        large = np.abs(wanted) > 0.1 * np.abs(wanted).max()
        # Roots of mean squares of n normal numbers stray by 1/sqrt(2n), a mean square by sqrt(2/n): five times that.
        np.testing.assert_allclose(found.numpy()[large], wanted[large], rtol=5 * np.sqrt(2 / 4000) + 5e-3)


@pytest.mark.parametrize("seed", [0, 1])
def test_as_many_directions_as_dimensions_give_lengths_whatever_is_drawn(double, seed):
    mask, name = wb.Mask(form="scale", factor=1 - 1e-4), "l2"
    exact = wb.sweep(double, text_prompts(1), mask=mask, keep_states=False, progress=False)[name].values
    base = base_pass(double, [double.encode(text_prompts(1)[0])])
    job = job_of(name, n=double.d_model, seed=seed, mask=mask)
    large = exact > 0.1 * exact.max()
    np.testing.assert_allclose(estimates(double, base, job)[f"{name}_estimate"].numpy()[large], exact[large], rtol=2e-3)
    few = directions(double, base, "deflection", job_of(n=8, seed=seed))[:, 0]
    anywhere = directions(double, base, name, job_of(name, n=8, seed=seed))[:, 0]
    np.testing.assert_allclose(anywhere @ anywhere.T / double.d_model, torch.eye(8), atol=1e-9)
    assert (few @ base.state[0]).abs().max() < 1e-9


@pytest.mark.slow
def test_the_directions_have_the_moments_they_should(double):
    base, draws = base_pass(double, [double.encode(text_prompts()[0])]), 4000
    across = directions(double, base, "deflection", job_of(n=draws))[:, 0]
    assert (across @ base.state[0]).abs().max() < 1e-9 * draws
    unit = base.state[0] / base.state[0].norm()
    wanted = torch.eye(len(unit)) - unit[:, None] * unit
    np.testing.assert_allclose(across.T @ across / draws, wanted, atol=0.12)
    anywhere = directions(double, base, "l2", job_of(n=draws))[:, 0]
    np.testing.assert_allclose(anywhere.T @ anywhere / draws, torch.eye(len(unit)), atol=0.12)
    # The Fisher matrix in the state: W_Uᵀ (diag p - p pᵀ) W_U.
    fisher = directions(double, base, "kl", job_of(n=draws))[:, 0]
    unembed, p = double.hf.lm_head.weight.detach(), base.logits[0].softmax(-1)
    wanted = unembed.T @ (torch.diag(p) - p[:, None] * p) @ unembed
    np.testing.assert_allclose(fisher.T @ fisher / draws, wanted, atol=0.12 * float(wanted.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [1, 3, 8])
def test_each_direction_counts_once_however_they_are_batched(double, at_once):
    encoded = [double.encode(prompt) for prompt in text_prompts()]
    job = job_of("deflection", n=7, seed=3)
    alone, before = [], double.work.layer_tokens
    for e in encoded:
        base = base_pass(double, [e])
        given = directions(double, base, "deflection", job)
        state, taps = first_order.tapped_state(double, base, thrifty=False)
        squares = 0
        for one in given:
            slopes = torch.autograd.grad((state * one).sum(), list(taps.values()), retain_graph=True)
            single = {layer: slope[None] for layer, slope in zip(taps, slopes, strict=True)}
            moved = first_order._moved(single, first_order._changes(double, base, job), job, double)[0]
            squares = squares + moved**2 / 7
        alone.append(torch.rad2deg((squares.sqrt() / base.state.norm()).atan())[0])
    before = double.work.layer_tokens
    base = base_pass(double, [encoded[0]])
    forward = double.work.layer_tokens - before
    found = estimates(double, base, job, at_once=at_once)["deflection_estimate"][0]
    np.testing.assert_allclose(found, alone[0], rtol=1e-5)
    # One walk there, seven ways back; of the highest layer only the last position.
    way = forward - (encoded[0].n_tokens - 1)
    assert double.work.layer_tokens - before == forward + 8 * way
    step = dict(first_order_step(double, encoded, job, 64, (0,)))[0]["deflection_estimate"]
    np.testing.assert_allclose(step, np.stack(alone), rtol=1e-5)


@pytest.mark.slow
def test_estimates_rank_pocket_like_the_exact_engine():
    model, prompts = wb.load_model("pocket", device="cpu"), wb.load_prompts("pocket", n=12)
    exact = wb.sweep(model, prompts, keep_states=False, progress=False)
    encoded = [model.encode(prompt) for prompt in prompts]
    found = dict(first_order_step(model, encoded, job_of(*ESTIMATED, n=8), 256, (0,)))[0]
    for name in ESTIMATED:
        for number, projection in enumerate(BOTH):
            one = exact[name].sel(projection=projection).mean("prompt").values.ravel()
            other = found[f"{name}_estimate"][:, number].mean(0).ravel()
            assert spearmanr(one, other).statistic > 0.9, (name, projection)
