"""What the campaign's files share: a sweep that is quick, and when two runs are one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import xarray as xr

import workbench as wb
from tests.builders.models import tiny
from tests.builders.prompts import text_prompts
from workbench.sweeps import sweep as sweeping

# Little to compute, and every phase of the engines that have several. An engine that is not named takes no options.
OPTIONS = {
    "find": {"k": 1, "directions": 1},
}
BOOKKEEPING = {
    *("started", "wall_s", "sessions", "parts_agree", "layer_tokens", "vision_passes", "complete", "seal"),
    *("planned_bytes", "used_bytes"),  # of the process, with all else that it holds
}


PLAN = sweeping.plan


def small_blocks() -> None:
    """Blocks of two prompts from here on, in this process: a run of six has three."""
    planned = sweeping.plan
    if not getattr(planned, "halves", False):

        def plan(model, longest, **options):
            return replace(planned(model, longest, **options), block=2)

        plan.halves = True
        sweeping.plan = plan


def swept(engine: str, out: Path | None = None, **more) -> xr.Dataset:
    options = {"projections": ("query",), "keep_states": False, "progress": False, **more}
    return wb.sweep(tiny(), text_prompts(), engine=engine, engine_options=OPTIONS.get(engine, {}), out=out, **options)


def same(one: xr.Dataset, other: xr.Dataset, *, attributes: bool = True) -> None:
    """Equal to the last bit, in variables, coordinates and all attributes that do not speak of the session.

    Prompts are brought into one order: an engine may store them in its own. A run in memory has not the attributes of
    a stored one: then `attributes` is False.
    """
    assert set(one.variables) == set(other.variables)
    one, other = one.sortby("prompt"), other.sortby("prompt")
    for name in one.variables:
        np.testing.assert_array_equal(one[name].values, other[name].values, err_msg=str(name))
        assert one[name].dims == other[name].dims
    names = ({*one.attrs} | {*other.attrs}) - BOOKKEEPING if attributes else ()
    apart = {n: (one.attrs.get(n), other.attrs.get(n)) for n in names if one.attrs.get(n) != other.attrs.get(n)}
    assert not apart, f"attributes differ: {apart}"
