"""One tiny float64 model a family, built once and only read; tests that change a model build their own."""

from functools import cache

import pytest
import torch

from workbench.models.hooked import HookedLVLM
from workbench.models.tiny import build_tiny


@cache
def built(name: str) -> HookedLVLM:
    return build_tiny(name, dtype=torch.float64)


@pytest.fixture(scope="session")
def tiny():
    """`tiny(name)` is the family's tiny model, shared and not to be changed."""
    return built
