"""`plan`: how long a sweep will take, in how much memory and on how much disk, from a few rows that are timed."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
from rich.filesize import decimal

from workbench.axes import Head, as_heads
from workbench.checking import Converted, Whole, checked
from workbench.models.bound import with_source
from workbench.models.encode import Encoded
from workbench.models.hooked import HookedLVLM
from workbench.models.loading import SomeModel
from workbench.models.masks import Mask, SomeMask
from workbench.models.walk import BasePass, base_pass
from workbench.prompts.prompt import PromptSet
from workbench.runs.job import MEASURES, Job, Partition, cells_of_heads, check_measures, check_projections
from workbench.runs.schema import layout
from workbench.sweeps.engines.exact import layer_cells
from workbench.sweeps.operations import Counts
from workbench.sweeps.peak import held_bytes
from workbench.sweeps.plan import batches, free_bytes, planned_bytes
from workbench.sweeps.plan import plan as partition_of
from workbench.sweeps.sweep import SomePrompts

SAMPLE = 64  # prompts that are encoded, spread over all lengths; the others are taken to be like them
DEPTHS = 3  # layers that are timed
SECONDS = 2.0  # a layer's rows are doubled until they take so long, or fill a batch


@dataclass(frozen=True)
class Forecast:
    """What a sweep with the exact engine will take on this machine.

    Attributes:
        prompts: How many.
        cells: Masks on each prompt.
        tokens: Of all prompts together.
        seconds: Time of all of it, without what writing to the store takes.
        memory_bytes: Most memory in use at once: the process on a CPU, what PyTorch holds on a GPU.
        free_bytes: What is free there now.
        disk_bytes: What a store of it takes at the most: its variables before compression.
        share: Of the operations of one full forward a cell.
        partition: Prompts in a block and rows in a batch.
        timed_seconds: What it took to say so.
    """

    prompts: int
    cells: int
    tokens: int
    seconds: float
    memory_bytes: int
    free_bytes: int
    disk_bytes: int
    share: float
    partition: Partition
    timed_seconds: float

    def __str__(self) -> str:
        return (
            f"{self.prompts:,} prompts ({self.tokens:,} tokens) x {self.cells:,} cells: about "
            f"{timedelta(seconds=round(self.seconds))}, {self.share:.0%} of the operations of one forward a cell; "
            f"{decimal(self.memory_bytes)} of memory ({decimal(self.free_bytes)} are free), in batches of "
            f"{self.partition.rows} rows; at most {decimal(self.disk_bytes)} on disk. "
            f"Found out in {self.timed_seconds:.1f} s."
        )


@checked
def plan(
    model: SomeModel,
    prompts: SomePrompts,
    *,
    projections: Sequence[str] | str | None = None,
    mask: SomeMask = None,
    heads: Annotated[Sequence[Head], Converted(as_heads)] | None = None,
    measures: Sequence[str] | str = MEASURES,
    keep_states: bool = False,
    rows: Annotated[int, Whole(1, 2**20)] | None = None,
) -> Forecast:
    """Say what a sweep will take before it begins: time, memory and disk, of the exact engine.

    A few rows of prompts of median length are timed at three depths, and the rest is a matter of counting operations.
    Prompts of a picture that share their beginning take less with engine="prefix"; `find_heads` takes at most its
    `budget` of the time, and engine="naive" as much as the share says.

    Args:
        model, prompts, projections, mask, heads, measures, keep_states, rows: As `sweep` takes them.

    Returns:
        The forecast; `str` of it is a sentence, and its attributes are the numbers.

    Raises:
        PromptError: For prompts that cannot be used.
        MaskError: For a mask, a head or a measure that there is not.

    Examples:
        >>> import workbench as wb
        >>> found = wb.plan("planted", wb.load_prompts("planted", n=24))
        >>> found.prompts, found.cells
        (24, 32)
        >>> found.seconds > 0 and found.share < 0.7
        True
    """
    assert isinstance(model, HookedLVLM) and isinstance(prompts, PromptSet)  # noqa: PT018 - converted
    began = time.perf_counter()
    mask = mask or Mask()
    projections = check_projections(mask, projections)
    mask = with_source(model, mask, prompts)
    cells = None if heads is None else cells_of_heads(model, heads, mask, len(projections))
    job = Job(projections, mask, cells, keep_states, measures=check_measures(measures))
    step = max(1, len(prompts) // SAMPLE)
    sample = [model.encode(prompt) for prompt in prompts[::step]]
    scale, longest = len(prompts) / len(sample), max(e.n_tokens for e in sample)
    partition = partition_of(model, longest, rows=rows)
    partition = replace(partition, block=min(partition.block, len(prompts)))
    with model.lock:
        work = model.work
        model.work = type(work)()
        try:
            one, seconds = _seconds(model, sample, job, partition)
        finally:
            model.work = work
    counts, n_cells = Counts(model), sum(len(job.cells_of(model, layer)) for layer in job.layers(model))
    naive = (1 + n_cells) * sum(map(counts.forward, sample))
    disk = sum(
        math.prod(v.shape) * np.dtype(v.dtype).itemsize
        for v in layout(model, len(prompts), job, partition.block).values()
    )
    return Forecast(
        len(prompts),
        n_cells,
        round(scale * sum(e.n_tokens for e in sample)),
        scale * seconds,
        held_bytes(model.device) + planned_bytes(model, longest, partition, len(prompts)),
        free_bytes(model),
        disk,
        one / naive,
        partition,
        time.perf_counter() - began,
    )


def _seconds(model: HookedLVLM, sample: Sequence[Encoded], job: Job, partition: Partition) -> tuple[int, float]:
    """Operations of the sampled prompts, and the seconds they take at the speeds that are timed."""
    counts, layers = Counts(model), job.layers(model)
    most = max(len(job.cells_of(model, layer)) for layer in layers)
    together = batches(sample[: partition.block], max(1, partition.rows // most))
    middle = sorted(sample, key=lambda e: e.n_tokens)[len(sample) // 2].n_tokens
    batch = [sample[i] for i in min(together, key=lambda some: abs(sample[some[0]].n_tokens - middle))]
    base_pass(model, batch)  # the first call prepares kernels
    unmasked, base = timed(partial(base_pass, model, batch), model.device)
    unmasked /= sum(map(counts.forward, batch))
    chosen = sorted({layers[round(at * (len(layers) - 1) / DEPTHS)] for at in range(DEPTHS)})
    speeds = [_seconds_each(model, base, counts, job, layer, partition) for layer in chosen]
    done, seconds = 0, 0.0
    for encoded in sample:
        forward = counts.forward(encoded)
        done, seconds = done + forward, seconds + forward * unmasked
        for layer in layers:
            operations = len(job.cells_of(model, layer)) * counts.cell(encoded.n_tokens, layer)
            done, seconds = done + operations, seconds + operations * float(np.interp(layer, chosen, speeds))
    return done, seconds


def _seconds_each(
    model: HookedLVLM, base: BasePass, counts: Counts, job: Job, layer: int, partition: Partition
) -> float:
    """Seconds an operation of one layer's rows takes, with as many rows as can be afforded."""
    cells, rows, best = job.cells_of(model, layer), 1, 0.0
    while True:
        few = replace(job, cells={layer: cells[:rows]})
        seconds, _ = timed(partial(layer_cells, model, base, layer, few, partition.rows), model.device)
        best = seconds / (min(rows, len(cells)) * base.n_prompts * counts.cell(base.n_pos, layer))
        if rows >= len(cells) or 2 * seconds > SECONDS:
            return best
        rows *= 2


def timed(call: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Wall seconds of a call, with what a GPU still has to do, and its result."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    result = call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began, result
