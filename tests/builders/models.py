"""Tiny random models for tests. `tiny` is built once a process and shared: only look; `seeded` is one's own."""

from functools import cache

import torch

from workbench.models.hooked import HookedLVLM
from workbench.models.tiny import build_tiny


def seeded(name: str = "llava", dtype: torch.dtype = torch.float32) -> HookedLVLM:
    """The same weights in every process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_tiny(name, dtype=dtype)


@cache
def tiny(name: str = "llava", dtype: torch.dtype = torch.float32) -> HookedLVLM:
    """`seeded`, shared between tests; not to be changed."""
    return seeded(name, dtype)
