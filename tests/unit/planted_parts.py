"""The planted models and prompts that several tests share; read-only, loaded once a process."""

from functools import cache

import numpy as np

from workbench.models.hooked import HookedLVLM
from workbench.models.loading import load_model
from workbench.prompts.prompt import PromptSet
from workbench.prompts.worlds.planted import draw_planted_prompts


@cache
def model(name: str = "planted") -> HookedLVLM:
    return load_model(name, device="cpu", check=False)


@cache
def prompts(n: int = 96) -> PromptSet:
    return draw_planted_prompts(n=n)


def split(name: str) -> PromptSet:
    return prompts().where(split=name)


def labels(of: PromptSet) -> np.ndarray:
    return np.array([p.label for p in of])
