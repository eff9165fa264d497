"""Carrying out a sweep: its engine's tasks, here or on a cluster, each session's time and work counted."""

import datetime
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from workbench.errors import WorkbenchError
from workbench.models.hooked import HookedLVLM
from workbench.runs.memory import Sink
from workbench.runs.zarr_store import Store
from workbench.sweeps.engines.registry import engines
from workbench.sweeps.peak import held_bytes, peak_bytes, reset_peak
from workbench.sweeps.positions import agreement_with_all
from workbench.sweeps.process import Terminated
from workbench.sweeps.tasks import Sweep, run_here

LINE_EVERY = 30  # seconds


def run_sweep(sweep: Sweep, engine: str, foreseen: Mapping[str, int], progress: bool, cluster: str | None) -> None:
    """Run the engine's tasks, counting the work and the time of this session on top of those before it.

    Args:
        foreseen: What the work is held against, as `workbench.sweeps.operations.foreseen` says it.
    """
    model, sink = sweep.model, sweep.sink
    before = {name: sink.attrs.get(name, 0) for name in ("wall_s", "layer_tokens", "vision_passes", "readouts")}
    began, work = time.perf_counter(), replace(model.work)
    planned = held_bytes(model.device) + foreseen["planned_bytes"]
    sink.note(**{**foreseen, "planned_bytes": planned}, **_session(model, sink))
    reset_peak(model.device)

    def count(**more: Any) -> None:
        sink.note(
            wall_s=round(before["wall_s"] + time.perf_counter() - began, 3),
            layer_tokens=before["layer_tokens"] + model.work.layer_tokens - work.layer_tokens,
            vision_passes=before["vision_passes"] + model.work.vision_passes - work.vision_passes,
            readouts=before["readouts"] + model.work.readouts - work.readouts,
            **more,
        )

    try:
        with progress_bar(progress) as shown, _threads(sink), _runner(sweep, cluster) as run:
            line, total = shown.add_task(f"sweep ({engine}), prompts x layers"), 0
            for tasks in engines().named(engine).phases(sweep):
                total += sum(len(task.units) * (task.stop - task.start) for task in tasks)
                shown.update(line, total=total)
                run(tasks, sink, lambda n: shown.advance(line, n), count)
            # A twin need not have a counterpart for every position.
            pairs = sweep.job.mask.form == "interchange"
            if sweep.job.mask.positions != "all" and sweep.job.groups is None and not pairs:
                line = shown.add_task("the same at all positions, layers", total=len(sweep.job.layers(model)))
                sink.note(positions_agreement=agreement_with_all(sweep, lambda: shown.advance(line)))
        # The memory of a cluster's workers is not seen from here.
        count(complete=True, **({} if cluster else {"used_bytes": peak_bytes(model.device)}))
    except (KeyboardInterrupt, Terminated) as stopped:
        kept = "Nothing is stored; with out=PATH the same call could go on from here."
        if isinstance(sink, Store):
            kept = f"{sink.path} holds what was finished; make the same call again to go on from there."
        message = f"The sweep was interrupted. {kept}"
        if isinstance(stopped, Terminated):
            Console(stderr=True).print(message, highlight=False, markup=False)
            raise
        raise KeyboardInterrupt(message) from None


class Lines:
    """Progress where there is no terminal, such as the log of a batch job: a line every so often."""

    def __init__(self, console: Console) -> None:
        self.console, self.tasks = console, dict[TaskID, tuple[str, float | None, float]]()
        self.began = self.printed = time.monotonic()

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def add_task(self, description: str, total: float | None = None) -> TaskID:
        """A new line of work; its number."""
        self.tasks[TaskID(len(self.tasks))] = (description, total, 0.0)
        return TaskID(len(self.tasks) - 1)

    def update(self, task: TaskID, total: float) -> None:
        """Set how much there is to do."""
        self.tasks[task] = (self.tasks[task][0], total, self.tasks[task][2])

    def advance(self, task: TaskID, advance: float = 1) -> None:
        """Add to what is done; print where it is time to."""
        description, total, done = self.tasks[task]
        done += advance
        self.tasks[task] = (description, total, done)
        now = time.monotonic()
        if total and now - self.printed >= LINE_EVERY:
            self.printed = now
            left = datetime.timedelta(seconds=round((now - self.began) / done * (total - done)))
            line = f"{description}: {done:.0f} of {total:.0f} ({done / total:.0%}), about {left} left"
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)


def progress_bar(shown: bool, *, transient: bool = False) -> Progress | Lines:
    """Progress with the time left: bars on a terminal, lines in a log; `transient` leaves no bar behind."""
    console = Console(stderr=True)
    if shown and not console.is_terminal:
        return Lines(console)
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(TextColumn("{task.description}"), *columns, console=console, disable=not shown, transient=transient)


@contextmanager
def _runner(sweep: Sweep, cluster: str | None) -> Iterator[Callable[..., None]]:
    """What carries out tasks: this process, or the workers of a cluster."""
    if cluster is None:
        yield partial(run_here, sweep.model, sweep.encode, sweep.job)
        return
    try:
        from workbench.sweeps.cluster import Cluster
    except ImportError as error:
        raise WorkbenchError("cluster=… needs Ray: pip install 'lvlm-workbench[cluster]'.") from error
    workers = Cluster(cluster, sweep.encode, sweep.job, int(sweep.sink.attrs["threads"]))
    try:
        yield workers.run
    finally:
        workers.close()


@contextmanager
def _threads(sink: Sink) -> Iterator[None]:
    """The number of threads the run was begun with: another number changes the last bits."""
    now = torch.get_num_threads()
    torch.set_num_threads(int(sink.attrs["threads"]))
    try:
        yield
    finally:
        torch.set_num_threads(now)


def _session(model: HookedLVLM, sink: Sink) -> dict[str, Any]:
    """Attributes that say on what this part of the run was made, and whether the parts agree to the last bit."""
    here = provenance_of_session(model)
    sessions = [*json.loads(sink.attrs.get("sessions", "[]")), here]
    alike = all({**s, "started": ""} == {**here, "started": ""} for s in sessions)
    return {"sessions": json.dumps(sessions), "parts_agree": "bit for bit" if alike else "within rounding"}


def provenance_of_session(model: HookedLVLM) -> dict[str, str]:
    """Machine and kernels of this process."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    kernels = (
        torch.cuda.get_device_name(model.device)
        if model.device.type == "cuda"
        else torch.backends.cpu.get_cpu_capability()
    )
    return {"started": now, "device": str(model.device), "kernels": kernels, "torch": torch.__version__}


def work_line(attrs: Mapping[str, Any]) -> str:
    """One line on the work a run took against one full forward a head, the vocabulary's counted in operations."""
    done, naive = attrs["layer_tokens"], attrs["naive_layer_tokens"]
    each, read = attrs["layer_token_operations"], attrs["readout_operations"]
    whole, whole_naive = done * each + attrs["readouts"] * read, naive * each + attrs["naive_readouts"] * read
    line = (
        f"{done:,} layer-tokens ({done / naive:.1%} of the naive count, {naive:,}) and {attrs['readouts']:,} read-outs "
        f"in {attrs['wall_s']:.1f} s: {whole / whole_naive:.1%} of the naive operations"
    )
    if attrs["naive_vision_passes"]:
        line += f"; {attrs['vision_passes']:,} image passes, not {attrs['naive_vision_passes']:,}"
    if "used_bytes" in attrs:
        line += f". Memory: {decimal(attrs['used_bytes'])} at the most, {decimal(attrs['planned_bytes'])} planned"
    return f"{line}."
