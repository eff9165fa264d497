"""The reference engine: one full forward a head through TransformerLens' hooks, image tower and all.

It shares nothing with the exact engine but the weights: it scales queries at a hook instead of writing the limit in
closed form, multiplies z at another, and never resumes. Slow on purpose; tests hold the exact engine against it.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import torch

from workbench.models.encode import Encoded
from workbench.models.hooked import HookedLVLM
from workbench.models.walk import base_pass
from workbench.runs.job import Job
from workbench.sweeps.engines.cells import at_heads, base_variables, measured, scatter
from workbench.sweeps.engines.hooks import head_hook, states_read, z_change
from workbench.sweeps.engines.registry import Engine, block_step, one_phase
from workbench.sweeps.tasks import Arrays, Sweep, Task


class NaiveBlock:
    """The cells of one block of prompts, the long way."""

    def __init__(self, model: HookedLVLM, encoded: Sequence[Encoded], job: Job, rows: int) -> None:
        self.model, self.encoded, self.job = model, encoded, job
        read = job.read_layers(model)
        self.bases = [
            {at: (state, model.unembed(state)) for at, state in states_read(model, e, [], read).items()}
            for e in encoded
        ]

    def base_arrays(self) -> Arrays:
        parts = [base_variables(self.model, base_pass(self.model, [e]), self.job) for e in self.encoded]
        return scatter([[i] for i in range(len(parts))], parts, len(parts))

    def layer_arrays(self, layer: int) -> Arrays:
        model, job, parts = self.model, self.job, []
        cells, rows = job.cells_of(model, layer), job.mask.row_heads(model.n_heads, model.n_kv_heads)
        for encoded, base in zip(self.encoded, self.bases, strict=True):
            found, change = [], z_change(model, encoded, layer, job.mask)
            for number, head in cells:
                hook = head_hook(model, layer, rows[head], job.projections[number], job.mask, encoded, change)
                states = states_read(model, encoded, [hook], job.read_layers(model))
                moved = {at: state[:, None] for at, state in states.items()}
                acts = torch.ones(1, 1, dtype=torch.bool, device=model.device)
                found.append(measured(model, job, layer, [(number, head)], [encoded], base, acts, moved))
            joined = {name: torch.cat([f[name] for f in found], 1) for name in found[0]}
            parts.append(at_heads(joined, cells, model, job))
        return scatter([[i] for i in range(len(parts))], parts, len(parts))


def phases(sweep: Sweep) -> Iterator[list[Task]]:
    """One phase, once the bridge has proved itself: one that is not right is no fault of a prompt."""
    assert sweep.model.bridge is not None
    yield from one_phase(partial(block_step, NaiveBlock))(sweep)


ENGINE = Engine(
    "naive",
    "one full forward a head through TransformerLens' hooks; the reference",
    phases,
    readout=True,
)
