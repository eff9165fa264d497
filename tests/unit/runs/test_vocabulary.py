"""Sums over the vocabulary: within their stated bound of the same sums in more digits, in blocks of bounded size."""

import numpy as np
import pytest
import torch

import workbench as wb
from tests.builders.prompts import text_prompts
from workbench.errors import MaskError
from workbench.models.hooked import HookedLVLM
from workbench.models.tiny import build_tiny
from workbench.runs import vocabulary
from workbench.runs.effects import measure
from workbench.runs.job import MEASURES
from workbench.runs.vocabulary import OF_VOCABULARY, over_vocabulary


@pytest.fixture(scope="module")
def model():
    return build_tiny("llava", dtype=torch.float64)


def in_long_doubles(model, base, masked):
    """The measures of one pair of logits, from their definitions, in 64 bits of mantissa."""
    base, masked = base.astype(np.longdouble), masked.astype(np.longdouble)
    opens = np.zeros(len(base), bool)
    opens[list(model.refusal_tokens)] = True

    def logsumexp(values):
        return values.max() + np.log(np.exp(values - values.max()).sum())

    b, m = base - logsumexp(base), masked - logsumexp(masked)
    p, q, mean = np.exp(b), np.exp(m), np.logaddexp(b, m) - np.log(np.longdouble(2))
    return {
        "kl": (p * (b - m)).sum(),
        "js": ((p * (b - mean)).sum() + (q * (m - mean)).sum()) / 2,
        "tv": abs(p - q).sum() / 2,
        "top1_change": float(p.argmax() != q.argmax()),
        "refusal_change": logsumexp(m[opens]) - logsumexp(m[~opens]) - logsumexp(b[opens]) + logsumexp(b[~opens]),
    }


class Bare(HookedLVLM):
    """A model of which only the unembedding is wanted; states are logits."""

    def __init__(self, refusal_tokens):
        self.__dict__["refusal_tokens"], self.most = refusal_tokens, 0

    def unembed(self, states):
        self.most = max(self.most, states.numel())
        return states


@pytest.mark.parametrize("change", [1e-7, 1e-3, 0.3, 3.0, 30.0])
@pytest.mark.parametrize("spread", [0.1, 10.0])
def test_the_stated_bound_holds_against_more_digits(change, spread):
    draws = np.random.default_rng(0)
    bare, base = Bare((3, 70, 1999)), spread * draws.normal(size=(2, 2000)).astype(np.float32)
    masked = base[:, None] + np.float32(change) * draws.normal(size=(2, 3, 2000)).astype(np.float32)
    found = over_vocabulary(bare, torch.tensor(base), torch.tensor(masked))
    for i in range(2):
        for j in range(3):
            for name, value in in_long_doubles(bare, base[i], masked[i, j]).items():
                assert abs(float(found[name][i, j]) - float(value)) <= vocabulary.ERROR, (name, change, spread)


def test_changes_beyond_float64_are_measured_all_the_same():
    base, masked = np.zeros((1, 50)), np.zeros((1, 2, 50))
    base[0, :2], masked[0, 0, 4], masked[0, 1, 3] = [900, 0], 2000, 1e5
    bare = Bare((4,))
    found = over_vocabulary(bare, torch.tensor(base), torch.tensor(masked))
    assert found["finite"].all()
    for j in range(2):
        for name, value in in_long_doubles(bare, base[0], masked[0, j]).items():
            np.testing.assert_allclose(float(found[name][0, j]), float(value), rtol=1e-12, err_msg=name)


def test_rows_that_are_no_numbers_say_so():
    states = torch.zeros(1, 4, 9)
    states[0, 1, 2], states[0, 2, 3], states[0, 3, 0] = torch.nan, torch.inf, -torch.inf
    assert over_vocabulary(Bare((4,)), torch.zeros(1, 9), states)["finite"].tolist() == [[1, 0, 0, 0]]


def test_blocks_bound_what_is_held_and_change_nothing(monkeypatch):
    draws = torch.Generator().manual_seed(0)
    base = torch.randn(3, 40, generator=draws)
    states = base[:, None] + torch.randn(3, 7, 40, generator=draws)
    whole = over_vocabulary(Bare((4,)), base, states)
    for logits, block in ((2 * 40, 40), (8 * 40, 3 * 40), (15 * 40, 8 * 40), (1, 1)):
        monkeypatch.setattr(vocabulary, "LOGITS_BLOCK", logits)
        monkeypatch.setattr(vocabulary, "CPU_BLOCK", block)
        bare = Bare((4,))
        found = over_vocabulary(bare, base, states)
        assert bare.most <= max(logits, 40)
        for name, value in whole.items():
            torch.testing.assert_close(found[name], value, atol=1e-14, rtol=0)


def test_only_what_is_asked_for_is_measured(model, monkeypatch):
    base = torch.randn(2, model.d_model, dtype=torch.float64)
    states, calls = base[:, None] + torch.randn(2, 3, model.d_model, dtype=torch.float64), []
    logits, unembed = model.unembed(base), model.unembed
    every = measure(model, base, logits, states)
    monkeypatch.setattr(model, "unembed", lambda states: calls.append(1) or unembed(states), raising=False)
    before = model.work.readouts
    found = measure(model, base, logits, states, measures=("deflection", "l2"))
    assert list(found) == ["deflection", "l2"]
    assert not calls
    assert model.work.readouts == before
    torch.testing.assert_close(found["deflection"], every["deflection"], atol=0, rtol=0)
    assert set(measure(model, base, logits, states, measures=("kl",))) == {"kl"}
    assert calls
    assert model.work.readouts == before + 6


def test_a_sweep_of_some_measures_holds_those_alone(tmp_path):
    model, prompts = build_tiny("llava"), text_prompts(3)
    whole = wb.sweep(model, prompts, progress=False)
    options = {"measures": ("l2", "deflection"), "out": tmp_path / "run.zarr", "progress": False}
    run = wb.sweep(model, prompts, **options)
    assert not set(run.data_vars) & set(OF_VOCABULARY)
    np.testing.assert_array_equal(run.deflection, whole.deflection)
    assert run.attrs["measures"] == ["deflection", "l2"]
    assert whole.attrs["measures"] == list(MEASURES)
    assert wb.sweep(model, prompts, **options).identical(run)
    with pytest.raises(wb.errors.WorkbenchError, match="measures"):
        wb.sweep(model, prompts, out=tmp_path / "run.zarr", progress=False)
    with pytest.raises(MaskError, match=r"measures are of deflection, kl.*'angle'"):
        wb.sweep(model, prompts, measures=("angle",))
    sets = wb.sweep(model, prompts, groups=[[(0, 1)]], measures="kl", progress=False)
    assert set(sets.data_vars) & set(MEASURES) == {"kl"}
