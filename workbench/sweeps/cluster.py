"""A sweep on a Ray cluster: actors that hold one model each, and one driver that stores what they compute.

What a task computes depends on the task alone (its prompts, layers, and rows a batch), so the run equals a
single-process one bit for bit on like machines. Ray starts a dead worker anew and gives its task to it again; workers
are added while the sweep runs when the cluster grows. Only the driver writes, so the store needs no lock but its own.

The driver hands the model over through Ray's object store, which brings the weights to each node once, into memory
that the node's workers share: on CPUs they compute on that very memory, and onto GPUs each copies it. No other node
needs the checkpoint. A model laid over several GPUs (`device_map`) takes as many for each worker.
"""

import logging
import os
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import ray
import torch

from workbench.errors import RunError
from workbench.models.decoder import Work
from workbench.models.hooked import HookedLVLM
from workbench.models.transfer import apart, shared_out, together
from workbench.prompts.prompt import PromptSet
from workbench.runs.job import Job
from workbench.runs.memory import Sink
from workbench.sweeps.tasks import Arrays, Encoder, Task, compute, halved, out_of_memory, without_bad

# Units a task holds at most, so that a dead worker loses little and the last task does not keep all others waiting.
UNITS_A_TASK = 8


class Worker:
    """One model in one process; made an actor by `Cluster`."""

    def __init__(
        self, bare: HookedLVLM, weights: dict[str, Any], device: str, places: Any, threads: int, job: Job
    ) -> None:
        torch.set_num_threads(threads)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable", category=UserWarning)
            arrays = dict(zip(weights, ray.get(list(weights.values())), strict=True))
            self.model = together(bare, arrays, torch.device(device), places)
        self.job = job

    def pid(self) -> int:
        """The process, for whoever wants to look at it."""
        return os.getpid()

    def run(self, task: Task, prompts: PromptSet) -> tuple[list[tuple[int, Arrays]], Work, np.ndarray] | None:
        """(arrays by unit, work done, hashes of the inputs) of a task on its prompts; None if it did not fit."""
        self.model.work = Work()
        encode, left_out = Encoder(self.model, prompts), tuple(i - task.start for i in task.left_out)
        try:
            here = replace(task, start=0, stop=len(prompts), left_out=left_out)
            found = list(compute(self.model, encode, self.job, here))
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            return None
        return found, self.model.work, encode.inputs


class Cluster:
    """A connection to Ray, and as many workers as it has room for.

    Args:
        address: "local" starts Ray on this machine, "local:N" with N workers; anything else is the address of a
            running cluster ("auto" finds the one of this machine).
    """

    def __init__(self, address: str, encode: Encoder, job: Job, threads: int) -> None:
        model = encode.model
        self.model, self.encode, self.job = model, encode, job
        bare, arrays = apart(model)
        self.most: int | None = None
        kind, _, count = address.partition(":")
        if kind == "local":
            self.most = int(count) if count.isdigit() else None
            _start_here(None if self.most is None else self.most * threads)
        else:
            try:
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, ValueError) as error:
                raise RunError(
                    f"No Ray cluster answered at {address!r} ({error}). Start one with `ray start --head`, or use "
                    "cluster='local'. If the cluster asks for a token, set RAY_AUTH_MODE=token here as well."
                ) from error
        places = shared_out(model)
        on_gpus = model.device.type == "cuda"
        self.kind, self.each = (
            ("GPU", len({p for p in places.values() if isinstance(p, int)}) or 1) if on_gpus else ("CPU", threads)
        )
        needs = {"num_gpus": self.each} if on_gpus else {"num_cpus": self.each}
        make = ray.remote(Worker).options(max_restarts=-1, max_task_retries=-1, **needs)
        # Each weight an object of its own, so that the store need not find room for all of them in one piece.
        weights = {name: ray.put(array) for name, array in arrays.items()}
        model_ = ray.put(bare)
        self._start: Callable[[], Any] = lambda: make.remote(model_, weights, model.device.type, places, threads, job)
        self.workers: list[Any] = []

    def close(self) -> None:
        """Let go of the workers."""
        ray.shutdown()

    def _grow(self, wanted: int) -> None:
        """Start workers until the cluster is full or there is one for each task."""
        room = int(ray.cluster_resources().get(self.kind, 0) // self.each)
        room = max(1, room if self.most is None else min(room, self.most))
        while len(self.workers) < min(room, wanted):
            self.workers.append(self._start())

    def run(self, tasks: Iterable[Task], sink: Sink, tick: Callable[[int], Any], pause: Callable[[], Any]) -> None:
        """Have the tasks computed, in any order, and store what comes back; the tasks that do not fit go again."""
        waiting = [part for task in tasks for part in pieces(task)]
        busy: dict[Any, tuple[Any, Task]] = {}
        idle: list[Any] = list(self.workers)
        while waiting or busy:
            known = len(self.workers)
            self._grow(len(waiting) + len(busy))
            idle += self.workers[known:]
            while waiting and idle:
                worker, task = idle.pop(), waiting.pop(0)
                task = replace(task, left_out=self.encode.within(task.start, task.stop))
                # With it go its prompts, and of their pictures the files' own bytes.
                busy[worker.run.remote(task, self.encode.prompts[task.start : task.stop])] = worker, task
            # The timeout is for workers that join: a cluster that grew is looked at again.
            done, _ = ray.wait(list(busy), timeout=5)
            for ref in done:
                worker, task = busy.pop(ref)
                idle.append(worker)
                try:
                    gave = ray.get(ref)
                except ray.exceptions.RayTaskError as error:
                    waiting.append(without_bad(self.model, self.encode, self.job, task, sink, error))
                    continue
                if gave is None:
                    waiting.append(replace(task, rows=halved(sink, task)))
                    continue
                found, work, self.encode.inputs[task.start : task.stop] = gave
                self.model.work.layer_tokens += work.layer_tokens
                self.model.work.vision_passes += work.vision_passes
                self.model.work.readouts += work.readouts
                for unit, arrays in found:
                    sink.write(task.start, task.stop, unit, arrays, task.rows)
                    tick(task.stop - task.start)
                pause()


def _start_here(cpus: int | None) -> None:
    """Start Ray on this machine. It gives itself 30 seconds, which a busy machine may need more than once."""
    for last in (False, False, True):
        try:
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
            return
        except Exception as error:
            ray.shutdown()
            if "timed out during startup" not in str(error):
                raise
            if last:
                raise RunError("Ray did not start on this machine in three attempts; is it overloaded?") from error


def pieces(task: Task) -> list[Task]:
    """A task as several of few units each; every one of them makes the block's base pass again."""
    units = task.units
    return [replace(task, units=units[i : i + UNITS_A_TASK]) for i in range(0, len(units), UNITS_A_TASK)]
