"""Units of work that are stored and not yet in the files of their variables: one file each, a slot."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from zarr.codecs import Crc32cCodec, ZstdCodec

STAGED = "manifest/staged"
MOST_SLOTS, MOST_BYTES = 64, 64 * 2**20
HEADER = 2**14
CHECKED = {"compressors": (ZstdCodec(), Crc32cCodec())}
# What Zarr and its codecs raise on a chunk that is cut short, missing in part, or not what it says.
UNREADABLE = (ValueError, RuntimeError, OSError, EOFError, TypeError, KeyError)
Parts = dict[str, np.ndarray]


@dataclass(frozen=True)
class Unit:
    """One unit of work as it is stored.

    Attributes:
        block: Which block of prompts.
        unit: Which unit of it.
        rows: Most rows of its batches.
        inputs: Hashes of the prompts of the block as they were encoded, as bytes.
        parts: Its part of each variable.
    """

    block: int
    unit: int
    rows: int
    inputs: bytes
    parts: Parts

    @property
    def digest(self) -> bytes:
        """SHA-256 of its values."""
        return digest_of(self.parts)


class Slots:
    """The slots of a store, an array of bytes; made when the first unit is staged."""

    def __init__(self, group: Any) -> None:
        self.group = group
        self.array: Any = group.get(STAGED, None)

    def full(self, n_staged: int) -> bool:
        """Whether so many units are all there is room for."""
        return self.array is not None and n_staged >= self.array.shape[0]

    def write(self, number: int, unit: Unit, most_bytes: int) -> None:
        """Write a unit: a header in JSON, then the values of its variables one after the other."""
        if self.array is None:
            size = HEADER + most_bytes
            n_slots = int(np.clip(MOST_BYTES // size, 1, MOST_SLOTS))
            self.array = create(self.group, STAGED, (n_slots, size), "uint8", 0, ("slot", "byte"), chunks=(1, size))
        about = {name: getattr(unit, name) for name in ("block", "unit", "rows")}
        header = json.dumps({**about, "sha256": unit.digest.hex(), "inputs": unit.inputs.hex()}).encode()
        content = header.ljust(HEADER) + b"".join(unit.parts[name].tobytes() for name in sorted(unit.parts))
        slot = np.zeros(self.array.shape[1], np.uint8)
        slot[: len(content)] = np.frombuffer(content, np.uint8)
        self.array[number] = slot

    def read(self, kinds: Any) -> Iterator[Unit]:
        """Every unit in the slots. One that is damaged is left out, and so computed again.

        Args:
            kinds: From block and unit to the shape and dtype of its part of each variable.
        """
        for number in range(0 if self.array is None else self.array.shape[0]):
            try:
                slot = self.array[number].tobytes()
                header = json.loads(slot[:HEADER])
                block, unit = int(header["block"]), int(header["unit"])
                parts, at = {}, HEADER
                for name, (shape, dtype) in sorted(kinds(block, unit).items()):
                    values = np.frombuffer(slot, dtype, int(np.prod(shape)), at).reshape(shape)
                    parts[name], at = values, at + values.nbytes
                found = Unit(block, unit, int(header["rows"]), bytes.fromhex(header["inputs"]), parts)
                if found.digest.hex() == header["sha256"]:
                    yield found
            except (*UNREADABLE, IndexError, RecursionError):
                continue  # an empty slot, or one that was damaged

    def drop(self) -> None:
        """Take the slots away."""
        if STAGED in self.group:
            del self.group[STAGED]
        self.array = None


def create(group: Any, name: str, shape: Any, dtype: str, fill: Any, dims: Any, **more: Any) -> Any:
    """An array whose chunks are compressed and carry a checksum."""
    return group.create_array(name, shape=shape, dtype=dtype, fill_value=fill, dimension_names=dims, **CHECKED, **more)


def digest_of(parts: Mapping[str, np.ndarray]) -> bytes:
    """SHA-256 over names and values."""
    digest = hashlib.sha256()
    for name in sorted(parts):
        digest.update(name.encode() + parts[name].tobytes())
    return digest.digest()


def digest_of_dataset(skeleton: xr.Dataset) -> str:
    """SHA-256 of coordinates and other values that are known from the start."""
    digest = hashlib.sha256()
    for name in sorted(map(str, skeleton.variables)):
        values = np.asarray(skeleton[name].values)
        plain = (
            values.astype("float64").tobytes() if values.dtype.kind in "fiub" else json.dumps(values.tolist()).encode()
        )
        digest.update(name.encode() + plain)
    return digest.hexdigest()
