"""What tests of stored runs share: a sweep into a store, its files, and a sweep that is cut short."""

from pathlib import Path

import numpy as np
import xarray as xr

import workbench as wb
from tests.builders.prompts import text_prompts
from workbench.sweeps.engines.exact import ExactBlock


def swept(model, out=None, **kw):
    return wb.sweep(model, text_prompts(), out=out, progress=False, **kw)


def same(one: xr.Dataset, other: xr.Dataset) -> None:
    assert set(one.variables) == set(other.variables)
    for name in one.variables:
        assert one[name].dims == other[name].dims
        np.testing.assert_array_equal(one[name].values, other[name].values, err_msg=str(name))


def files(path: Path) -> dict[str, bytes]:
    found = {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}
    return {name: data for name, data in found.items() if not name.endswith((".partial", "lock", "zarr.json"))}


def interrupt_after(monkeypatch, n: int, error: BaseException) -> None:
    """Let `n` more units be computed, then raise."""
    whole, count = ExactBlock.layer_arrays, [0]

    def layer_arrays(self, layer):
        count[0] += 1
        if count[0] > n:
            raise error
        return whole(self, layer)

    monkeypatch.setattr(ExactBlock, "layer_arrays", layer_arrays)
