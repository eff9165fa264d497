"""Traces on disk: a sealed Zarr group, which `open_trace` reads; written whole, or not at all."""

import hashlib
import shutil
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import xarray as xr

from workbench.checking import Converted
from workbench.errors import RunError
from workbench.plain import plain
from workbench.runs.places import backend_of, holds, local_path, read_json
from workbench.runs.sealed import ROOT, checked_arrays, read_root, write_root
from workbench.tracing.records import SCHEMA, described

CONTENT = "content_hash"


def open_trace(path: str | Path) -> xr.Dataset:
    """Open a stored trace, and check all of it against its checksums.

    Args:
        path: A local path or an fsspec URL.

    Returns:
        The trace, in memory.

    Raises:
        RunError: There is no trace, it is a run or of another schema, or something in it is damaged.

    Examples:
        >>> import workbench as wb
        >>> pair = wb.load_prompts("planted", split="test", n=2)
        >>> trace = wb.trace("planted", pair, components=["residual"], out="trace.zarr", progress=False)
        >>> wb.open_trace("trace.zarr").equals(trace)
        True
    """
    backend, local = backend_of(path, read_only=True)
    where = plain(str(path))
    if (local is not None and not local.exists()) or (document := read_root(backend, where)) is None:
        raise RunError(f"There is no trace at {where}. Make one: workbench trace --model M --prompts P --out {where}")
    attrs = document.get("attributes", {})
    if attrs.get("schema") != SCHEMA:
        hint = "wb.open_run opens runs" if str(attrs.get("schema", "")).isdigit() else "trace again with this version"
        raise RunError(f"{where} is no trace that this version reads ({SCHEMA}); {hint}.")
    checked_arrays(backend, document, where)
    try:
        trace = xr.open_zarr(backend, consolidated=False, zarr_format=3).load()
    except Exception as error:  # whatever reading damaged chunks raises
        raise RunError(f"{where} is damaged ({type(error).__name__}): a part of it cannot be read. {_AGAIN}") from error
    trace.attrs = {name: value for name, value in attrs.items() if name not in ("seal", "arrays", CONTENT)}
    trace = described(trace)
    for name, values in trace.variables.items():
        if values.dtype.kind in "OUT":
            trace[name] = (values.dims, values.values.astype(object), values.attrs)
    if content_hash(trace) != attrs.get(CONTENT):
        raise RunError(f"{where} is damaged: its numbers are not those that were written. {_AGAIN}")
    return trace


_AGAIN = "Nothing was overwritten; restore it from a copy, or trace again into another path."


def save_trace(trace: xr.Dataset, path: str | Path) -> None:
    """Write a trace, in place of one that is there.

    Raises:
        RunError: The place cannot be written, or holds something else.
    """
    target = local_path(path)
    if target is None:
        raise RunError(f"A trace is written to a local folder; {plain(str(path))} is an address. Copy it there after.")
    if target.exists():
        check_is_trace(target)
    beside = target.with_name(f".{target.name}.new")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.parent.mkdir(parents=True, exist_ok=True)
        trace.drop_attrs().to_zarr(beside, zarr_format=3, consolidated=False)
        backend, _ = backend_of(beside, read_only=False)
        names = sorted(map(str, trace.variables))
        attrs = {**trace.attrs, "arrays": names, CONTENT: content_hash(trace)}
        write_root(backend, attrs, {name: read_json(backend, f"{name}/{ROOT}") for name in names})
        if target.exists():
            shutil.rmtree(target)
        beside.rename(target)
    except OSError as error:
        raise RunError(f"The trace could not be written to {target}: {error.strerror or error}.") from error


def check_is_trace(target: Path) -> None:
    """Refuse to write over what is no trace."""
    backend, _ = backend_of(target, read_only=True)
    empty = target.is_dir() and not any(target.iterdir())
    if empty:
        return
    found = read_json(backend, ROOT) if holds(backend, ROOT) else None
    if not isinstance(found, dict) or not str(found.get("attributes", {}).get("schema", "")).startswith("trace-"):
        raise RunError(f"{target} is there and is no trace; nothing was overwritten. Choose another path.")


def content_hash(trace: xr.Dataset) -> str:
    """SHA-256 over every variable's name, dimensions and values; 16 hex digits."""
    digest = hashlib.sha256()
    for name in sorted(map(str, trace.variables)):
        values = trace.variables[name]
        digest.update(f"{name} {values.dims} {values.shape}\0".encode())
        array = values.values
        if array.dtype.kind in "OUT":
            digest.update("\0".join(map(str, array.ravel())).encode())
        else:
            digest.update(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"))).tobytes())
    return digest.hexdigest()[:16]


def as_trace(value: Any) -> xr.Dataset:
    """A trace, or the one stored at a path.

    Raises:
        RunError: Anything else.
    """
    trace = open_trace(value) if isinstance(value, str | Path) else value
    if not isinstance(trace, xr.Dataset) or trace.attrs.get("schema") != SCHEMA:
        raise RunError(
            f"A trace is what wb.trace returns, or the path of a stored one; got {type(value).__name__}. "
            "Make one: wb.trace(model, prompts)."
        )
    return trace


SomeTrace = Annotated[xr.Dataset | str | Path, Converted(as_trace)]
