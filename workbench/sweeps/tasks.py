"""How a sweep is carried out: tasks, each some units of work on one block of prompts, and the loop that runs them here.

What a task computes depends on the task alone, so it does not matter which process runs it, in what order, or after
what interruption.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from workbench.errors import PromptError, RunError, WorkbenchError
from workbench.models.bound import check_source
from workbench.models.encode import Encoded
from workbench.models.encodings import Encodings
from workbench.models.fingerprint import input_hash
from workbench.models.hooked import HookedLVLM
from workbench.models.lengths import Lengths
from workbench.models.masks import Mask
from workbench.prompts.prompt import Prompt, PromptSet
from workbench.runs.job import Cells, Job
from workbench.runs.memory import Sink

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
        left_out: Prompts of `start:stop` that are not computed.
    """

    step: Step
    start: int
    stop: int
    units: tuple[int, ...]
    cells: Cells | None
    rows: int
    left_out: tuple[int, ...] = ()


class Encoder(Encodings):
    """The prompts of a sweep as the model reads them, encoded when they are asked for.

    Attributes:
        left_out: Prompts that are not computed, by their place, and why; an empty text for those the store has.
        skip: Whether a prompt that cannot be computed is left out, in place of ending the sweep.
        mask: How heads are masked; prompts without what it needs of them are found before anything is computed.
        inputs: A hash of each prompt as it was encoded, `[prompt, byte]`; zeros until it is.
    """

    prompts: PromptSet

    def __init__(
        self,
        model: HookedLVLM,
        prompts: PromptSet,
        left_out: Mapping[int, str] | None = None,
        *,
        skip: bool = False,
        mask: Mask | None = None,
    ) -> None:
        super().__init__(model, prompts)
        self.left_out, self.skip = dict(left_out or {}), skip
        self.mask = mask
        self.inputs = np.zeros((len(prompts), 32), np.uint8)

    def __call__(self, index: int) -> Encoded:
        return self[index]

    def within(self, start: int, stop: int) -> tuple[int, ...]:
        """Which of the prompts `start:stop` are left out."""
        return tuple(sorted(i for i in self.left_out if start <= i < stop))

    def lengths(self, tick: Callable[[], Any]) -> Iterator[int]:
        """Tokens of every prompt that can be encoded, as far as its text and the size of its picture show."""
        count = Lengths(self.model)

        def length(prompt: Prompt) -> int:
            if self.mask is not None:
                check_source(self.mask, prompt, count)
            return count(prompt)

        return self._able(range(len(self.prompts)), lambda index: self._named(index, length), tick)

    def check(self, places: Iterable[int], tick: Callable[[], Any]) -> None:
        """Encode some prompts, so that `inputs` is known of them."""
        for _ in self._able(places, self, tick):
            pass

    def _able(self, places: Iterable[int], what: Callable[[int], Any], tick: Callable[[], Any]) -> Iterator[Any]:
        """`what` of each place that is not left out; one that it refuses is left out from then on, or ends it."""
        for index in places:
            if index not in self.left_out:
                try:
                    yield what(index)
                except WorkbenchError as error:
                    if not self.skip:
                        raise
                    self.left_out[index] = str(error)
            tick()

    def _encoded(self, index: int) -> Encoded:
        encoded: Encoded = self._named(index, self.model.encode)
        self.inputs[index] = np.frombuffer(input_hash(encoded), np.uint8)
        return encoded

    def _named(self, index: int, what: Callable[[Prompt], Any]) -> Any:
        """`what` of a prompt; errors name it."""
        try:
            return what(self.prompts[index])
        except WorkbenchError as error:
            raise named(error, self.prompts[index].id) from error
        except Exception as error:  # whatever a processor or a template raises on a prompt of its user
            raise named(PromptError(f"{type(error).__name__}: {error}"), self.prompts[index].id) from error


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
    kept = [index for index in range(task.start, task.stop) if index not in task.left_out]
    if not kept:
        yield from ((unit, {}) for unit in task.units)
        return
    places = [index - task.start for index in kept]
    steps = task.step(model, [encode(i) for i in kept], replace(job, cells=task.cells), task.rows, task.units)
    for unit, arrays in steps:
        if task.left_out:
            for name, values in arrays.items():
                arrays[name] = np.full((task.stop - task.start, *values.shape[1:]), np.nan, values.dtype)
                arrays[name][places] = values
        yield unit, arrays


def named(error: WorkbenchError, prompt_id: str) -> WorkbenchError:
    """The error of one prompt, with its id and what can be done."""
    if str(error).startswith(f"Prompt {prompt_id!r} cannot be swept"):
        return error
    return type(error)(
        f"Prompt {prompt_id!r} cannot be swept. {error} What was done before is kept; leave this prompt out with "
        "on_error='skip' (its values are then NaN), or make the call without it, into the same store."
    )


def without_bad(model: HookedLVLM, encode: Encoder, job: Job, task: Task, sink: Sink, error: Exception) -> Task:
    """The task again, without the prompts that fail alone as their block failed.

    Raises:
        WorkbenchError: That of the first such prompt, named, unless they are to be skipped; the block's own, if no
            prompt fails alone.
    """
    found: dict[int, str] = {}
    for index in range(task.start, task.stop):
        if index in task.left_out:
            continue
        try:
            for _ in compute(model, encode, job, replace(task, start=index, stop=index + 1, left_out=())):
                pass
        except Exception as alone:
            if out_of_memory(alone):
                raise
            known = alone if isinstance(alone, WorkbenchError) else RunError(f"{type(alone).__name__}: {alone}")
            if not encode.skip:
                raise named(known, encode.prompts[index].id) from alone
            found[index] = str(known)
    if not found:
        raise error
    encode.left_out |= found
    for index in found:
        sink.blank(task.start, task.stop, index)
    note_left_out(encode, sink)
    return replace(task, left_out=encode.within(task.start, task.stop))


def note_left_out(encode: Encoder, sink: Sink) -> None:
    """Record with the run which prompts it does not hold, and why."""
    left_out = {encode.prompts[index].id: why for index, why in sorted(encode.left_out.items()) if why}
    if left_out or "skipped" in sink.attrs:
        sink.note(skipped=json.dumps(left_out))


class ComputationError(Exception):
    """What went wrong in computing, apart from what goes wrong in storing."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def failing_apart(steps: Iterator[tuple[int, Arrays]]) -> Iterator[tuple[int, Arrays]]:
    """The same steps; what they raise comes as a ComputationError."""
    while True:
        try:
            step = next(steps)
        except StopIteration:
            return
        except Exception as error:
            raise ComputationError(error) from error
        yield step


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
        task = replace(
            planned,
            rows=sink.rows(planned.start, planned.units[0]),  # fewer, if an earlier one did not fit
            left_out=encode.within(planned.start, planned.stop),
        )
        while task.units:
            steps = compute(model, encode, job, task)
            try:
                for unit, arrays in failing_apart(steps):
                    sink.write(task.start, task.stop, unit, arrays, task.rows)
                    task = replace(task, units=tuple(u for u in task.units if u != unit))
                    tick(task.stop - task.start)
            except ComputationError as failed:
                if not out_of_memory(failed.error):
                    task = without_bad(model, encode, job, task, sink, failed.error)
                    continue
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
