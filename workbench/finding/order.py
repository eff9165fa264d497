"""In which order a search takes prompts: at random, each class evenly, pairs side by side."""

from collections.abc import Sequence

import numpy as np


def search_order(unsafe: np.ndarray, ties: Sequence[str], rule: str, seed: int) -> tuple[list[int], int]:
    """A random order of prompts, those that the rule reads first, and how many these are.

    Within each class every order is equally likely, so that its first prompts are a sample drawn without replacement.
    The first of a pair, one a class, share their place: what is common to a pair then cancels in the
    difference of the classes.

    Args:
        unsafe: `[prompt]`.
        ties: Of each prompt, a name that prompts of a pair share; empty for a prompt alone.
        rule: One that reads unsafe prompts only, or both classes.
        seed: Of the order.
    """
    random = np.random.default_rng(seed)
    shared: dict[str, float] = {}
    taken: set[tuple[str, bool]] = set()
    keys = np.empty(len(unsafe))
    for i, (tie, own) in enumerate(zip(ties, random.random(len(unsafe)), strict=True)):
        keys[i] = own
        if tie and (tie, bool(unsafe[i])) not in taken:
            taken.add((tie, bool(unsafe[i])))
            keys[i] = shared.setdefault(tie, own)
    places = np.empty(len(unsafe))
    for side in (unsafe, ~unsafe):
        members = np.flatnonzero(side)
        places[members[np.argsort(keys[members])]] = (np.arange(len(members)) + 0.5) / max(1, len(members))
    read = unsafe if rule == "sensitivity" else np.ones_like(unsafe)
    order = np.lexsort((~unsafe, places, ~read))
    return [int(i) for i in order], int(read.sum())
