"""Which prompts stay together: pairs, when prompts are resampled, folded or dealt to splits."""

from collections.abc import Sequence

import numpy as np


def strata(pairs: np.ndarray, kinds: Sequence) -> list[list[np.ndarray]]:
    """Units of prompts that stay together, grouped so that a stratum's units are alike.

    Args:
        pairs: [prompt]; a unit is all prompts of one pair, or a prompt alone where this is an empty string.
        kinds: [prompt], hashable and sortable; units are alike when they hold the same kinds, each as often.

    Returns:
        Strata in a fixed order; each a list of units; each unit the indices of its prompts.
    """
    units: dict[str, list[int]] = {}
    for index, pair in enumerate(pairs):
        units.setdefault(f"pair {pair}" if pair else f"alone {index}", []).append(index)
    groups: dict[tuple, list[np.ndarray]] = {}
    for members in units.values():
        groups.setdefault(tuple(sorted(kinds[i] for i in members)), []).append(np.array(members))
    return [groups[kind] for kind in sorted(groups)]
