"""Runs on disk that cannot lose work: a Zarr 3 group of few files, in which every byte is under a checksum.

`wb.open_run` reads a run, finished or not, and verifies all of it. Any other reader of Zarr verifies what it reads:
every chunk, and every index of a shard (a file of many chunks), carries its own CRC-32C.

A unit of work (see `workbench.runs.memory`) is stored whole, in one file, as soon as it is computed: a slot of
`manifest/staged`, with the SHA-256 of its values. When the slots are full, and at the end, the units in them are put
into the shards of the variables, and `manifest/sha256` (all zeros: not done), `rows` (most rows of its batches) and
`inputs` (a hash of each prompt as it was encoded) are written. So a process may be killed at any moment and loses the
one unit it was computing; the same call goes on with the first that is not done. The root's `zarr.json` is written
last of all when a run is laid out: without its seal (`workbench.runs.sealed`) there is nothing here yet that counts.

On a local disk every file appears whole or not at all. Nothing is synchronised with the disk (no fsync): after a loss
of power, files written in the last seconds may be empty or missing. `open_run` then names them as damaged, and
`repair=True` computes them again; damage to a `zarr.json` is named too and needs a new sweep.

One writer at a time: on local disks a lock that the operating system releases with the process. Addresses with a
protocol (`s3://…`, `memory://…`) have no such lock, so nothing stops a second writer there; since a store takes only
units of its own recipe, two writers waste work but write equal values. Nothing is ever unpickled.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from workbench.errors import RunError
from workbench.runs.folder import MANIFEST, Folder
from workbench.runs.job import Partition
from workbench.runs.memory import BASE, filled, region, variables_of
from workbench.runs.places import delete, read_json
from workbench.runs.schema import KNOWN_FIRST, SCHEMA, Shard, Variable, about
from workbench.runs.sealed import ROOT, SEAL, attributes_of, checked_arrays, read_root, write_root
from workbench.runs.staging import CHECKED, UNREADABLE, Parts, Slots, Unit, create, digest_of, digest_of_dataset

DIGEST = 32


class Store(Folder):
    """A run on disk; a `Sink`. `open_store` opens one to write to."""

    def __init__(self, path: str | Path, *, read_only: bool = False) -> None:
        super().__init__(path, read_only=read_only)
        self.layout: dict[str, Variable] = {}
        self.partition = Partition(1, 1)
        self._attrs: dict[str, Any] = {}
        self.metadata: dict[str, Any] = {}
        self._gathered = True  # whether the root has a copy of all metadata
        self.staged: dict[tuple[int, int], Parts] = {}
        self.group: Any = None

    @property
    def attrs(self) -> dict[str, Any]:
        return dict(self._attrs)

    def close(self) -> None:
        """Let go of the lock; what is staged is put in its place, or stays where the next writer finds it."""
        if self.layout and not self.read_only:
            with suppress(RunError, *UNREADABLE):
                self.flush()
        self.release()

    def exists(self) -> bool:
        """Whether a run is here, and read what it says of itself; a RunError for anything else."""
        if self.local is not None:
            if not self.local.exists():
                return False  # asking Zarr would make the folder
            others = [p.name for p in self.local.iterdir() if p.name != MANIFEST and p.suffix != ".partial"]
            if others and not any(name.startswith((".z", ROOT)) for name in others):
                raise RunError(f"{self.path} holds {others[0]!r} and no run. Choose a path of its own for the run.")
        document = read_root(self.backend, self.path)
        if document is None:
            return False
        attrs = attributes_of(document, self.path)
        if SEAL not in attrs:
            return False  # begun, and killed before it was laid out
        self._gathered = "consolidated_metadata" in document
        self.metadata = checked_arrays(self.backend, document, self.path)
        self._attrs = attrs
        return True

    def read_manifest(self) -> None:
        """Open a run that exists and read what it says about itself."""
        if not self.exists():
            raise RunError(f"There is no run at {self.path}. Make one: wb.sweep(model, prompts, out={self.path!r}).")
        self.partition = Partition.parse(self._attrs["partition"])
        self.layout = {}
        for name, cut in self._attrs["computed"].items():
            known = self.metadata[name]
            dims, shape, chunks = map(tuple, (known["dimension_names"], known["shape"], cut["chunks"]))
            self.layout[name] = Variable(dims, shape, chunks, known["data_type"], cut["by_layer"])
        self._open_arrays()
        try:
            self.digests, self.used, self.inputs = (a[:] for a in self._manifest)
            self._read_staged()
        except UNREADABLE as error:
            raise RunError(
                f"{self.path}: its manifest cannot be read ({error}). Move the folder away and sweep again."
            ) from error

    def _open_arrays(self) -> None:
        group = zarr.open_group(
            self.backend, mode="r" if self.read_only else "r+", zarr_format=3, use_consolidated=False
        )
        self.arrays: dict[str, Any] = {name: group[name] for name in self.layout}
        self._manifest: list[Any] = [group[f"{MANIFEST}/{name}"] for name in ("sha256", "rows", "inputs")]
        self.group, self._slots = group, Slots(group)

    def create(
        self, skeleton: xr.Dataset, layout: Mapping[str, Variable], attrs: Mapping[str, Any], partition: Partition
    ) -> None:
        """Lay out an empty run."""
        self.layout, self.partition = dict(layout), partition
        n_prompts = next(iter(layout.values())).shape[0]
        n_layers = max([v.shape[2] for v in layout.values() if v.by_layer], default=0)
        shape = (-(-n_prompts // partition.block), 1 + n_layers)
        with self.writing(begun=False):
            self.clear()
            first = {"schema": SCHEMA}
            group = zarr.create_group(self.backend, attributes=first, zarr_format=3, overwrite=self.local is None)
            group.create_group(MANIFEST)  # its folder has the lock, and is no part of a hierarchy otherwise
            skeleton.assign_attrs(first).to_zarr(
                self.backend,
                mode="a",
                consolidated=False,
                zarr_format=3,
                encoding=dict.fromkeys(skeleton.variables, CHECKED),
            )
            for name, v in layout.items():
                files: dict[str, Any] = {"chunks": v.chunks, "shards": v.shards, "attributes": about(name)}
                create(group, name, v.shape, v.dtype, np.nan, v.dims, **files)
            for name, more, dtype, dims in (
                ("sha256", (*shape, DIGEST), "uint8", ("block", "unit", "byte")),
                ("rows", shape, "int32", ("block", "unit")),
                ("inputs", (n_prompts, DIGEST), "uint8", ("prompt", "byte")),
            ):
                create(group, f"{MANIFEST}/{name}", more, dtype, 0, dims, chunks=more)
            computed = {name: {"chunks": list(v.chunks), "by_layer": v.by_layer} for name, v in layout.items()}
            paths = [*map(str, skeleton.variables), *layout, MANIFEST]
            paths += [f"{MANIFEST}/{name}" for name in ("sha256", "rows", "inputs")]
            written = read_json(self.backend, ROOT)["attributes"]  # xarray says there what is a coordinate
            sums = {"static": digest_of_dataset(skeleton), "late": {}, "ledger": ""}
            self._attrs = {**written, **attrs, "computed": computed, **sums}
            self._seal(paths)
        self._open_arrays()
        self.digests, self.used = np.zeros((*shape, DIGEST), np.uint8), np.zeros(shape, np.int32)
        self.inputs = np.zeros((n_prompts, DIGEST), np.uint8)

    def _seal(self, paths: Sequence[str] = ()) -> None:
        """Write the root, with the metadata of arrays that are new."""
        self.metadata |= {path: read_json(self.backend, f"{path}/{ROOT}") for path in paths}
        self._attrs = json.loads(json.dumps({**self._attrs, "arrays": sorted(self.metadata)}))
        write_root(self.backend, self._attrs, self.metadata)

    def rows(self, start: int, unit: int) -> int:
        """Most rows a batch of this unit may have: as many as it had when it was computed before."""
        return int(self.used[start // self.partition.block, unit]) or self.partition.rows

    def done(self, start: int, unit: int) -> bool:
        return bool(self.digests[start // self.partition.block, unit].any())

    def begun(self, start: int) -> bool:
        return bool(self.digests[start // self.partition.block].any())

    def expect(self, inputs: np.ndarray) -> list[int]:
        """Hold what prompts are encoded as now against what they were when their blocks were computed."""
        begun = np.repeat(self.digests.any((1, 2)), self.partition.block)[: len(inputs)]
        both = begun & self.inputs.any(1) & inputs.any(1)
        self._now = inputs
        return np.flatnonzero(both & (self.inputs != inputs).any(1)).tolist()

    def write(self, start: int, stop: int, unit: int, arrays: Mapping[str, np.ndarray], rows: int) -> None:
        """Store what a unit computed, in one file."""
        self.inputs[start:stop] = self._now[start:stop]
        self._stage(start, stop, unit, arrays, rows)

    def _stage(self, start: int, stop: int, unit: int, arrays: Mapping[str, np.ndarray], rows: int) -> None:
        block = start // self.partition.block
        parts = {
            name: filled(self.layout[name], arrays.get(name), self._shape(name, block, unit))
            for name in variables_of(self.layout, unit)
        }
        stored = Unit(block, unit, rows, self.inputs[start:stop].tobytes(), parts)
        with self.writing():
            self._slots.write(len(self.staged), stored, max(self._bytes(BASE), self._bytes(1)))
        self._take(stored)
        if self._slots.full(len(self.staged)):
            self.flush()

    def _take(self, stored: Unit) -> None:
        at = stored.block, stored.unit
        self.staged[at] = stored.parts
        self.used[at], self.digests[at] = stored.rows, np.frombuffer(stored.digest, np.uint8)

    def _read_staged(self) -> None:
        """Take up the units that were computed and not yet put in their place."""

        def kinds(block: int, unit: int) -> dict[str, tuple[tuple[int, ...], str]]:
            names = variables_of(self.layout, unit)
            return {name: (self._shape(name, block, unit), self.layout[name].dtype) for name in names}

        for stored in self._slots.read(kinds):
            at, prompts = (stored.block, stored.unit), slice(*self.bounds(stored.block))
            hashes = np.frombuffer(stored.inputs, np.uint8).reshape(-1, DIGEST)
            # All three parts of the manifest: a process may die between writing one of them and the next.
            known = self.digests[at].tobytes() == stored.digest and self.used[at] == stored.rows
            if not (known and np.array_equal(self.inputs[prompts], hashes)):
                self.inputs[prompts] = hashes
                self._take(stored)

    def flush(self) -> None:
        """Put the staged units into the shards of the variables, and write the manifest."""
        if not self.staged:
            return
        with self.writing():
            for name, variable in self.layout.items():
                shards: dict[Shard, list[tuple[int, int]]] = {}
                for (block, unit), parts in self.staged.items():
                    if name in parts:
                        shard = variable.shard_at(region(variable, *self.bounds(block), unit))
                        shards.setdefault(shard, []).append((block, unit))
                for shard, units in shards.items():
                    self.rewrite(name, shard, {at: self.staged[at][name] for at in units})
            self.write_manifest()
        self.staged = {}

    def rewrite(self, name: str, shard: Shard, new: Mapping[tuple[int, int], np.ndarray]) -> None:
        """Write a shard whole: some units' parts of it are new, the others stay as far as they can be read."""
        variable, array = self.layout[name], self.arrays[name]
        whole = tuple(slice(*bounds) for bounds in shard)
        try:
            values = array[whole]
        except UNREADABLE:
            values = np.full(_extent(whole, variable.shape), np.nan, variable.dtype)
            for block, unit in np.argwhere(self.digests.any(-1)).tolist():
                where = region(variable, *self.bounds(block), unit)
                if name in variables_of(self.layout, unit) and variable.shard_at(where) == shard:
                    with suppress(*UNREADABLE):
                        values[_inside(where, shard)] = array[where]
            # Or Zarr would read it again, to write the rest of it.
            places = [0] * len(variable.shape)
            places[: len(shard)] = [start // size for (start, _), size in zip(shard, variable.shards, strict=False)]
            delete(self.backend, "/".join((name, "c", *map(str, places))))
        for (block, unit), part in new.items():
            values[_inside(region(variable, *self.bounds(block), unit), shard)] = part
        array[whole] = values

    def write_manifest(self) -> None:
        for array, values in zip(self._manifest, (self.digests, self.used, self.inputs), strict=True):
            array[:] = values

    def read(self, name: str) -> np.ndarray:
        self.flush()
        return self.arrays[name][:]

    def put(self, name: str, dims: tuple[str, ...], array: np.ndarray) -> None:
        """Add a variable that is known only at the end."""
        more = {"chunks": array.shape, "attributes": about(name), "overwrite": True}
        with self.writing():
            made = create(self.group, name, array.shape, "float32", np.nan, dims, **more)
            made[:] = array
            self._attrs["late"] = {**self._attrs["late"], name: digest_of({name: made[:]}).hex()}
            self._seal([name])

    def note(self, **attrs: Any) -> None:
        """Set attributes of the run; `complete` also says that the manifest is."""
        if attrs.get("complete"):
            self.flush()
            attrs["ledger"] = self.ledger()
        self._attrs |= attrs
        with self.writing():
            self._seal()

    def ledger(self) -> str:
        return hashlib.sha256(b"".join(a.tobytes() for a in (self.digests, self.used, self.inputs))).hexdigest()

    def blank(self, start: int, stop: int, row: int) -> None:
        """Make a prompt of the block `start:stop` one that was not computed: NaN in every unit of it."""
        block = start // self.partition.block
        self.flush()
        for unit in np.flatnonzero(self.digests[block].any(-1)).tolist():
            arrays = {}
            for name in variables_of(self.layout, unit):
                arrays[name] = self.arrays[name][region(self.layout[name], start, stop, unit)]
                arrays[name][row - start] = np.nan
            self.inputs[row] = 0
            self._stage(start, stop, unit, arrays, int(self.used[block, unit]))

    def reset(self, start: int) -> None:
        """Make the units of a block ones that are not done."""
        self.flush()
        self.digests[start // self.partition.block] = 0
        with self.writing():
            self._slots.drop()  # or the next writer would take its units up again
            self.write_manifest()

    def dataset(self) -> xr.Dataset:
        """The run as it is stored, not yet read; what is staged is read and put in its place."""
        run = xr.open_zarr(self.backend, chunks=None, zarr_format=3, consolidated=self._gathered)
        known = {*map(str, run.coords), *self.layout, *self._attrs["late"], *KNOWN_FIRST}
        run = run.drop_vars([name for name in run.variables if name not in known])
        run.encoding["source"] = self.path  # as xarray does for a plain path; captions name it
        for name in {name for parts in self.staged.values() for name in parts}:
            values = run[name].values.copy()
            for (block, unit), parts in self.staged.items():
                if name in parts:
                    values[region(self.layout[name], *self.bounds(block), unit)] = parts[name]
            run[name] = run[name].copy(data=values)
        return run

    def finish(self) -> xr.Dataset:
        """The run as it is stored, read when its values are asked for."""
        if not self.read_only:
            self.flush()
            with self.writing():
                self._slots.drop()
        return self.dataset()

    def bounds(self, block: int) -> tuple[int, int]:
        start = block * self.partition.block
        return start, min(start + self.partition.block, len(self.inputs))

    def _shape(self, name: str, block: int, unit: int) -> tuple[int, ...]:
        return _extent(region(self.layout[name], *self.bounds(block), unit), self.layout[name].shape)

    def _bytes(self, unit: int) -> int:
        sizes = {name: np.dtype(self.layout[name].dtype).itemsize for name in variables_of(self.layout, unit)}
        return sum(int(np.prod(self._shape(name, 0, unit))) * size for name, size in sizes.items())


def _extent(where: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    given = tuple(len(range(*part.indices(size))) for part, size in zip(where, shape, strict=False))
    return given + shape[len(given) :]


def _inside(where: tuple[slice, ...], shard: Shard) -> tuple[slice, ...]:
    """A region of an array as a region of the shard that it lies in."""
    pairs = zip(where, shard, strict=True)
    return tuple(p if p.start is None else slice(p.start - start, p.stop - start) for p, (start, _) in pairs)
