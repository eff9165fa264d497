"""One model, several threads: what one thread holds on the model, no other sees."""

import copy
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import workbench as wb
from tests.builders.models import tiny
from tests.builders.prompts import text_prompts

PROMPTS = text_prompts(3)
MASKS = {"limit": wb.Mask(), "half": wb.Mask(form="scale", factor=0.5), "published": wb.Mask(form="as_published")}


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture
def eager_switches():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def calls(model):
    """Things to do with the model, each of which sets something on its modules."""
    heads = [(layer, head) for layer in range(model.n_layers) for head in (0, 3)]
    yield from (lambda m=m: wb.sweep(model, PROMPTS, mask=m, progress=False).deflection.values for m in MASKS.values())
    yield lambda: wb.sweep(model, PROMPTS, engine="prefix", progress=False).kl.values
    yield lambda: np.stack([model.state(p, heads=heads, mask=MASKS["half"]).numpy() for p in PROMPTS])
    yield lambda: np.stack([model.logits(p).numpy() for p in PROMPTS])
    yield lambda: np.stack([model.head_outputs(p).numpy() for p in PROMPTS])


@pytest.mark.slow
def test_two_threads_get_the_numbers_of_one(model, eager_switches):
    alone = [call() for call in calls(model)]
    with ThreadPoolExecutor(4) as threads:
        running = [threads.submit(call) for _ in range(3) for call in calls(model)]
        found = [future.result() for future in running]
    for number, values in enumerate(found):
        np.testing.assert_array_equal(values, alone[number % len(alone)])


def test_a_state_is_normed_when_nobody_else_holds_the_model(model):
    """Who listens to the norm for the state of a forward pass hears no other state."""
    with ThreadPoolExecutor(1) as threads:
        with model.lock:
            waiting = threads.submit(model.normed, torch.ones(2, model.d_model))
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.2)
        assert waiting.result(timeout=5).shape == (2, model.d_model)


def test_a_copy_has_a_lock_of_its_own(model):
    other = copy.deepcopy(model.lock)
    with model.lock, ThreadPoolExecutor(1) as threads:
        assert threads.submit(other.__enter__).result(timeout=5) is None
