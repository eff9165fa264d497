"""Opening stored runs: to read, checksums first, or to go on writing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xarray as xr

from workbench.axes import head_name
from workbench.errors import RunError
from workbench.runs.memory import BASE
from workbench.runs.zarr_store import Store


def open_run(path: str | Path, *, verify: bool = True) -> xr.Dataset:
    """Open a stored run, finished or not, and check every stored unit against its checksum.

    Args:
        path: A local path or an fsspec URL.
        verify: False skips the checksums, which need every chunk to be read.

    Returns:
        The run, read from disk when its values are asked for; what is not computed yet is NaN.

    Raises:
        RunError: There is no run, its schema is another, or something in it is damaged (saying what).

    Examples:
        >>> import workbench as wb
        >>> run = wb.sweep("planted", wb.load_prompts("planted", n=4), out="run.zarr", progress=False)
        >>> wb.open_run("run.zarr").equals(run)
        True
    """
    store = Store(path)
    store.read_manifest()
    if verify and (damaged := store.damaged()):
        raise RunError(_damage(store, damaged))
    return store.dataset()


def open_store(
    path: str | Path,
    recipe: Mapping[str, Any],
    skeleton: xr.Dataset,
    *,
    repair: bool = False,
) -> Store:
    """Take the lock and open the run of this recipe at `path`, or a place for a new one (its `layout` is then empty).

    Raises:
        RunError: For another writer, another run, a newer schema, or damage that `repair` was not asked to mend.
    """
    store = Store(path)
    store.take_lock()
    try:
        if store.exists():
            store.check_recipe(recipe)
            store.read_manifest()
            if damaged := store.damaged():
                if not repair:
                    raise RunError(_damage(store, damaged))
                store.forget(damaged, skeleton)
        elif store.group is not None:
            store.check_recipe(recipe)  # begun and killed before the first unit: laid out again
    except BaseException:
        store.close()
        raise
    return store


def _damage(store: Store, damaged: list[tuple[int, int]]) -> str:
    def where(block: int, unit: int) -> str:
        if block < 0:
            return "its coordinates"
        first = block * store.partition.block
        part = "base passes" if unit == BASE else f"layer {unit - 1} ({head_name(unit - 1, 0)}…)"
        return f"{part} of prompts {first}..{first + store.partition.block - 1}"

    said = "; ".join(where(*at) for at in damaged[:3])
    return (
        f"{store.path} is damaged: {len(damaged)} of its parts do not match their checksums ({said}). Nothing was "
        "overwritten. Recompute them with the same call and repair=True, or `workbench sweep … --repair`."
    )
