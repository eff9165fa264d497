"""A fitted detector and a run of the planted model, made once for a file of tests."""

import pytest

from tests.unit.planted_parts import model, prompts
from workbench.detectors import OneHeadDetector
from workbench.sweeps.sweep import sweep


@pytest.fixture(scope="module")
def one_head() -> OneHeadDetector:
    return OneHeadDetector().fit(model(), prompts())


@pytest.fixture(scope="module")
def run():
    return sweep(model(), prompts(), projections=("query",), progress=False, keep_states=False)
