"""The exact engine: every head of every layer, each from the masked layer on, heads as batch rows.

For a block of prompts it makes the base pass once, then for each layer writes the masked heads' outputs in closed
form, adds them through W_O, and runs what lies above. Sources for what is masked: `workbench.models.masks`.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workbench.errors import MaskError
from workbench.models.attention import HeadEdit, sites_set
from workbench.models.encode import Encoded
from workbench.models.hooked import HookedLVLM, last_attention
from workbench.models.masks import Mask
from workbench.models.resume import BasePass, base_pass, head_writes, masked_z, published_queries, resume
from workbench.sweeps.measure import MEASURES, measure, refusal_log_odds, wide
from workbench.sweeps.plan import Partition, batches

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Job:
    """What to measure.

    Attributes:
        projections: Of "query" and "value", in order.
        mask: The mask.
        heads: Masked (layer, head) cells by layer; every cell of a layer when None. Heads are rows of the grain.
        keep_states: Keep masked final states too.
    """

    projections: tuple[str, ...]
    mask: Mask
    heads: dict[int, tuple[int, ...]] | None
    keep_states: bool

    def layers(self, model: HookedLVLM) -> tuple[int, ...]:
        return model.masked_layers if self.heads is None else tuple(sorted(self.heads))

    def heads_of(self, model: HookedLVLM, layer: int) -> tuple[int, ...]:
        if self.heads is not None:
            return self.heads[layer]
        return tuple(range(len(self.mask.row_heads(model.n_heads, model.n_kv_heads))))


class ExactBlock:
    """The base passes of one block of prompts, from which each layer's cells are measured."""

    def __init__(self, model: HookedLVLM, encoded: Sequence[Encoded], job: Job, partition: Partition) -> None:
        self.model, self.encoded, self.job, self.partition = model, encoded, job, partition
        n_rows = len(job.projections) * len(job.mask.row_heads(model.n_heads, model.n_kv_heads))
        self.batches = batches(encoded, max(1, partition.rows // n_rows))
        self.bases = [base_pass(model, [encoded[i] for i in batch]) for batch in self.batches]

    def base_arrays(self) -> Arrays:
        """Variables of the unmasked pass, `prompt` first: see `base_variables`."""
        return _scatter(self.batches, [base_variables(self.model, base) for base in self.bases], len(self.encoded))

    def layer_arrays(self, layer: int) -> Arrays:
        """Variables of one layer's masked cells, `[prompt, projection, head]`, and `state` with `d_model` last."""
        parts = [layer_cells(self.model, base, layer, self.job, self.partition.rows) for base in self.bases]
        return _scatter(self.batches, parts, len(self.encoded))


def _scatter(batches: list[list[int]], parts: list[dict[str, Tensor]], n_prompts: int) -> Arrays:
    arrays: Arrays = {}
    for name in parts[0]:
        arrays[name] = np.full((n_prompts, *parts[0][name].shape[1:]), np.nan, dtype=np.float32)
        if any(part[name].dtype == torch.float64 for part in parts):
            arrays[name] = arrays[name].astype(np.float64)
        for batch, part in zip(batches, parts, strict=True):
            arrays[name][batch] = part[name].cpu().numpy()
    return arrays


def layer_cells(model: HookedLVLM, base: BasePass, layer: int, job: Job, most_rows: int) -> dict[str, Tensor]:
    """All cells of one layer for the prompts of one base pass."""
    starts = {job.mask.start(e) for e in base.encoded}
    assert len(starts) == 1, "prompts of one batch have equal lengths and image spans"
    start = starts.pop()
    heads = job.heads_of(model, layer)
    all_rows = job.mask.row_heads(model.n_heads, model.n_kv_heads)
    rows = [all_rows[h] for h in heads]
    # In the last layer only the last position leads anywhere.
    seen_from = base.n_pos - 1 if layer == model.n_layers - 1 else start
    deltas, z = [], base.recordings[layer].z[:, seen_from:]
    for projection in job.projections:
        masked = masked_z(model, base, layer, projection, job.mask)[:, seen_from:]
        deltas.append(masked - z)
    writes = torch.cat([head_writes(model, layer, delta, rows) for delta in deltas], dim=1)
    index = torch.as_tensor(rows, device=z.device)
    acts = torch.cat([(delta[:, :, index] != 0).flatten(3).any(3).any(1) for delta in deltas], dim=1)
    parts: dict[str, list[Tensor]] = {}
    for chosen in torch.arange(writes.shape[1], device=z.device).split(max(1, most_rows // base.n_prompts)):
        # A mask that changed no bit of z changed nothing: the base state stands, not a recomputation of it.
        states = base.state[:, None].expand(-1, len(chosen), -1)
        if acts[:, chosen].any():
            moved = resume(model, base, layer, len(chosen), writes=writes[:, chosen], start=seen_from)
            states = torch.where(acts[:, chosen, None], moved, states)
        found = measure(model, base.state, base.logits, states)
        if job.keep_states:
            found["state"] = states
        for name, value in found.items():
            parts.setdefault(name, []).append(value)
    cells = {
        name: torch.cat(value, dim=1).unflatten(1, (len(job.projections), len(rows))) for name, value in parts.items()
    }
    return _at_heads(cells, heads, len(all_rows))


def _at_heads(cells: dict[str, Tensor], heads: tuple[int, ...], n_rows: int) -> dict[str, Tensor]:
    """Spread the measured heads over the full head axis; what was not computed is NaN."""
    if len(heads) == n_rows:
        return cells
    spread = {}
    for name, value in cells.items():
        full = value.new_full((*value.shape[:2], n_rows, *value.shape[3:]), torch.nan)
        full[:, :, list(heads)] = value
        spread[name] = full
    return spread


def group_cells(
    model: HookedLVLM, base: BasePass, groups: Sequence[Sequence[tuple[int, int]]], job: Job, most_rows: int
) -> dict[str, Tensor]:
    """Cells of head sets masked together, `[prompt, projection, group]`; groups are rows, from their first layer on."""
    start = job.mask.start(base.encoded[0])
    cells = {name: wide(base.state.new_full((base.n_prompts, len(job.projections), len(groups)), torch.nan)) for name in MEASURES}
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


def base_variables(model: HookedLVLM, base: BasePass) -> dict[str, Tensor]:
    """What the unmasked pass says about each head: z, attention on the image, and its write towards refusing.

    `refusal_write` is the head's write z·W_O times the gradient of the refusal log-odds in the residual stream
    before the final norm: its direct effect to first order, in log-odds; positive pushes towards refusing.
    """
    shape = (base.n_prompts, model.n_layers, model.n_heads)
    head_output = torch.full((*shape, model.d_head), torch.nan)
    image_attention, refusal_write = torch.full(shape, torch.nan), torch.full(shape, torch.nan)
    on_image = torch.stack([e.image_positions for e in base.encoded]).to(base.state.device)
    direction = refusal_gradient(model, base.residual)
    every = [(h,) for h in range(model.n_heads)]
    for layer, seen in base.recordings.items():
        z = seen.z[:, -1:]
        head_output[:, layer] = z[:, 0].float().cpu()
        write = head_writes(model, layer, z, every)[:, :, 0]
        refusal_write[:, layer] = torch.einsum("phd,pd->ph", write.float(), direction.float()).cpu()
        if on_image.any():
            mass = torch.einsum("phk,pk->ph", last_attention(base, layer).float(), on_image.float())
            image_attention[:, layer] = mass.cpu()
    return {
        "head_output": head_output,
        "base_state": base.state.float(),
        "image_attention": image_attention,
        "refusal_write": refusal_write,
    }


def refusal_gradient(model: HookedLVLM, residual: Tensor) -> Tensor:
    """Gradient of the refusal log-odds in the residual stream at the last position, `[prompt, d_model]`."""
    if not model.refusal_tokens:
        return torch.full_like(residual, torch.nan)
    with torch.enable_grad():
        leaf = residual.detach().clone().requires_grad_(True)
        odds = refusal_log_odds(model, model.unembed(model.normed(leaf)))
        return torch.autograd.grad(odds.sum(), leaf)[0]


def check_heads(model: HookedLVLM, heads: Sequence[tuple[int, int]], mask: Mask) -> dict[int, tuple[int, ...]]:
    """Chosen (layer, head) pairs by layer; a MaskError names the first that does not exist."""
    n_rows = len(mask.row_heads(model.n_heads, model.n_kv_heads))
    chosen: dict[int, list[int]] = {}
    for layer, head in heads:
        if layer not in model.sites or not 0 <= head < n_rows:
            raise MaskError(
                f"heads names L{layer}H{head}, which is not in {model.name!r}: maskable layers are "
                f"{', '.join(map(str, model.masked_layers))}; heads are 0..{n_rows - 1} at grain {mask.grain!r}."
            )
        chosen.setdefault(layer, []).append(head)
    if not chosen:
        raise MaskError("heads is empty, so there is nothing to mask. Leave it out to sweep all heads.")
    return {layer: tuple(sorted(set(found))) for layer, found in chosen.items()}


def blocks(n_prompts: int, size: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of consecutive blocks of prompts."""
    for start in range(0, n_prompts, size):
        yield start, min(start + size, n_prompts)
