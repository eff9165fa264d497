"""Runs on disk that cannot lose work: a Zarr group, written in whole chunks, with a manifest of checksums.

`xarray.open_zarr(path)` opens the run, finished or not (what is not computed yet is NaN); `open_run` (in
`workbench.runs.opening`) also checks it.
The subgroup `manifest` holds, for each block of prompts and unit of work, the SHA-256 of the values the unit wrote
(all zeros: not done) and the most rows its batches had. A unit counts as done only when its checksum is there, and the
checksum is written last; on a local disk every file appears whole or not at all. So a process may be killed at any
moment: the same call goes on with the first unit that is not done.

One writer at a time: on local disks a lock that the operating system releases with the process. Addresses with a
protocol (`s3://…`, `memory://…`) have no such lock, so nothing stops a second writer there; since a store takes only
units of its own recipe, two writers waste work but write equal values. Nothing is ever unpickled.
"""

import errno
import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from filelock import FileLock, Timeout
from zarr.abc.store import Store as Backend
from zarr.errors import GroupNotFoundError
from zarr.storage import FsspecStore, LocalStore

from workbench.errors import RunError
from workbench.runs.job import Partition
from workbench.runs.memory import filled, region, variables_of
from workbench.runs.schema import SCHEMA, UNITS, Variable

MANIFEST = "manifest"
DIGEST = 32
# What Zarr and its codecs raise on a chunk that is cut short, missing in part, or not what it says.
UNREADABLE = (ValueError, RuntimeError, OSError, EOFError, TypeError, KeyError)


def backend_of(path: str | Path) -> tuple[Backend, Path | None]:
    """The Zarr store behind a path or URL, and the local path if it is one."""
    text = str(path)
    if "://" in text and not text.startswith("file://"):
        return FsspecStore.from_url(text), None
    local = Path(text.removeprefix("file://")).expanduser()
    if local.is_file():
        raise RunError(f"{local} is a file; a run is stored as a folder. Choose another path.")
    return LocalStore(local), local


