"""How a sweep is carried out: tasks, each some units of work on one block of prompts, and the loop that runs them here.

What a task computes depends on the task alone, so it does not matter which process runs it, in what order, or after
what interruption.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from workbench.errors import RunError
from workbench.models.encode import Encoded
from workbench.models.hooked import HookedLVLM
from workbench.prompts.prompt import PromptSet
from workbench.runs.job import Cells, Job
from workbench.runs.memory import Sink

# Encoded prompts are kept for the whole sweep while they are at most this large.
ENCODED_BUDGET = 256 * 2**20


Arrays = dict[str, np.ndarray]
# What computes the units of one block of prompts: from the model, the encoded prompts, the job, the most rows in a
# batch and the units that are wanted, to (unit, its arrays, `prompt` first), one after the other. A function of a
# module, so that it can be named to another process.
Step = Callable[[HookedLVLM, Sequence[Encoded], Job, int, Sequence[int]], Iterator[tuple[int, Arrays]]]


@dataclass(frozen=True)
class Task:
    """Some units of work on the prompts `start:stop`.

    Attributes:
        step: What computes them.
        units: 0 for what the base pass says, l + 1 for masked layer l; in order.
        cells: What is masked, as in `Job`.
        rows: Most rows in one batch.
    """

    step: Step
    start: int
    stop: int
    units: tuple[int, ...]
    cells: Cells | None
    rows: int


class Encoder:
    """Prompts as the model reads them, encoded once each while that takes little memory."""

    def __init__(self, model: HookedLVLM, prompts: PromptSet) -> None:
        self.model, self.prompts = model, prompts
        self._kept: dict[int, Encoded] = {}
        self._bytes = 0

    def __call__(self, index: int) -> Encoded:
        if index in self._kept:
            return self._kept[index]
        encoded = self.model.encode(self.prompts[index])
        size = sum(v.nbytes for v in encoded.model_inputs.values() if isinstance(v, torch.Tensor))
        if self._bytes + size <= ENCODED_BUDGET:
            self._kept[index] = encoded
            self._bytes += size
        return encoded

    def all(self) -> Iterator[Encoded]:
        return (self(index) for index in range(len(self.prompts)))


@dataclass(frozen=True)
class Sweep:
    """One sweep, as an engine sees it. `bounds` are its blocks of prompts."""

    model: HookedLVLM
    prompts: PromptSet
    encode: Encoder
    job: Job
    sink: Sink
    options: Mapping[str, Any]
    seed: int
    bounds: tuple[tuple[int, int], ...]

    @property
    def unsafe(self) -> np.ndarray:
        """Which prompts are labelled unsafe, `[prompt]`."""
        return np.array([prompt.label == "unsafe" for prompt in self.prompts])

    @property
    def selection(self) -> np.ndarray:
        """The prompts that heads are chosen on, `[prompt]`."""
        return selection_of(self.prompts)


def selection_of(prompts: PromptSet) -> np.ndarray:
    """True for prompts of the split `selection`, as when runs are scored; for all where none declares it."""
    chosen = np.array([prompt.split == "selection" for prompt in prompts])
    return chosen if chosen.any() else np.ones_like(chosen)


def compute(model: HookedLVLM, encode: Encoder, job: Job, task: Task) -> Iterator[tuple[int, Arrays]]:
    """The arrays of each unit of a task, one after the other."""
    encoded = [encode(index) for index in range(task.start, task.stop)]
    yield from task.step(model, encoded, replace(job, cells=task.cells), task.rows, task.units)


def run_here(
    model: HookedLVLM,
    encode: Encoder,
    job: Job,
    tasks: Iterable[Task],
    sink: Sink,
    tick: Callable[[int], Any],
    pause: Callable[[], Any],
) -> None:
    """Run tasks in this process; when the device runs out of memory, halve the rows, record that, and go on.

    `tick` is called with the number of prompts after each unit, `pause` after each task.
    """
    for planned in tasks:
        task = replace(planned, rows=sink.rows(planned.start, planned.units[0]))  # fewer, if an earlier one did not fit
        while task.units:
            try:
                for unit, arrays in compute(model, encode, job, task):
                    sink.write(task.start, task.stop, unit, arrays, task.rows)
                    task = replace(task, units=tuple(u for u in task.units if u != unit))
                    tick(task.stop - task.start)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                task = replace(task, rows=halved(sink, task))
                if model.device.type == "cuda":
                    torch.cuda.empty_cache()
        pause()


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the machine, has no memory left."""
    said = str(error)
    return (
        isinstance(error, torch.OutOfMemoryError | MemoryError)
        or "not enough memory" in said
        or "out of memory" in said
    )


def halved(sink: Sink, task: Task) -> int:
    """Rows to go on with after `task` did not fit; the run's partition records it."""
    if task.rows == 1:
        raise RunError(
            "The device ran out of memory with a single row a batch. Load the model in bfloat16, use "
            "device_map='auto', or sweep shorter prompts (smaller pictures)."
        )
    rows = task.rows // 2
    if rows < sink.partition.rows:
        sink.partition = replace(sink.partition, rows=rows, halved=sink.partition.halved + 1)
        sink.note(partition=sink.partition.json())
    return rows


def layer_tasks(
    step: Step, bounds: Iterable[tuple[int, int]], units: Sequence[int], cells: Cells | None, sink: Sink
) -> list[Task]:
    """What is still to be done of `units` on blocks of prompts; a task's units share the rows they run with."""
    tasks = []
    for start, stop in bounds:
        by_rows: dict[int, list[int]] = {}
        for unit in units:
            if not sink.done(start, unit):
                by_rows.setdefault(sink.rows(start, unit), []).append(unit)
        tasks += [Task(step, start, stop, tuple(found), cells, rows) for rows, found in by_rows.items()]
    return tasks
