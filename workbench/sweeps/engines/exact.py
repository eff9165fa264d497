"""The exact engine: every head of every layer, each from the masked layer on, heads as batch rows.

For a block of prompts it makes the base pass once, then for each layer writes the masked heads' outputs in closed
form, adds them through W_O, and runs what lies above. Sources for what is masked: `workbench.models.masks`.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from workbench.models.encode import Encoded
from workbench.models.hooked import HookedLVLM
from workbench.models.masks import head_writes, masked_z
from workbench.models.walk import BasePass, base_pass, read_out
from workbench.runs.job import Job
from workbench.runs.memory import BASE
from workbench.sweeps.engines.cells import at_heads, base_reads, base_variables, measured, scatter
from workbench.sweeps.engines.head_sets import head_set_step
from workbench.sweeps.engines.registry import Engine, block_step, one_phase
from workbench.sweeps.plan import batches
from workbench.sweeps.tasks import Arrays, Sweep, Task, layer_tasks


class ExactBlock:
    """The base passes of one block of prompts, from which each layer's cells are measured."""

    def __init__(self, model: HookedLVLM, encoded: Sequence[Encoded], job: Job, rows: int) -> None:
        self.model, self.encoded, self.job, self.rows = model, encoded, job, rows
        n_rows = max((len(job.cells_of(model, layer)) for layer in job.layers(model)), default=1)
        self.batches = batches(encoded, max(1, rows // n_rows))
        self.bases = [base_pass(model, [encoded[i] for i in batch]) for batch in self.batches]

    def base_arrays(self) -> Arrays:
        """Variables of the unmasked pass: see `base_variables`."""
        parts = [base_variables(self.model, base, self.job) for base in self.bases]
        return scatter(self.batches, parts, len(self.encoded))

    def layer_arrays(self, layer: int) -> Arrays:
        """Variables of one layer's masked cells: see `Block`."""
        parts = [layer_cells(self.model, base, layer, self.job, self.rows) for base in self.bases]
        return scatter(self.batches, parts, len(self.encoded))


def layer_cells(model: HookedLVLM, base: BasePass, layer: int, job: Job, most_rows: int) -> dict[str, Tensor]:
    """All cells of one layer for the prompts of one base pass."""
    starts = {job.mask.start(e) for e in base.encoded}
    assert len(starts) == 1, "prompts of one batch have equal lengths and image spans"
    cells, read = job.cells_of(model, layer), job.read_layers(model)
    if layer > max(read):
        return {}
    # In the highest layer only the last position leads anywhere.
    seen_from = base.n_pos - 1 if layer == max(read) else starts.pop()
    writes, acts = mask_writes(model, base, layer, job, cells, seen_from)
    parts: dict[str, list[Tensor]] = {}
    reads = base_reads(model, base, job)
    for chosen in torch.arange(len(cells), device=writes.device).split(max(1, most_rows // base.n_prompts)):
        moved = {}
        if acts[:, chosen].any():
            moved = read_out(model, base, layer, len(chosen), writes=writes[:, chosen], start=seen_from, read=read)
        mine = [cells[i] for i in chosen]
        for name, value in measured(model, job, layer, mine, base.encoded, reads, acts[:, chosen], moved).items():
            parts.setdefault(name, []).append(value)
    return at_heads({name: torch.cat(value, dim=1) for name, value in parts.items()}, cells, model, job)


def mask_writes(
    model: HookedLVLM, base: BasePass, layer: int, job: Job, cells: Sequence[tuple[int, int]], seen_from: int
) -> tuple[Tensor, Tensor]:
    """What each cell's mask adds to the residual stream of a layer, and whether it changes anything.

    Args:
        cells: (projection, head), projection by projection.
        seen_from: First position that matters.

    Returns:
        `[prompt, row, pos, d_model]` and `[prompt, row]`.
    """
    rows = job.mask.row_heads(model.n_heads, model.n_kv_heads)
    z = base.recordings[layer].z[:, seen_from:]
    writes, acts = [], []
    for number, projection in enumerate(job.projections):
        if mine := [rows[head] for at, head in cells if at == number]:
            delta = masked_z(model, base, layer, projection, job.mask)[:, seen_from:] - z
            writes.append(head_writes(model, layer, delta, mine))
            acts.append((delta[:, :, torch.as_tensor(mine, device=z.device)] != 0).flatten(3).any(3).any(1))
    return torch.cat(writes, dim=1), torch.cat(acts, dim=1)


exact_step = partial(block_step, ExactBlock)


def phases(sweep: Sweep) -> Iterator[list[Task]]:
    """One phase: every layer of every block; or, for head sets, every block."""
    if sweep.job.groups is None:
        yield from one_phase(exact_step)(sweep)
    else:
        yield layer_tasks(head_set_step, sweep.bounds, (BASE,), None, sweep.sink)


ENGINE = Engine("exact", "every head from the masked layer on, heads as batch rows", phases, groups=True, readout=True)