class Store:
    """A run on disk; same face as `Memory`. `open_store` opens one to write to."""

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self.backend, self.local = backend_of(path)
        self.lock: FileLock | None = None
        self.layout: dict[str, Variable] = {}
        self.partition = Partition(1, 1)
        self.group: Any = None

    @property
    def attrs(self) -> dict[str, Any]:
        return dict(self.group.attrs)

    def take_lock(self) -> None:
        """Become the only writer, on a local disk; RunError when there is another."""
        if self.local is None:
            return
        with self._writing():
            folder = self.local / MANIFEST
            folder.mkdir(parents=True, exist_ok=True)
            self.lock = FileLock(str(folder / "lock"), thread_local=False)
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            self.lock = None
            raise RunError(
                f"Another process is writing {self.path}. Wait for it to end, or store this run elsewhere. "
                "(A process that died holds no lock.)"
            ) from None

    def close(self) -> None:
        """Let go of the lock."""
        if self.lock is not None:
            self.lock.release()

    def exists(self) -> bool:
        """Whether a run has been begun here. RunError for anything else that must not be overwritten."""
        if self.local is not None and not self.local.exists():
            return False  # asking Zarr would make the folder
        try:
            self.group = zarr.open_group(self.backend, mode="r+")
        except (FileNotFoundError, GroupNotFoundError):
            other = (
                [p.name for p in self.local.iterdir() if p.name != MANIFEST]
                if self.local and self.local.is_dir()
                else []
            )
            if other:
                raise RunError(
                    f"{self.path} holds {other[0]!r} and no run. Choose a path of its own for the run."
                ) from None
            return False
        except UNREADABLE as error:
            raise RunError(
                f"{self.path}: its metadata (zarr.json) cannot be read ({type(error).__name__}: {error}). Nothing was "
                "overwritten; restore that file from a copy, or move the folder away and sweep again."
            ) from error
        if "schema" not in self.group.attrs or "weight_hash" not in self.group.attrs:
            raise RunError(f"{self.path} is a Zarr group, but not a run of the workbench. Choose another path.")
        schema = str(self.group.attrs["schema"])
        if schema != SCHEMA:
            newer = not schema.isdigit() or int(schema) > int(SCHEMA)
            raise RunError(
                f"{self.path} has schema {schema!r}; this version reads {SCHEMA!r}. "
                + (
                    "Use the newer version of the workbench that wrote it."
                    if newer
                    else "Sweep again into another path."
                )
                + " Nothing was overwritten."
            )
        return f"{MANIFEST}/sha256" in self.group

    def read_manifest(self) -> None:
        """Open a run that exists and read what it says about itself."""
        if not self.exists():
            raise RunError(f"There is no run at {self.path}. Make one: wb.sweep(model, prompts, out={self.path!r}).")
        self.layout = {}
        for name, array in self.group.arrays():
            if "by_layer" in array.attrs:
                dims, by_layer = array.metadata.dimension_names, bool(array.attrs["by_layer"])
                self.layout[name] = Variable(dims, array.shape, array.chunks, str(array.dtype), by_layer)
        self.partition = Partition.parse(self.attrs["partition"])
        self._open_manifest()

    def _open_manifest(self) -> None:
        self._arrays = {name: self.group[name] for name in self.layout}
        self._sha256, self._rows = self.group[f"{MANIFEST}/sha256"], self.group[f"{MANIFEST}/rows"]
        try:
            self._digests, self._used = self._sha256[:], self._rows[:]
        except UNREADABLE as error:
            raise RunError(
                f"{self.path}: its manifest cannot be read ({error}). Move the folder away and sweep again."
            ) from error

    def check_recipe(self, recipe: Mapping[str, Any]) -> None:
        """RunError unless the stored run is of this recipe."""
        attrs = self.attrs
        if wrong := [name for name, value in recipe.items() if attrs.get(name) != value]:
            said = "; ".join(f"{name} is {attrs.get(name)!r} there and {recipe[name]!r} here" for name in wrong[:3])
            raise RunError(
                f"{self.path} holds another run: {said}. Nothing was overwritten; store this run elsewhere, "
                "or make the same call again to go on with that one."
            )

    def create(
        self, skeleton: xr.Dataset, layout: Mapping[str, Variable], attrs: Mapping[str, Any], partition: Partition
    ) -> None:
        """Lay out an empty run. The manifest comes last: without it, there is nothing here yet that counts."""
        self.layout, self.partition = dict(layout), partition
        block = partition.block
        n_blocks = -(-next(iter(layout.values())).shape[0] // block)
        n_units = 1 + max([v.shape[2] for v in layout.values() if v.by_layer], default=0)
        with self._writing():
            group = zarr.create_group(self.backend, attributes=dict(attrs), overwrite=self.group is not None)
            # The lock lies in this folder, and a folder that is no group would not pass for part of the hierarchy.
            manifest = group.create_group(MANIFEST, attributes={"static": _static_digest(skeleton)})
            skeleton.assign_attrs(attrs).to_zarr(self.backend, mode="a", consolidated=False)
            for name, v in layout.items():
                about: dict[str, Any] = {"by_layer": v.by_layer, "units": UNITS[name][0], "long_name": UNITS[name][1]}
                group.create_array(
                    name,
                    shape=v.shape,
                    chunks=v.chunks,
                    dtype=v.dtype,
                    fill_value=np.nan,
                    dimension_names=v.dims,
                    attributes=about,
                )
            dims = ("block", "unit", "byte")
            shape = (n_blocks, n_units)
            manifest.create_array(
                "rows", shape=shape, chunks=(1, 1), dtype="int32", fill_value=0, dimension_names=dims[:2]
            )
            manifest.create_array(
                "sha256",
                shape=(*shape, DIGEST),
                chunks=(1, 1, DIGEST),
                dtype="uint8",
                fill_value=0,
                dimension_names=dims,
            )
            self._consolidate()
        self._open_manifest()

    def _consolidate(self) -> None:
        with warnings.catch_warnings():
            # Every reader we know takes metadata in one file; the warning is that version 3 does not promise it yet.
            warnings.simplefilter("ignore", category=UserWarning)
            self.group = zarr.consolidate_metadata(self.backend)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            what, mend = ("the disk is full", "make room") if full else (f"writing failed ({error})", "mend that")
            raise RunError(
                f"{self.path}: {what}. What was stored before is kept; {mend} and make the same call again to go on."
            ) from error

    def rows(self, start: int, unit: int) -> int:
        """Most rows a batch of this unit may have: as many as it had when it was computed before."""
        return int(self._used[start // self.partition.block, unit]) or self.partition.rows

    def done(self, start: int, unit: int) -> bool:
        return bool(self._digests[start // self.partition.block, unit].any())

    def write(self, start: int, stop: int, unit: int, arrays: Mapping[str, np.ndarray], rows: int) -> None:
        """Store what a unit computed: its chunks, then its rows, then its checksum."""
        digest, block = hashlib.sha256(), start // self.partition.block
        with self._writing():
            for name in variables_of(self.layout, unit):
                where = region(self.layout[name], start, stop, unit)
                part = filled(self.layout[name], arrays.get(name), _shape(where, self.layout[name].shape))
                self._arrays[name][where] = part
                digest.update(name.encode() + part.tobytes())
            self._rows[block, unit] = self._used[block, unit] = rows
            found = np.frombuffer(digest.digest(), dtype=np.uint8)
            self._sha256[block, unit] = found
        self._digests[block, unit] = found

    def read(self, name: str) -> np.ndarray:
        return self._arrays[name][:]

    def put(self, name: str, dims: tuple[str, ...], array: np.ndarray) -> None:
        """Add a variable that is known only at the end."""
        about: dict[str, Any] = {"units": UNITS[name][0], "long_name": UNITS[name][1]}
        with self._writing():
            made = zarr.open_group(self.backend, mode="r+", use_consolidated=False).create_array(
                name,
                shape=array.shape,
                dtype="float32",
                fill_value=np.nan,
                dimension_names=dims,
                attributes=about,
                overwrite=True,
            )
            made[:] = array
            self._consolidate()

    def note(self, **attrs: Any) -> None:
        with self._writing():
            self.group.attrs.update(attrs)

    def dataset(self) -> xr.Dataset:
        """The run as it is stored, not yet read."""
        with warnings.catch_warnings():
            # A process killed before it gathered the metadata in one file leaves a store that reads as well, but
            # part by part and with a warning for each.
            warnings.simplefilter("ignore", category=RuntimeWarning)
            warnings.simplefilter("ignore", category=UserWarning)
            run = xr.open_zarr(self.backend, chunks=None)
        run.encoding["source"] = self.path  # as xarray does for a plain path; captions name it
        return run

    def finish(self) -> xr.Dataset:
        """The run as it is stored, read back."""
        return self.dataset().load()

    def damaged(self) -> list[tuple[int, int]]:
        """(block, unit) of everything stored that does not match its checksum; (-1, -1) for the coordinates."""
        found = [] if self._static_holds() else [(-1, -1)]
        for block, unit in np.argwhere(self._digests.any(-1)).tolist():
            start = block * self.partition.block
            digest = hashlib.sha256()
            try:
                for name in variables_of(self.layout, unit):
                    where = region(self.layout[name], start, start + self.partition.block, unit)
                    digest.update(name.encode() + self._arrays[name][where].tobytes())
            except UNREADABLE:
                found.append((block, unit))
                continue
            if digest.digest() != self._digests[block, unit].tobytes():
                found.append((block, unit))
        return found

    def _static_holds(self) -> bool:
        try:
            run = self.dataset()
            late = {name for name in run.data_vars if name in UNITS and name != "write_root"}
            return _static_digest(run.drop_vars(late).load()) == self.group[MANIFEST].attrs["static"]
        except UNREADABLE:
            return False

    def forget(self, damaged: list[tuple[int, int]], skeleton: xr.Dataset) -> None:
        """Mark damaged units as not done, and write damaged coordinates again."""
        with self._writing():
            for block, unit in damaged:
                if block >= 0:
                    self._digests[block, unit] = 0
                    self._sha256[block, unit] = 0
                    continue
                bare = zarr.open_group(self.backend, mode="r+", use_consolidated=False)
                for name, variable in skeleton.variables.items():
                    stored: Any = bare[str(name)]
                    stored[:] = variable.values
            self.note(complete=False)


def _shape(where: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    given = tuple(len(range(*part.indices(size))) for part, size in zip(where, shape, strict=False))
    return given + shape[len(given) :]


def _static_digest(skeleton: xr.Dataset) -> str:
    """SHA-256 of coordinates and other values that are known from the start."""
    digest = hashlib.sha256()
    for name in sorted(map(str, skeleton.variables)):
        values = np.asarray(skeleton[name].values)
        plain = (
            values.astype("float64").tobytes() if values.dtype.kind in "fiub" else json.dumps(values.tolist()).encode()
        )
        digest.update(name.encode() + plain)
    return digest.hexdigest()
