"""Angles between data sets: how far masking a head turns what a whole set of prompts has in common.

A set of N prompts gives a matrix of final states, N × d_model, without the mask and with it. The four criteria here
differ in which one vector stands for such a matrix. Nothing is centred, as published.

| criterion | the vector | lives in | range | as in |
|---|---|---|---|---|
| `svd_left` | first left singular vector | prompts | 0-90 | Ships, Sahara |
| `svd_right` | first right singular vector | states | 0-90 | "principal behaviour vector", the other reading |
| `mean_vector` | mean state | states | 0-180 | the plainest summary |
| `first_coordinate` | the states' first coordinate, one value a prompt | prompts | 0-180 | Oh Defense's released code |
"""

from collections.abc import Callable

import numpy as np
import xarray as xr

from workbench.criteria.deflection import angle_deg, unit_vectors
from workbench.criteria.registry import PER_DATA_SET, Criterion
from workbench.errors import CriterionError

CELLS_AT_ONCE = 2**25  # numbers of float64 held at a time: 256 MB


def first_left_singular(states: np.ndarray) -> np.ndarray:
    """First left singular vector of each matrix [..., prompt, d_model] -> [..., prompt]: unit length, any sign."""
    return _first_singular(states)[0]


def first_right_singular(states: np.ndarray) -> np.ndarray:
    """First right singular vector of each matrix [..., prompt, d_model] -> [..., d_model]: unit length, any sign."""
    return _first_singular(states)[1]


def _first_singular(states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both first singular vectors, from the eigenvectors of the smaller Gram matrix: all heads in one batched call."""
    states = np.asarray(states, dtype=np.float64)
    prompts, width = states.shape[-2:]
    turned = np.swapaxes(states, -1, -2)
    if prompts <= width:
        left = np.linalg.eigh(states @ turned)[1][..., -1]
        right = unit_vectors(np.squeeze(turned @ left[..., None], -1))
    else:
        right = np.linalg.eigh(turned @ states)[1][..., -1]
        left = unit_vectors(np.squeeze(states @ right[..., None], -1))
    return left, right


def line_angle_deg(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Angle between the lines through two vectors, degrees, 0-90: the principal angle of one-dimensional subspaces."""
    angle = angle_deg(u, v)
    return np.minimum(angle, 180 - angle)


Angle = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _turned(name: str, angle: Angle, label: str, direction: str, source: str, quirks: str) -> Criterion:
    """The criterion that compares base states with each head's masked states by `angle`, a few heads at a time."""

    def values(run: xr.Dataset) -> xr.DataArray:
        base = np.asarray(run["base_state"].transpose("prompt", "d_model").values, dtype=np.float64)
        if not np.isfinite(base).all():
            raise CriterionError(
                f"Criterion {name!r}: the unmasked states hold NaN or infinite numbers. Sweep again in float32."
            )
        if (base == base[0]).all():
            raise CriterionError(
                f"Criterion {name!r}: all {len(base)} prompts have the same unmasked state, so the set has no shape "
                "that a mask could turn. Are the prompts the same to this model (images not passed on, text cut off)?"
            )
        state = run["state"]
        out = np.full([state.sizes[dim] for dim in ("projection", "layer", "head")], np.nan)
        step = max(1, CELLS_AT_ONCE // base.size)
        for projection, layer, start in np.ndindex(out.shape[0], out.shape[1], -(-out.shape[2] // step)):
            heads = slice(start * step, (start + 1) * step)
            some = state.isel(projection=projection, layer=layer, head=heads).compute()  # read, and only then turned
            masked = np.asarray(some.transpose("head", "prompt", "d_model").values, dtype=np.float64)
            missing: np.ndarray = np.asarray(~np.isfinite(masked).all(-1))  # head, prompt
            computed = ~missing.all(-1)  # all missing: heads left out of the sweep
            if missing[computed].any():
                raise CriterionError(
                    f"Criterion {name!r}: masked states hold NaN or infinite numbers for some prompts only, in layer "
                    f"{int(state.layer[layer])} ({state.projection.values[projection]}). The run is incomplete, or "
                    "half precision overflowed."
                )
            if computed.any():
                out[projection, layer, heads][computed] = angle(base, masked[computed])
        heads_only = state.isel(prompt=0, d_model=0, drop=True).transpose("projection", "layer", "head")
        return heads_only.copy(data=out)

    needs = ("base_state", "state")
    return Criterion(name, PER_DATA_SET, values, needs, "degrees", label, direction, source, quirks)


CRITERIA = (
    _turned(
        "svd_left",
        lambda base, masked: line_angle_deg(first_left_singular(base), first_left_singular(masked)),
        "Angle of first left singular vectors",
        "0-90; larger = masking the head changes how the prompts load on what they share",
        "Zhou et al. (ICLR 2025, arXiv 2410.13708), generalised Ships with r_main = 1; ydyjya/SafetyHeadAttribution "
        "at 6203a04, lib/Sahara/svd.py",
        "Lives in the space of prompts, not of states; not centred; a sign flip of every state is invisible.",
    ),
    _turned(
        "svd_right",
        lambda base, masked: line_angle_deg(first_right_singular(base), first_right_singular(masked)),
        "Angle of first right singular vectors",
        "0-90; larger = masking the head turns the direction that the states share",
        "Oh Defense's 'principal behaviour vectors' read in the space of states; which of the two the paper means "
        "was not found",
        "Not centred, so that close to the mean state; a sign flip of every state is invisible.",
    ),
    _turned(
        "mean_vector",
        lambda base, masked: angle_deg(base.mean(-2), masked.mean(-2)),
        "Angle of mean states",
        "0-180; larger = masking the head turns the mean state further",
        "this project, the plainest summary of a set",
        "Turns that cancel over the prompts are invisible.",
    ),
    _turned(
        "first_coordinate",
        lambda base, masked: angle_deg(base[..., 0], masked[..., 0]),
        "Angle of the states' first coordinate",
        "0-180; larger = masking the head changes coordinate 0 over the prompts more",
        "cirteo/Oh-Defense, released code for more than one sample",
        "Not the deflection angle: the code normalises the columns of the N × d_model matrices and takes the first "
        "column of each, with a signed dot product, so that a change in any other coordinate is invisible.",
    ),
)
