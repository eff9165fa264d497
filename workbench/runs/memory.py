"""Where a sweep puts what it computes: the protocol `Sink`, and `Memory` for runs that are not stored.

A block is a range of consecutive prompts. It is computed in units of work: unit 0 is what its unmasked passes give;
unit l + 1 is masked layer l.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import xarray as xr

from workbench.runs.job import Partition
from workbench.runs.schema import Variable, describe

BASE = 0


def unit_of(layer: int) -> int:
    """The unit of work that masks a layer."""
    return layer + 1


def region(variable: Variable, start: int, stop: int, unit: int) -> tuple[slice, ...]:
    """The part of a variable that one unit of the block `start:stop` writes: always whole chunks."""
    first = (slice(start, stop),)
    return (*first, slice(None), slice(unit - 1, unit)) if variable.by_layer else first


def variables_of(layout: Mapping[str, Variable], unit: int) -> list[str]:
    """Names of the variables that a unit writes, in a fixed order."""
    return sorted(name for name, variable in layout.items() if variable.by_layer == (unit != BASE))


def filled(variable: Variable, array: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    """A unit's part of a variable in the stored dtype, every NaN the same NaN; all NaN where nothing was computed."""
    if array is None:
        return np.full(shape, np.nan, dtype=variable.dtype)
    part = array.reshape(shape).astype(variable.dtype)
    part[np.isnan(part)] = np.nan
    return part


class Sink(Protocol):
    """A run in the making: `Memory`, or a `Store` on disk."""

    partition: Partition
    layout: dict[str, Variable]

    @property
    def attrs(self) -> dict[str, Any]:
        """Attributes of the run, as far as they are known."""

    def rows(self, start: int, unit: int) -> int:
        """Most rows a batch of this unit may have."""

    def done(self, start: int, unit: int) -> bool:
        """Whether a unit of the block that begins at `start` is kept."""

    def begun(self, start: int) -> bool:
        """Whether any unit of the block that begins at `start` is kept."""

    def expect(self, inputs: np.ndarray) -> list[int]:
        """Which prompts are encoded otherwise than when their blocks were computed.

        Args:
            inputs: A hash of each prompt as it is encoded now, `[prompt, byte]`; zeros for those that were not, or not
                yet. It is filled while the sweep goes on, and stored block by block.
        """

    def blank(self, start: int, stop: int, row: int) -> None:
        """Make a prompt of the block `start:stop` NaN in every unit that is kept."""

    def reset(self, start: int) -> None:
        """Make the units of a block ones that are not done."""

    def write(self, start: int, stop: int, unit: int, arrays: Mapping[str, np.ndarray], rows: int) -> None:
        """Keep what a unit of the block `start:stop` computed, in batches of at most `rows`."""

    def read(self, name: str) -> np.ndarray:
        """A variable as far as it is known, NaN elsewhere."""

    def put(self, name: str, dims: tuple[str, ...], array: np.ndarray) -> None:
        """Add a variable that is known only at the end."""

    def note(self, **attrs: Any) -> None:
        """Set attributes of the run."""

    def finish(self) -> xr.Dataset:
        """The labelled run."""

    def close(self) -> None:
        """Let go of what is held."""


class Memory:
    """A run in the making, in memory; a `Sink`."""

    def __init__(
        self, skeleton: xr.Dataset, layout: Mapping[str, Variable], attrs: Mapping[str, Any], partition: Partition
    ) -> None:
        self.skeleton, self.layout, self.partition, self._attrs = skeleton, dict(layout), partition, dict(attrs)
        self.arrays = {name: np.full(v.shape, np.nan, dtype=v.dtype) for name, v in layout.items()}
        self._done: set[tuple[int, int]] = set()
        self._late: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}

    @property
    def attrs(self) -> dict[str, Any]:
        return self._attrs

    def rows(self, start: int, unit: int) -> int:
        return self.partition.rows

    def begun(self, start: int) -> bool:
        return False  # nobody goes on with it

    def expect(self, inputs: np.ndarray) -> list[int]:
        return []

    def blank(self, start: int, stop: int, row: int) -> None:
        for array in self.arrays.values():
            array[row] = np.nan

    def reset(self, start: int) -> None:
        self._done = {(block, unit) for block, unit in self._done if block != start}

    def done(self, start: int, unit: int) -> bool:
        return (start, unit) in self._done

    def write(self, start: int, stop: int, unit: int, arrays: Mapping[str, np.ndarray], rows: int) -> None:
        for name in variables_of(self.layout, unit):
            if name in arrays:
                where = region(self.layout[name], start, stop, unit)
                self.arrays[name][where] = filled(self.layout[name], arrays[name], self.arrays[name][where].shape)
        self._done.add((start, unit))

    def read(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def put(self, name: str, dims: tuple[str, ...], array: np.ndarray) -> None:
        self._late[name] = (dims, array)

    def note(self, **attrs: Any) -> None:
        self._attrs.update(attrs)

    def finish(self) -> xr.Dataset:
        found = {name: (v.dims, self.arrays[name]) for name, v in self.layout.items()}
        return describe(self.skeleton.assign(found | self._late)).assign_attrs(self.attrs)

    def close(self) -> None:
        pass
