"""Every family can be taken apart, sent to another process and put together there, to the last bit."""

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import workbench as wb
from workbench.errors import ModelError
from workbench.models.conformance.at_load import probe_prompt
from workbench.models.families import FAMILIES
from workbench.models.tiny import build_tiny
from workbench.models.transfer import apart, shared_out, together

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # transformers' PaliGemma
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def elsewhere(tiny, tmp_path_factory):
    """What every family's model measures here, and in a process that has built no model; by family."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own, on import
        from ray import cloudpickle
    folder, here = tmp_path_factory.mktemp("sent"), {}
    for name in FAMILIES:
        model = tiny(name)
        here[name] = wb.sweep(model, [probe_prompt(model)], progress=False)
        bare, weights = apart(model)
        sent = cloudpickle.dumps(bare)
        assert len(sent) < 0.5 * sum(array.nbytes for array in weights.values()), "the weights went along"
        (folder / f"{name}.model").write_bytes(sent)
        np.savez(folder / f"{name}.weights.npz", **weights)
    script = Path(__file__).with_name("put_together.py")
    done = subprocess.run(
        [sys.executable, script, folder, str(torch.get_num_threads())], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return here, {name: dict(np.load(folder / f"{name}.run.npz")) for name in FAMILIES}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_sent_to_another_process_is_the_same(name, tiny, elsewhere):
    here, there = elsewhere[0][name], elsewhere[1][name]
    assert str(there.pop("weight_hash")) == tiny(name).weight_hash
    assert set(there) == set(map(str, here.data_vars))
    assert np.nanmax(here.deflection) > 0.1
    for variable, values in there.items():
        np.testing.assert_array_equal(values, here[variable].values, err_msg=variable)
    assert not any(parameter.is_meta for parameter in tiny(name).hf.parameters()), "the model lost its weights"


def test_weights_lie_in_the_memory_they_came_in(tiny):
    bare, weights = apart(tiny("llava"))
    name, given = next(iter(weights.items()))
    there = together(bare, weights, CPU, {})
    assert there.hf.get_parameter(name).data_ptr() == given.ctypes.data


def test_half_precision_keeps_its_bits():
    model = build_tiny("llava", dtype=torch.bfloat16)
    there = together(*apart(model), CPU, {})
    assert there.dtype == torch.bfloat16
    assert there.weight_hash == model.weight_hash


def test_tied_weights_stay_tied():
    model = build_tiny("qwen2")
    model.hf.lm_head.weight = model.hf.get_input_embeddings().weight
    there = together(*apart(model), CPU, {})
    assert there.hf.lm_head.weight is there.hf.get_input_embeddings().weight


def test_a_group_of_devices_is_numbered_from_zero():
    model = build_tiny("qwen2")
    model.hf.hf_device_map = {"model.embed_tokens": 2, "model.layers": "cuda:5", "lm_head": "cpu"}
    assert shared_out(model) == {"model.embed_tokens": 0, "model.layers": 1, "lm_head": "cpu"}
    model.hf.hf_device_map = {"": "cpu"}
    assert shared_out(model) == {}


def test_weights_that_are_not_here_in_full_are_refused():
    class Packed(nn.Parameter):
        pass

    model = build_tiny("qwen2")
    model.hf.lm_head.weight = Packed(model.hf.lm_head.weight.detach(), requires_grad=False)
    with pytest.raises(ModelError, match=r"quantised \(Packed\)"):
        apart(model)
    model.hf.lm_head.weight = nn.Parameter(torch.empty(3, 3, device="meta"), requires_grad=False)
    with pytest.raises(ModelError, match=r"1 weights .* offloaded .* \(first: lm_head.weight\)"):
        apart(model)
