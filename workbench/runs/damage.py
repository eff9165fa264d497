"""What of a stored run does not match its checksums, in words, and how it is made ready to be computed again."""

import numpy as np
import xarray as xr

from workbench.axes import head_name
from workbench.runs.memory import BASE, region, variables_of
from workbench.runs.staging import UNREADABLE, digest_of, digest_of_dataset
from workbench.runs.zarr_store import Store

Place = tuple[int, int]  # a block and a unit of it, or one of those below
COORDINATES, LATE, MANIFEST = (-1, -1), (-2, -2), (-3, -3)
_NAMES = {COORDINATES: "its coordinates", LATE: "a variable known at the end", MANIFEST: "its manifest"}


def damaged(store: Store) -> list[Place]:
    """Every place of a run whose values do not match their checksum."""
    found = [] if _coordinates_hold(store) else [COORDINATES]
    if store.attrs.get("complete"):
        found += [] if store.attrs["ledger"] == store.ledger() else [MANIFEST]
        found += [LATE for name, digest in store.attrs["late"].items() if not _late_holds(store, name, digest)]
    done = [(block, unit) for block, unit in np.argwhere(store.digests.any(-1)).tolist()]
    return found + [at for at in done if at not in store.staged and not _unit_holds(store, *at)]


def _coordinates_hold(store: Store) -> bool:
    try:
        run = store.dataset()
        static = run.drop_vars([*store.layout, *store.attrs["late"]]).load()
        return digest_of_dataset(static) == store.attrs["static"]
    except UNREADABLE:
        return False


def _late_holds(store: Store, name: str, digest: str) -> bool:
    try:
        return digest_of({name: store.group[name][:]}).hex() == digest
    except UNREADABLE:
        return False


def _unit_holds(store: Store, block: int, unit: int) -> bool:
    try:
        names = variables_of(store.layout, unit)
        wheres = (region(store.layout[name], *store.bounds(block), unit) for name in names)
        parts = {name: store.arrays[name][where] for name, where in zip(names, wheres, strict=True)}
        return digest_of(parts) == store.digests[block, unit].tobytes()
    except UNREADABLE:
        return False


def described(store: Store, places: list[Place]) -> str:
    """What is damaged, and what to do."""

    def where(block: int, unit: int) -> str:
        first = block * store.partition.block
        part = "base passes" if unit == BASE else f"layer {unit - 1} ({head_name(unit - 1, 0)}…)"
        return f"{part} of prompts {first}..{first + store.partition.block - 1}"

    listed = "; ".join(_NAMES.get(at) or where(*at) for at in places[:3])
    return (
        f"{store.path} is damaged: {len(places)} of its parts do not match their checksums ({listed}). Nothing was "
        "overwritten. Recompute them with the same call and repair=True, or `workbench sweep … --repair`."
    )


def forget(store: Store, places: list[Place], skeleton: xr.Dataset) -> None:
    """Mark damaged units as not done, and write damaged coordinates again."""
    units = [(block, unit) for block, unit in places if block >= 0]
    for block, unit in units:
        store.digests[block, unit] = 0
    with store.writing():
        if COORDINATES in places:
            for name, values in skeleton.variables.items():
                store.group[str(name)][:] = values.values
        for name, variable in store.layout.items():
            of = [at for at in units if name in variables_of(store.layout, at[1])]
            for shard in {variable.shard_at(region(variable, *store.bounds(block), unit)) for block, unit in of}:
                store.rewrite(name, shard, {})
        store.write_manifest()
    store.note(complete=False)
