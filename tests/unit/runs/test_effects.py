"""Each measure re-derived in plain numpy from logits and states, and its exact ends."""

import re

import numpy as np
import pytest
import torch

import workbench as wb
from tests.builders.prompts import text_prompts
from workbench.errors import RunError
from workbench.models.tiny import build_tiny
from workbench.runs.effects import angle_degrees, measure
from workbench.runs.job import MEASURES


@pytest.fixture(scope="module")
def model():
    return build_tiny("llava", dtype=torch.float64)


@pytest.fixture(scope="module")
def states(model):
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(3, model.d_model, generator=generator, dtype=torch.float64)
    return base, base[:, None] + torch.randn(3, 5, model.d_model, generator=generator, dtype=torch.float64)


def softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def test_every_measure_against_numpy(model, states):
    base, masked = states
    found = {name: value.numpy() for name, value in measure(model, base, model.unembed(base), masked).items()}
    assert set(found) == set(MEASURES)
    weight = model.hf.get_output_embeddings().weight.numpy()
    opens = np.zeros(len(weight), bool)
    opens[list(model.refusal_tokens)] = True
    assert 0 < opens.sum() < len(opens)
    for i in range(3):
        u, p = base[i].numpy(), softmax(weight @ base[i].numpy())
        for j in range(5):
            v, q = masked[i, j].numpy(), softmax(weight @ masked[i, j].numpy())
            middle = (p + q) / 2
            expected = {
                "deflection": np.degrees(np.arccos(u @ v / np.linalg.norm(u) / np.linalg.norm(v))),
                "kl": (p * np.log(p / q)).sum(),
                "js": ((p * np.log(p / middle)).sum() + (q * np.log(q / middle)).sum()) / 2,
                "tv": abs(p - q).sum() / 2,
                "top1_change": float(p.argmax() != q.argmax()),
                "l2": np.linalg.norm(v - u),
                "norm_ratio": np.linalg.norm(v) / np.linalg.norm(u),
                "refusal_change": np.log(q[opens].sum() / q[~opens].sum()) - np.log(p[opens].sum() / p[~opens].sum()),
            }
            for name, value in expected.items():
                np.testing.assert_allclose(found[name][i, j], value, atol=1e-9, err_msg=name)


def test_the_angle_stays_right_where_acos_gives_up():
    for tiny in (1e-3, 1e-7, 1e-12):
        one = torch.tensor([1.0, 0.0], dtype=torch.float64)
        other = torch.tensor([np.cos(tiny), np.sin(tiny)], dtype=torch.float64)
        np.testing.assert_allclose(float(angle_degrees(one, other)), np.degrees(tiny), rtol=1e-6)
    assert float(angle_degrees(one, -one)) == 180.0
    assert float(angle_degrees(one, 3 * one)) == 0.0


def test_a_model_that_knows_no_refusal_has_no_refusal_change(model, states, monkeypatch):
    base, masked = states
    monkeypatch.setitem(model.__dict__, "refusal_tokens", ())
    assert measure(model, base, model.unembed(base), masked)["refusal_change"].isnan().all()


@pytest.mark.parametrize("engine", ["exact", "prefix", "naive", "find"])
@pytest.mark.parametrize("damage", ["zeroed norm", "weights x 1e20"])
def test_states_without_a_direction_are_no_measurement(engine, damage):
    model = build_tiny("llava")
    if damage == "zeroed norm":
        model.final_norm.weight.data.zero_()
    else:
        for layer in model.layers:
            layer.mlp.down_proj.weight.data *= 1e20
    with pytest.raises(RunError, match=r"length zero, which have no direction|not finite") as told:
        wb.sweep(model, text_prompts(3), engine=engine, progress=False)
    assert re.search(r"'p[012]'", str(told.value))  # the first that was asked, which is any of them in a search


def test_a_masked_state_without_a_direction_names_prompt_and_head(model, states):
    base, masked = states[0], states[1].clone()
    masked[1, 3] = 0
    names = {"prompts": ["a", "b", "c"], "rows": [f"L0H{n} query" for n in range(5)]}
    with pytest.raises(RunError, match=r"1 of 3 prompts \('b'\) under 1 of 5 masks \('L0H3 query'\)"):
        measure(model, base, model.unembed(base), masked, **names)
    masked[1, 3] = torch.inf
    with pytest.raises(RunError, match=r"not finite numbers on 1 of 3 prompts \('b'\) under 1 of 5 masks"):
        measure(model, base, model.unembed(base), masked, **names)
    with pytest.raises(RunError, match=r"length zero.*'a', 'b', 'c'\) under no mask"):
        measure(model, 0 * base, model.unembed(0 * base), states[1], **names)


def test_the_angle_of_a_vector_without_a_direction_is_no_number():
    one = torch.tensor([1.0, 0.0])
    assert angle_degrees(one, 0 * one).isnan()
    assert angle_degrees(0 * one, 0 * one).isnan()
