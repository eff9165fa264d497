"""Reading a stored run: is it one, which prompts count, and a criterion's values as one array.

Every file of this folder reads runs through here, so that a run of another schema, a missing variable, a class without
prompts or a cell with holes is refused in one place and in one voice.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import xarray as xr

from workbench.axes import LABELS, SPLITS
from workbench.checking import Converted
from workbench.errors import CriterionError, RunError

SCHEMAS = ("2",)  # the schemas of a run that this version reads
FEWEST_PROMPTS = 3  # of each class: fewer have no spread that a statistic could use


NUMBERS_AT_ONCE = 2**22  # of a stored variable that are read and worked on together: 32 MB as float64

RunLike = xr.Dataset | str | Path  # a run, or the path of a stored one


def as_run(run: RunLike) -> xr.Dataset:
    """The run, without prompts that could not be computed; opened and checked by `open_run` where its path is given."""
    if isinstance(run, str | Path):
        from workbench.runs.opening import open_run  # reading a run that is in memory needs no store

        run = open_run(run)
    if not isinstance(run, xr.Dataset) or not (skipped := json.loads(run.attrs.get("skipped", "{}"))):
        return run
    return run.isel(prompt=[place for place, i in enumerate(run["prompt"].values) if str(i) not in skipped])


def as_checked_run(run: Any) -> xr.Dataset:
    """`as_run`, and refused by `check_run` where it is none."""
    found = as_run(run)
    check_run(found)
    return found


def caveats_of(run: xr.Dataset) -> list[str]:
    """What its prompts share, and how few questions they ask (`workbench.prompts.caveats`), as the run records it."""
    try:
        told = json.loads(run.attrs.get("caveats", "[]"))
    except (TypeError, ValueError):
        return []
    return [sentence for sentence in told if isinstance(sentence, str)] if isinstance(told, list) else []


def check_run(run: xr.Dataset, needs: Sequence[str] = (), *, wanted_by: str = "this") -> None:
    """Refuse what is no run, a run of another schema, and a run without the variables in `needs`."""
    if not isinstance(run, xr.Dataset):
        raise RunError(
            f"A run is an xarray.Dataset, as wb.sweep returns it; got {type(run).__name__}. "
            "Open a stored one with wb.open_run(path)."
        )
    schema = run.attrs.get("schema")
    if str(schema) not in SCHEMAS:
        raise RunError(
            f"This run has schema {schema!r}; this version reads {', '.join(map(repr, SCHEMAS))}. "
            "Sweep again with this version, or read the run with the version that wrote it."
        )
    if missing := [dim for dim in ("prompt", "layer", "head") if dim not in run.dims]:
        raise RunError(f"This run has no dimension {', '.join(missing)}; it has {', '.join(map(str, run.dims))}.")
    ids = pd.Index(run["prompt"].values)
    if ids.has_duplicates:
        raise RunError(
            f"{int(ids.duplicated().sum())} prompts of this run repeat the id of another, the first "
            f"{ids[ids.duplicated()][0]!r}. The same prompt would be chosen on and tested on: give every prompt an "
            "id of its own."
        )
    if "label" not in run.coords:
        raise RunError("This run does not say which prompts are safe: it has no coordinate 'label' along prompt.")
    if missing := [name for name in needs if name not in run.data_vars]:
        raise CriterionError(
            f"{wanted_by} needs {', '.join(f'run.{name}' for name in missing)}, which this run does not hold. "
            f"{_how_to_get(missing[0])} It holds: {', '.join(map(str, run.data_vars))}."
        )


def one_readout(run: xr.Dataset) -> xr.Dataset:
    """The run as the final state reads it, where it was read at other layers too; a run of one read-out as it is.

    Raises:
        RunError: For a run of several read-outs without the final one.
    """
    if "readout" not in run.dims:
        return run
    labels = [str(label) for label in run["readout"].values]
    if "final" not in labels:
        raise RunError(
            f"This run was read after the layers {', '.join(labels)} and not from the final state, which is what is "
            f"scored by default. Say which one counts: run.sel(readout={labels[-1]!r})."
        )
    return run.sel(readout="final", drop=True)


def pieces(run: xr.Dataset, numbers: int) -> Iterator[xr.Dataset]:
    """The run piece by piece, some layers or heads of one, so that no more than `NUMBERS_AT_ONCE` is read at once.

    Args:
        run: Stored or not; a small one is one piece.
        numbers: How many numbers of a head are looked at, over all prompts.
    """
    n_layers, n_heads = run.sizes["layer"], run.sizes["head"]
    at_once = max(1, NUMBERS_AT_ONCE // max(1, numbers))
    layers, heads = max(1, at_once // n_heads), min(at_once, n_heads)
    for layer in range(0, n_layers, layers):
        for head in range(0, n_heads, heads):
            yield run.isel(layer=slice(layer, layer + layers), head=slice(head, head + heads))


def _how_to_get(variable: str) -> str:
    if variable == "state":
        return (
            "The masked states are kept when they fit the budget: sweep again with keep_states=True "
            "(fewer prompts, one projection, or heads=[...] make it smaller)."
        )
    if variable in ("head_output", "write_root", "image_attention", "refusal_write"):
        return "It is stored per query head: a sweep with grain='kv_group' does not have it; score other criteria."
    if variable == "twin_gap":
        return "It needs pairs: sweep unsafe prompts together with their safe twins (pair_id), with mask='interchange'."
    return "Sweep again with this version of the workbench."


SomeRun = Annotated[RunLike, Converted(as_checked_run)]


def unsafe_mask(run: xr.Dataset) -> np.ndarray:
    """True where the prompt is labelled unsafe, shape [prompt].

    Raises:
        RunError: If a label is neither safe nor unsafe, or a class has fewer than three prompts.
    """
    labels = np.asarray(run["label"].values, dtype=object).astype(str)
    if unknown := sorted(set(labels.tolist()) - set(LABELS)):
        raise RunError(f"A label is {' or '.join(LABELS)}; this run also has {', '.join(map(repr, unknown))}.")
    unsafe = labels == "unsafe"
    for name, count in (("unsafe", int(unsafe.sum())), ("safe", int((~unsafe).sum()))):
        if count < FEWEST_PROMPTS:
            raise RunError(
                f"Comparing safe with unsafe needs at least {FEWEST_PROMPTS} prompts of each; "
                f"these {len(labels)} hold {count} {name}. Sweep more {name} prompts."
            )
    return unsafe


def prompt_coord(run: xr.Dataset, name: str) -> np.ndarray:
    """A coordinate along prompt as strings; empty strings where the run does not have it."""
    if name not in run.coords:
        return np.full(run.sizes["prompt"], "", dtype=object)
    values = pd.Series(np.asarray(run[name].values)).astype(object)
    return values.where(values.notna(), "").astype(str).to_numpy(dtype=object)


def declared_splits(run: xr.Dataset) -> tuple[str, ...]:
    """The splits that the run's prompts declare, in the order selection, threshold, test.

    Raises:
        RunError: For a split of another name, or a pair or question whose prompts are in two splits.
    """
    splits = prompt_coord(run, "split")
    if unknown := sorted(set(splits) - {"", *SPLITS}):
        raise RunError(
            f"A split is empty or one of {', '.join(SPLITS)}; this run also has {', '.join(map(repr, unknown))}."
        )
    for name, what in (("pair_id", "pair"), ("content", "question")):
        tied = prompt_coord(run, name)
        declared = pd.DataFrame({"tied": tied, "split": splits})[(tied != "") & (splits != "")]
        shared = declared.groupby("tied")["split"].nunique()
        if (shared > 1).any():
            raise RunError(
                f"{int((shared > 1).sum())} {what}s have prompts in two splits, for example {what} "
                f"{shared.index[shared > 1][0]!r}: what was chosen on one would be tested on its twin. Put all prompts "
                f"of a {what} in one split."
            )
    return tuple(name for name in SPLITS if name in set(splits))


def selection_part(run: xr.Dataset) -> tuple[xr.Dataset, str]:
    """The prompts that heads are chosen on, and the name of their split.

    These are the prompts of the split `selection`; all of them where the prompts declare no split, or all the same one.

    Raises:
        RunError: If they declare two splits or more and none is `selection`.
    """
    declared = declared_splits(run)
    if "selection" in declared:
        return run.isel(prompt=np.flatnonzero(prompt_coord(run, "split") == "selection")), "selection"
    if len(declared) > 1:
        raise RunError(
            f"The prompts declare the splits {', '.join(declared)} and none is 'selection', so heads would be chosen "
            "on what they are tested on. Sweep selection prompts too, or pass the part of the run to choose on: "
            "run.isel(prompt=run.split == 'threshold')."
        )
    return run, declared[0] if declared else "all"
