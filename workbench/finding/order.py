"""In which order a search takes prompts: at random, each class evenly, pairs side by side."""

from collections.abc import Sequence

import numpy as np


def search_order(unsafe: np.ndarray, units: Sequence[str], rule: str, seed: int) -> tuple[list[int], int]:
    """A random order of prompts, those that the rule reads first, and how many these are.

    Within each class every order is equally likely, so that its first prompts are a sample drawn without replacement.
    The first members of a unit, one a class, share their place in it: what is common to a pair then cancels in the
    difference of the classes.

    Args:
        unsafe: `[prompt]`.
        units: Of each prompt, a name that prompts of a pair share; empty for a prompt alone.
        rule: One that reads unsafe prompts only, or both classes.
        seed: Of the order.
    """
    random = np.random.default_rng(seed)
    shared: dict[str, float] = {}
    taken: set[tuple[str, bool]] = set()
    keys = np.empty(len(unsafe))
    for i, (unit, own) in enumerate(zip(units, random.random(len(unsafe)), strict=True)):
        keys[i] = own
        if unit and (unit, bool(unsafe[i])) not in taken:
            taken.add((unit, bool(unsafe[i])))
            keys[i] = shared.setdefault(unit, own)
    places = np.empty(len(unsafe))
    for side in (unsafe, ~unsafe):
        members = np.flatnonzero(side)
        places[members[np.argsort(keys[members])]] = (np.arange(len(members)) + 0.5) / max(1, len(members))
    read = unsafe if rule == "sensitivity" else np.ones_like(unsafe)
    order = np.lexsort((~unsafe, places, ~read))
    return [int(i) for i in order], int(read.sum())
