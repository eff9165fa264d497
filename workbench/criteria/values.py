"""A criterion's values as one array, from a stored run: whole, finite, and aligned with the prompts."""

import math
from collections.abc import Iterator, Mapping

import numpy as np
import xarray as xr

from workbench.axes import HEAD_DIMS, Head, head_name
from workbench.criteria.registry import PER_PROMPT, TRAINED, Criterion
from workbench.criteria.rules import percentile_ranks
from workbench.errors import CriterionError
from workbench.runs.reading import check_run, one_readout, pieces, prompt_coord

GROUPS = 4  # of like size, in each of which estimates are calibrated


def prompt_values(run: xr.Dataset, criterion: Criterion, *, head: Head | None = None) -> xr.DataArray:
    """A per-prompt criterion's values in float64: prompt, projection, layer, head.

    A criterion without masks has the one projection `"none"`. A cell that was not computed is NaN for every prompt, and
    so is that of a head which a search dropped, since it cannot be compared with those that saw every prompt. The
    prompts may be fewer than the run's where the criterion has no meaning for some (attention to an image, without
    one).

    Args:
        run: The run; of a stored one only what is asked for is read.
        criterion: A per-prompt one.
        head: (layer, head), where only that one's values are wanted.

    Raises:
        CriterionError: If a cell has a value for some prompts only, or an infinite one; or if nothing was computed.
    """
    if head is not None:
        layer, number = (run[dim].values == at for dim, at in zip(("layer", "head"), head, strict=True))
        return _values(run.isel(layer=np.flatnonzero(layer), head=np.flatnonzero(number)), criterion)
    parts = list(value_pieces(run, criterion))
    return parts[0] if len(parts) == 1 else xr.combine_by_coords([p.to_dataset(name="values") for p in parts])["values"]


def value_pieces(run: xr.Dataset, criterion: Criterion) -> Iterator[xr.DataArray]:
    """`prompt_values`, some layers or heads after the other, so that a stored run is never held whole."""
    computed = False
    for part in pieces_of(run, criterion):
        values = _values(part, criterion)
        computed |= bool(values.notnull().any())
        yield values
    if not computed:
        if f"{criterion.needs[0]}_estimate" in run.data_vars:
            raise CriterionError(
                f"Criterion {criterion.name!r} was computed for no head of this run, which holds estimates only "
                f"(run.{criterion.needs[0]}_estimate). Raise the budget of the search, or sweep with engine='exact'."
            )
        raise CriterionError(
            f"Criterion {criterion.name!r} is missing for every head of this run: nothing was computed."
        )


def pieces_of(run: xr.Dataset, criterion: Criterion) -> Iterator[xr.Dataset]:
    """The run, some layers or heads after the other, by what a criterion reads of each head."""
    wide = {PER_PROMPT: ("projection",), TRAINED: ("d_head",)}.get(criterion.kind, ("projection", "d_model"))
    return pieces(run, math.prod(run.sizes.get(dim, 1) for dim in ("prompt", *wide)))


def _values(run: xr.Dataset, criterion: Criterion) -> xr.DataArray:
    if criterion.kind != PER_PROMPT:
        raise CriterionError(f"Criterion {criterion.name!r} is {criterion.kind}; it has no value for a single prompt.")
    check_run(run, criterion.needs, wanted_by=f"Criterion {criterion.name!r}")
    values = criterion.values(one_readout(run))
    if "projection" not in values.dims:
        values = values.expand_dims(projection=["none"], axis=1)
    values = values.transpose("prompt", "projection", "layer", "head").astype(np.float64)
    if "prompts_used" in run.data_vars:
        values = values.where(values.notnull().all("prompt"))  # dropped heads saw fewer prompts
    _refuse_holes(values, criterion.name)
    return values


def safe_ranks(run: xr.Dataset, criterion: Criterion) -> np.ndarray | None:
    """Where each head's mean over safe prompts lies among those of all heads, 0-100; [projection, layer, head].

    Only for runs whose engine left heads out and knows something of them all the same, so that a bound on safe values
    is that of all heads: of a head that a search dropped, the prompts it was scored on; of a head without any,
    its calibrated estimate. None for all other runs.
    """
    estimate_name = f"{criterion.needs[0]}_estimate"
    screened = len(criterion.needs) == 1 and estimate_name in run.data_vars
    if run[criterion.needs[0]].dims != HEAD_DIMS or not (screened or "prompts_used" in run.data_vars):
        return None
    estimated = run.assign({criterion.needs[0]: run[estimate_name]}) if screened else None
    unsafe = prompt_coord(run, "label") == "unsafe"

    def cells(given: xr.Dataset) -> np.ndarray:
        return criterion.values(given).transpose(*HEAD_DIMS).values.astype(np.float64)

    def means(part: xr.Dataset) -> xr.Dataset:
        known = None if estimated is None else cells(estimated.sel(layer=part["layer"], head=part["head"]))
        coords = {dim: part[dim].values for dim in HEAD_DIMS[1:]}
        found = _means(cells(part), unsafe, known)
        return xr.Dataset({name: (HEAD_DIMS[1:], array) for name, array in found.items()}, coords)

    whole = xr.combine_by_coords([means(part) for part in pieces_of(run, criterion)])
    levels = _levels({str(name): array.values for name, array in whole.items()})
    return np.stack([percentile_ranks(values) for values in criterion.strength(levels)])


def safe_levels(cells: np.ndarray, unsafe: np.ndarray, estimate: np.ndarray | None = None) -> np.ndarray:
    """What is known of each head's mean over safe prompts, `[projection, layer, head]`; NaN where nothing is.

    Of a head that was computed on some prompts, the mean over those; of one that was not computed, that of its
    `estimate`, calibrated.
    """
    return _levels(_means(cells, unsafe, estimate))


def _means(cells: np.ndarray, unsafe: np.ndarray, estimate: np.ndarray | None) -> dict[str, np.ndarray]:
    """The means over prompts that `_levels` goes by, `[projection, layer, head]`."""
    found = {"safe": _mean(cells[~unsafe])}
    if estimate is not None:
        alike = np.where(np.isnan(cells), np.nan, estimate)  # where both are known
        estimates = {"alike": alike, "estimate": estimate, "estimate_safe": estimate[~unsafe]}
        found |= {name: _mean(of) for name, of in {"exact": cells, **estimates}.items()}
    return found


def _levels(means: Mapping[str, np.ndarray]) -> np.ndarray:
    """`safe_levels` from `_means`.

    Estimates of large changes are too small (they are linear); how much so is read off the cells known both ways, in a
    few groups of like size, and is nothing for a change of nothing.
    """
    if "estimate" not in means:
        return means["safe"]
    factors = []
    for truth, guess, sizes_here in zip(means["exact"], means["alike"], means["estimate"], strict=True):
        known = guess > 0
        guess, ratio = guess[known], (truth / guess)[known]
        groups = [group for group in np.array_split(np.argsort(guess), GROUPS) if len(group)]
        sizes, ratios = ([float(np.median(of[group])) for group in groups] for of in (guess, ratio))
        factors.append(np.interp(sizes_here, [0.0, *sizes], [1.0, *ratios]))
    return np.where(np.isnan(means["safe"]), np.stack(factors) * means["estimate_safe"], means["safe"])


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over the prompts that have a value; NaN without any."""
    count = (~np.isnan(values)).sum(0)
    return np.where(count == 0, np.nan, np.nansum(values, 0, dtype=np.float64) / np.maximum(count, 1))


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
