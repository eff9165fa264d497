"""Head sets masked together: a batch row is a set, from its first layer on."""

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from workbench.models.attention import HeadEdit, sites_set
from workbench.models.encode import Encoded
from workbench.models.hooked import HookedLVLM
from workbench.models.masks import Mask
from workbench.models.resume import BasePass, base_pass, published_queries, resume
from workbench.sweeps.engine import Arrays, scatter
from workbench.sweeps.job import Groups, Job
from workbench.sweeps.measure import MEASURES, measure, wide
from workbench.sweeps.plan import batches


class GroupBlock:
    """Same face as `ExactBlock`; everything a block has is known with its base passes."""

    def __init__(self, model: HookedLVLM, encoded: Sequence[Encoded], job: Job, rows: int) -> None:
        assert job.groups is not None
        self.model, self.encoded, self.job, self.rows, self.groups = model, encoded, job, rows, job.groups

    def base_arrays(self) -> Arrays:
        """Cells `[prompt, projection, group]` and the base states."""
        parts = []
        together = batches(self.encoded, max(1, self.rows // len(self.groups)))
        for batch in together:
            base = base_pass(self.model, [self.encoded[i] for i in batch])
            cells = group_cells(self.model, base, self.groups, self.job, self.rows)
            parts.append(cells | {"base_state": base.state.float()})
        return scatter(together, parts, len(self.encoded))

    def layer_arrays(self, layer: int) -> Arrays:
        raise AssertionError("a sweep of groups has no layers")


def group_cells(model: HookedLVLM, base: BasePass, groups: Groups, job: Job, most_rows: int) -> dict[str, Tensor]:
    """Cells of head sets masked together, `[prompt, projection, group]`; groups are rows, from their first layer on."""
    start = job.mask.start(base.encoded[0])
    cells = {
        name: wide(base.state.new_full((base.n_prompts, len(job.projections), len(groups)), torch.nan))
        for name in MEASURES
    }
    by_layer: dict[int, list[int]] = {}
    for number, group in enumerate(groups):
        by_layer.setdefault(min(layer for layer, _ in group), []).append(number)
    per_batch = max(1, most_rows // base.n_prompts)
    for number, projection in enumerate(job.projections):
        for first, members in by_layer.items():
            for i in range(0, len(members), per_batch):
                chosen = members[i : i + per_batch]
                states = _group_states(model, base, [groups[g] for g in chosen], first, projection, job.mask, start)
                for name, value in measure(model, base.state, base.logits, states).items():
                    cells[name][:, number, chosen] = value
    return cells


def _group_states(
    model: HookedLVLM,
    base: BasePass,
    groups: Sequence[Sequence[tuple[int, int]]],
    first: int,
    projection: str,
    mask: Mask,
    start: int,
) -> Tensor:
    if projection == "query" and mask.form == "as_published":
        # Weight scaling acts on whole batches, so each group is a pass of its own.
        states = []
        for group in groups:
            by_layer: dict[int, list[int]] = {}
            for layer, head in group:
                by_layer.setdefault(layer, []).append(head)
            with published_queries(model, by_layer, mask.factor):
                states.append(resume(model, base, first, 1))
        return torch.cat(states, dim=1)
    rows = mask.row_heads(model.n_heads, model.n_kv_heads)
    with ExitStack() as stack:
        for layer in sorted({layer for group in groups for layer, _ in group}):
            chosen = [[q for at, head in group if at == layer for q in rows[head]] for group in groups]
            edit = mask.edit(projection, chosen, model.n_heads, start, base.state.device)
            stack.enter_context(sites_set([model.sites[layer]], edit=_for_prompts(edit, base.n_prompts)))
        return resume(model, base, first, len(groups), start=start)


def _for_prompts(edit: HeadEdit, n_prompts: int) -> HeadEdit:
    """The same rows for every prompt of a batch (rows are prompt-major)."""

    def tile(value: Tensor | None) -> Tensor | None:
        return value.repeat(n_prompts, 1) if value is not None else None

    return HeadEdit(tile(edit.query_factor), tile(edit.query_off), tile(edit.output_factor), edit.start)
