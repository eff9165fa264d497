"""Opening stored runs: to read, checksums first, or to go on writing."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xarray as xr

from workbench.errors import RunError
from workbench.runs.damage import COORDINATES, damaged, described, forget
from workbench.runs.job import MEASURES
from workbench.runs.zarr_store import Store

NOT_ASKED = "not among the prompts of the call"


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
    store = Store(path, read_only=True)
    store.read_manifest()
    if verify and (places := damaged(store)):
        raise RunError(described(store, places))
    return store.dataset()


def open_store(
    path: str | Path,
    recipe: Mapping[str, Any],
    skeleton: xr.Dataset,
    *,
    repair: bool = False,
    skip: bool = False,
) -> Store:
    """The run of this recipe at `path`: to read, when it is finished; else under the lock, to go on with or lay out.

    The store may hold more prompts than `skeleton`: of those, the ones that were not computed stay NaN.

    Args:
        path: Where.
        recipe: What the run must be of.
        skeleton: Its coordinates, for the prompts that are asked for.
        repair: Mark damaged parts as not done, in place of refusing.
        skip: Take a run in which some of the prompts could not be computed.

    Returns:
        The store; its `layout` is empty where there is no run yet.

    Raises:
        RunError: Another writer, another run, another schema, or damage that `repair` was not asked to mend.
    """
    store = Store(path, read_only=True)
    if store.exists():
        _settle(store, recipe, skeleton, repair, skip)
        if store.attrs.get("complete") and not repair and not _wanted(store, skeleton):
            return store
    store = Store(path)
    store.take_lock()
    try:
        if store.exists():
            if places := _settle(store, recipe, skeleton, repair, skip):
                forget(store, places, skeleton)
            _take_back(store, _wanted(store, skeleton))
    except BaseException:
        store.close()
        raise
    return store


def _settle(
    store: Store, recipe: Mapping[str, Any], skeleton: xr.Dataset, repair: bool, skip: bool
) -> list[tuple[int, int]]:
    """Read the manifest of a run that is of this recipe and has these prompts; what is to be repaired of it.

    Raises:
        RunError: Another run, damage, or prompts that could not be computed, where that was not to be taken.
    """
    _check_recipe(store, recipe)
    store.read_manifest()
    places = damaged(store)
    if places and not repair:
        raise RunError(described(store, places))
    if COORDINATES not in places:
        _check_prompts(store, recipe, skeleton)
    elif store.attrs["prompt_hash"] != recipe["prompt_hash"]:
        raise RunError(f"{described(store, places)} Its coordinates need the call with all of its prompts.")
    asked = set(map(str, skeleton["prompt"].values))
    bad = {i: why for i, why in skipped(store).items() if why != NOT_ASKED and i in asked}
    if bad and not skip:
        first, why = next(iter(bad.items()))
        raise RunError(
            f"{store.path} left out {len(bad)} prompts that could not be computed, the first {first!r}: {why} "
            "Take the run without them with on_error='skip', or make the call without these prompts."
        )
    return places


def skipped(store: Store) -> dict[str, str]:
    """Prompts that a run does not hold, by id, and why."""
    return dict(json.loads(store.attrs.get("skipped", "{}")))


def prompt_ids(store: Store) -> list[str]:
    """Ids of a run's prompts, in the order in which they are stored."""
    return list(map(str, store.group["prompt"][:]))


def _wanted(store: Store, skeleton: xr.Dataset) -> list[str]:
    """Prompts that are asked for now and were not when their blocks were computed."""
    asked = set(map(str, skeleton["prompt"].values))
    return [i for i, why in skipped(store).items() if why == NOT_ASKED and i in asked]


def _take_back(store: Store, ids: list[str]) -> None:
    """Have prompts computed that were left out before, and so their blocks."""
    if ids:
        places = {i: place for place, i in enumerate(prompt_ids(store))}
        for start in {places[i] // store.partition.block * store.partition.block for i in ids}:
            store.reset(start)
        store.note(complete=False, skipped=json.dumps({i: w for i, w in skipped(store).items() if i not in ids}))


def _check_recipe(store: Store, recipe: Mapping[str, Any]) -> None:
    attrs = {"measures": list(MEASURES)} | store.attrs  # stores of before they could be chosen have all
    # Which prompts there are is decided prompt by prompt.
    if wrong := [name for name, value in recipe.items() if name != "prompt_hash" and attrs.get(name) != value]:
        listed = "; ".join(f"{name} is {attrs.get(name)!r} there and {recipe[name]!r} here" for name in wrong[:3])
        raise RunError(
            f"{store.path} holds another run: {listed}. Nothing was overwritten; store this run elsewhere, "
            "or make the same call again to go on with that one."
        )


def _check_prompts(store: Store, recipe: Mapping[str, Any], skeleton: xr.Dataset) -> None:
    there = store.dataset()[["content_hash", "request_hash"]].load().to_dataframe()
    asked = skeleton[["content_hash", "request_hash"]].to_dataframe()
    if lacking := [i for i in asked.index if i not in there.index]:
        raise RunError(
            f"{store.path} holds another run: prompt_hash is {store.attrs.get('prompt_hash')!r} there and "
            f"{recipe['prompt_hash']!r} here; {len(lacking)} of these prompts are not among its {len(there)}, the "
            f"first {lacking[0]!r}. Nothing was overwritten; store this run elsewhere."
        )
    there = there.loc[asked.index]
    for name, what in (("content_hash", "text, picture or label"), ("request_hash", "text after the chat template")):
        if (differ := there[name] != asked[name]).any():
            raise RunError(
                f"{store.path} holds another run: prompt_hash is {store.attrs.get('prompt_hash')!r} there and "
                f"{recipe['prompt_hash']!r} here; {int(differ.sum())} of these prompts have another {what}, the first "
                f"{differ[differ].index[0]!r}. Nothing was overwritten; store this run elsewhere."
            )
