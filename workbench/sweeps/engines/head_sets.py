"""Head sets masked together: a batch row is a set, from its first layer on."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from workbench.axes import head_name
from workbench.models.attention import sites_set
from workbench.models.bound import bound
from workbench.models.encode import Encoded
from workbench.models.hooked import HookedLVLM
from workbench.models.masks import Mask
from workbench.models.walk import BasePass, base_pass, resume
from workbench.runs.effects import measure
from workbench.runs.job import Groups, Job
from workbench.runs.vocabulary import wide
from workbench.sweeps.engines.cells import scatter
from workbench.sweeps.plan import batches
from workbench.sweeps.tasks import Arrays


def head_set_step(
    model: HookedLVLM, encoded: Sequence[Encoded], job: Job, rows: int, units: Sequence[int]
) -> Iterator[tuple[int, Arrays]]:
    """The one unit of a block: cells `[prompt, projection, group]` and the base states."""
    assert job.groups is not None
    parts = []
    together = batches(encoded, max(1, rows // len(job.groups)))
    for batch in together:
        base = base_pass(model, [encoded[i] for i in batch])
        parts.append(group_cells(model, base, job.groups, job, rows) | {"base_state": base.state.float()})
    for unit in units:
        yield unit, scatter(together, parts, len(encoded))


def group_cells(model: HookedLVLM, base: BasePass, groups: Groups, job: Job, most_rows: int) -> dict[str, Tensor]:
    """Cells of head sets masked together, `[prompt, projection, group]`; groups are rows, from their first layer on."""
    cells = {
        name: wide(base.state.new_full((base.n_prompts, len(job.projections), len(groups)), torch.nan))
        for name in job.measures
    }
    for number, projection in enumerate(job.projections):
        for chosen, states in _states(model, base, groups, projection, job.mask, most_rows):
            ids = [e.prompt_id for e in base.encoded]
            names = ["+".join(head_name(*head) for head in groups[g]) + f" {projection}" for g in chosen]
            options = {"measures": job.measures, "prompts": ids, "rows": names}
            found = measure(model, base.state, base.logits, states, **options)
            for name, value in found.items():
                cells[name][:, number, chosen] = value
    return cells


def group_states(
    model: HookedLVLM, encoded: Sequence[Encoded], groups: Groups, projection: str, mask: Mask, most_rows: int
) -> tuple[Tensor, Tensor]:
    """Final states of prompts that can share a batch, `[prompt, d_model]`, and with each group masked, `[prompt, group,
    d_model]`.
    """
    base = base_pass(model, encoded)
    masked = base.state.new_empty((base.n_prompts, len(groups), base.state.shape[-1]))
    for chosen, states in _states(model, base, groups, projection, mask, most_rows):
        masked[:, chosen] = states
    return base.state, masked


def _states(
    model: HookedLVLM, base: BasePass, groups: Groups, projection: str, mask: Mask, most_rows: int
) -> Iterator[tuple[list[int], Tensor]]:
    """Numbers of groups that go together, and their states, `[prompt, group, d_model]`."""
    by_layer: dict[int, list[int]] = {}
    for number, group in enumerate(groups):
        by_layer.setdefault(min(layer for layer, _ in group), []).append(number)
    per_batch = max(1, most_rows // base.n_prompts)
    for first, members in by_layer.items():
        for i in range(0, len(members), per_batch):
            chosen = members[i : i + per_batch]
            yield chosen, _masked_states(model, base, [groups[g] for g in chosen], first, projection, mask)


def _masked_states(
    model: HookedLVLM,
    base: BasePass,
    groups: Sequence[Sequence[tuple[int, int]]],
    first: int,
    projection: str,
    mask: Mask,
) -> Tensor:
    start, states = mask.start(base.encoded[0]), []
    if projection == "query" and mask.form == "as_published":
        for group in groups:  # weight scaling acts on whole batches, so each group is a pass of its own
            with model.masked(group, projection, mask):
                states.append(resume(model, base, first, 1))
        return torch.cat(states, dim=1)
    rows, held = mask.row_heads(model.n_heads, model.n_kv_heads), bound(model, mask, base)
    with ExitStack() as stack:
        for layer in sorted({layer for group in groups for layer, _ in group}):
            chosen = [[q for at, head in group if at == layer for q in rows[head]] for group in groups]
            # The same rows for every prompt of a batch (rows are prompt-major).
            edit = held.edit(projection, layer, chosen * base.n_prompts)
            stack.enter_context(sites_set([model.sites[layer]], edit=edit))
        return resume(model, base, first, len(groups), start=start)
