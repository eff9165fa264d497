"""Which prompts choose a head, which set its threshold, and which test it."""

import numpy as np
import xarray as xr

from workbench.axes import SPLITS
from workbench.errors import RunError
from workbench.prompts.ties import strata
from workbench.runs.pairs import tie_names, told_repeats
from workbench.runs.reading import FEWEST_PROMPTS, RunLike, as_run, declared_splits, prompt_coord

SHARES = {"selection": 0.4, "threshold": 0.3, "test": 0.3}


def with_splits(run: RunLike, *, seed: int = 0) -> tuple[xr.Dataset, str]:
    """The run with every prompt in a split, and a sentence that says where the splits come from.

    Declared splits are used as they are; without threshold prompts, the selection prompts also set the threshold, as in
    the papers. Where the prompts declare no split, or all the same one, they are dealt 40 : 30 : 30 over selection,
    threshold and
    test: seeded, stratified by label and family, the prompts of a pair together, and those that ask the same.

    Raises:
        RunError: If there are no selection or no test prompts among declared ones, or a split lacks a class.
    """
    run = as_run(run)
    declared = declared_splits(run)
    if len(declared) <= 1:
        split = _dealt(run, seed)
        what = "all of one split" if declared else "without splits"
        told = (
            f"prompts {what}, dealt 40:30:30 over selection, threshold and test, stratified by label and family "
            f"(seed {seed})"
        )
        run = run.assign_coords(split=("prompt", split))
        wanted: tuple[str, ...] = SPLITS
    elif not {"selection", "test"} <= set(declared):
        raise RunError(
            f"The prompts declare the splits {', '.join(declared)}; detection needs selection and test prompts, and "
            "threshold prompts where there are some. Sweep the missing ones, or clear the splits to have them dealt."
        )
    else:
        told = "declared by the prompts" + (
            "" if "threshold" in declared else "; the selection prompts set the threshold"
        )
        wanted = declared
    labels, splits = prompt_coord(run, "label"), prompt_coord(run, "split")
    for name in wanted:
        for label in ("unsafe", "safe"):
            count = int(((splits == name) & (labels == label)).sum())
            if count < FEWEST_PROMPTS:
                raise RunError(
                    f"The split {name} holds {count} {label} prompts; it takes at least {FEWEST_PROMPTS}. Sweep more."
                )
    repeated = told_repeats(run)
    return run, f"{told}; {repeated}" if repeated else told


def in_split(run: xr.Dataset, name: str) -> np.ndarray:
    """True where a prompt of a run from `with_splits` counts for a purpose: selection, threshold or test; [prompt]."""
    splits = prompt_coord(run, "split")
    if name == "threshold" and "threshold" not in set(splits):
        name = "selection"
    return splits == name


def _dealt(run: xr.Dataset, seed: int) -> np.ndarray:
    """A split for every prompt, [prompt]: within each stratum of tied prompts, in shuffled order."""
    rng = np.random.default_rng(seed)
    labels, families = prompt_coord(run, "label"), prompt_coord(run, "family")
    split = np.full(len(labels), "test", dtype=object)
    bounds = np.cumsum(list(SHARES.values()))[:-1]
    for group in strata(tie_names(run), list(zip(labels, families, strict=True))):
        # The first place is random, so that small strata do not all give their only tie to the same split.
        places = (np.arange(len(group)) + rng.uniform()) / len(group)
        for place, tie in zip(places, rng.permutation(len(group)), strict=True):
            split[group[tie]] = SPLITS[int(np.searchsorted(bounds, place, side="right"))]
    return split
