"""Which prompts of a run stay together: those of a pair, and those that ask the same."""

import numpy as np
import xarray as xr

from workbench.prompts import ties
from workbench.runs.reading import prompt_coord


def tie_names(run: xr.Dataset) -> np.ndarray:
    """The tie of each prompt, [prompt]: a name that all its prompts share; empty for a prompt alone."""
    return ties.tie_names(prompt_coord(run, "pair_id"), prompt_coord(run, "content"))


def told_repeats(run: xr.Dataset) -> str:
    """A sentence about prompts that ask the same under several ids; empty where none do."""
    groups = list(ties.repeats(prompt_coord(run, "content")))
    if not groups:
        return ""
    first = ", ".join(repr(str(run["prompt"].values[i])) for i in groups[0][:2])
    return (
        f"{sum(map(len, groups))} prompts repeat {len(groups)} questions under several ids (the same text and picture; "
        f"first {first}); each question counts once when prompts are dealt, folded, resampled or shuffled"
    )
