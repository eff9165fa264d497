"""A criterion's values as one array, from a stored run: whole, finite, and aligned with the prompts."""

import numpy as np
import xarray as xr

from workbench.axes import HEAD_DIMS, head_name
from workbench.criteria.array_rules import safe_levels
from workbench.criteria.registry import PER_PROMPT, Criterion
from workbench.errors import CriterionError
from workbench.runs.reading import check_run, one_readout, prompt_coord


def prompt_values(run: xr.Dataset, criterion: Criterion) -> xr.DataArray:
    """A per-prompt criterion's values in float64: prompt, projection, layer, head.

    A criterion without masks has the one projection `"none"`. A cell that was not computed is NaN for every prompt, and
    so is that of a head which left a race early, since it cannot be compared with those that saw every prompt. The
    prompts may be fewer than the run's where the criterion has no meaning for some (attention to an image, without
    one).

    Raises:
        CriterionError: If a cell has a value for some prompts only, or an infinite one.
    """
    if criterion.kind != PER_PROMPT:
        raise CriterionError(f"Criterion {criterion.name!r} is {criterion.kind}; it has no value for a single prompt.")
    check_run(run, criterion.needs, wanted_by=f"Criterion {criterion.name!r}")
    values = criterion.values(one_readout(run))
    if "projection" not in values.dims:
        values = values.expand_dims(projection=["none"], axis=1)
    values = values.transpose("prompt", "projection", "layer", "head").astype(np.float64)
    if "prompts_used" in run.data_vars:
        values = values.where(values.notnull().all("prompt"))  # a raced run: heads that left early saw fewer prompts
    if bool(values.isnull().all()) and f"{criterion.needs[0]}_estimate" in run.data_vars:
        raise CriterionError(
            f"Criterion {criterion.name!r} was computed for no head of this run, which holds estimates only "
            f"(run.{criterion.needs[0]}_estimate). Sweep with engine_options={{'best': 16}} to score the best exactly."
        )
    _refuse_holes(values, criterion.name)
    return values


def safe_ranks(run: xr.Dataset, criterion: Criterion) -> np.ndarray | None:
    """Where each head's mean over safe prompts lies among those of all heads, 0-100; [projection, layer, head].

    Only for runs whose engine left heads out and knows something of them all the same, so that a bound on safe values
    is that of all heads: of a head that left a race, the prompts it was scored on; of a head that was only screened,
    its calibrated estimate. None for all other runs.
    """
    estimate_name = f"{criterion.needs[0]}_estimate"
    screened = len(criterion.needs) == 1 and estimate_name in run.data_vars
    if run[criterion.needs[0]].dims != HEAD_DIMS or not (screened or "prompts_used" in run.data_vars):
        return None
    estimated = run.assign({criterion.needs[0]: run[estimate_name]}) if screened else None

    def cells(given: xr.Dataset) -> np.ndarray:
        return criterion.values(given).transpose(*HEAD_DIMS).values.astype(np.float64)

    unsafe = prompt_coord(run, "label") == "unsafe"
    levels = safe_levels(cells(run), unsafe, None if estimated is None else cells(estimated))
    flat = criterion.strength(levels.reshape(len(levels), -1))
    return np.stack([percentile_ranks(values) for values in flat]).reshape(levels.shape)


def percentile_ranks(values: np.ndarray) -> np.ndarray:
    """The percentile at which each value lies, 0-100: under p just where the value is under the p-th percentile."""
    known = np.sort(values[~np.isnan(values)])
    ranks = 100 * (np.searchsorted(known, values, side="right") - 1) / max(1, len(known) - 1)
    return np.where(np.isnan(values), np.nan, ranks if len(known) > 1 else 100.0)


def prompts_of(run: xr.Dataset, values: xr.DataArray) -> xr.Dataset:
    """What the run knows about the prompts of `values` (its coordinates along prompt, and no variables)."""
    known = run.coords.to_dataset()
    if run.sizes["prompt"] == values.sizes["prompt"]:
        return known
    return known.sel(prompt=values["prompt"].values)


def _refuse_holes(values: xr.DataArray, name: str) -> None:
    cells = values.values
    if cells.shape[0] == 0:
        raise CriterionError(f"Criterion {name!r} has a meaning for none of this run's prompts.")
    infinite, missing = np.isinf(cells), np.isnan(cells)
    holes = infinite | (missing & ~missing.all(axis=0))
    if holes.any():
        _, projection, layer, head = np.argwhere(holes)[0]
        count = int(holes[:, projection, layer, head].sum())
        where = head_name(int(values["layer"][layer]), int(values["head"][head]))
        where = f"{where} {values['projection'].values[projection]}"
        prompt = values["prompt"].values[np.flatnonzero(holes[:, projection, layer, head])[0]]
        raise CriterionError(
            f"Criterion {name!r} is {'infinite' if infinite.any() else 'missing'} for {count} of {cells.shape[0]} "
            f"prompts at {where} (first: prompt {str(prompt)!r}). The model gave no finite answer there, or the run "
            "is incomplete: sweep it again (float32 where half precision overflowed)."
        )
    if missing.all():
        raise CriterionError(f"Criterion {name!r} is missing for every head of this run: nothing was computed.")
