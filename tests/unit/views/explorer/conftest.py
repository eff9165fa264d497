"""A small planted run, and the explorer's board on it, for the tests of this folder."""

import pytest

import workbench as wb
from workbench.views.explorer.explore import explore


@pytest.fixture(scope="module")
def model():
    return wb.load_model("planted")


@pytest.fixture(scope="module")
def prompts():
    return wb.load_prompts("planted", split="selection", seed=0, n=24)


@pytest.fixture(scope="module")
def run(model, prompts):
    return wb.sweep(model, prompts, progress=False)


@pytest.fixture(scope="module")
def scores(run):
    return wb.score(run, bootstrap=40, permutations=0)


@pytest.fixture
def board(run, model, prompts, scores):
    return explore(run, model=model, prompts=prompts, scores=scores)
