"""One bit of one file of a stored run is flipped: every reader refuses it, or reads what was stored."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from tests.faults.harness import OPTIONS, same, small_blocks, swept
from workbench.errors import WorkbenchError
from workbench.runs.opening import open_run

# A finished run with states, one of an engine that adds variables at the end, and one that was begun for head sets.
STORES = {
    "states": ("exact", {"keep_states": True, "projections": ("query", "value")}),
    "late": ("find" if "find" in OPTIONS else "exact", {}),
    "groups": ("exact", {"groups": [[(0, 1)], [(1, 2), (3, 0)]]}),
}
FLIPS = 80  # of each store; every file has its turn


def plain_readers(path: Path) -> xr.Dataset:
    return xr.open_zarr(path, chunks=None).load()


def again(path: Path, store: str) -> xr.Dataset:
    engine, more = STORES[store]
    return swept(engine, path, **more)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """By name: the folder of the run, its files, and what both readers say of it."""
    small_blocks()
    known = {}

    def of(store):
        if store not in known:
            path = tmp_path_factory.mktemp("bits") / f"{store}.zarr"
            again(path, store)
            files = sorted(p for p in path.rglob("*") if p.is_file() and p.stat().st_size)
            known[store] = (path, files, open_run(path), plain_readers(path))
        return known[store]

    return of


@pytest.mark.parametrize("number", range(FLIPS))
@pytest.mark.parametrize("store", STORES)
def test_flipped_bit(store, number, stored, tmp_path):
    path, files, run, plain = stored(store)
    rng = np.random.default_rng(number)
    for source in files[number::FLIPS] or [files[number % len(files)]]:
        copy = tmp_path / source.name / "run.zarr"
        shutil.copytree(path, copy)
        victim = copy / source.relative_to(path)
        data = bytearray(victim.read_bytes())
        at, bit = int(rng.integers(len(data))), int(rng.integers(8))
        data[at] ^= 1 << bit
        victim.write_bytes(data)
        where = f"{source.relative_to(path)}, byte {at} of {len(data)}, bit {bit}"
        for reader in (open_run, lambda place: again(place, store)):
            try:
                found = reader(copy)
            except WorkbenchError:
                continue
            except Exception as error:
                raise AssertionError(f"{where}: {type(error).__name__}: {error}") from error
            same(found, run)
        if "/c/" not in source.as_posix() or "manifest" in source.parts:
            continue  # what other readers of Zarr cannot know
        victim.write_bytes(data)  # should the sweep have mended it
        try:
            found = plain_readers(copy)
        except Exception:  # noqa: BLE001  whatever it is called, it is no number
            continue
        for name in plain.variables:
            np.testing.assert_array_equal(found[name].values, plain[name].values, err_msg=f"{where}: {name}")
