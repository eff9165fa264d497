"""The exact engine: every head of every layer, each from the masked layer on, heads as batch rows.

For a block of prompts it makes the base pass once, then for each layer writes the masked heads' outputs in closed
form, adds them through W_O, and runs what lies above. Sources for what is masked: `workbench.models.masks`.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from workbench.models.encode import Encoded
from workbench.models.hooked import HookedLVLM, last_attention
from workbench.models.resume import BasePass, base_pass, head_writes, masked_z, resume
from workbench.sweeps.job import Job
from workbench.sweeps.measure import measure, refusal_log_odds
from workbench.sweeps.plan import batches

Arrays = dict[str, np.ndarray]


class ExactBlock:
    """The base passes of one block of prompts, from which each layer's cells are measured."""

    def __init__(self, model: HookedLVLM, encoded: Sequence[Encoded], job: Job, rows: int) -> None:
        self.model, self.encoded, self.job, self.rows = model, encoded, job, rows
        n_rows = max((len(job.cells_of(model, layer)) for layer in job.layers(model)), default=1)
        self.batches = batches(encoded, max(1, rows // n_rows))
        self.bases = [base_pass(model, [encoded[i] for i in batch]) for batch in self.batches]

    def base_arrays(self) -> Arrays:
        """Variables of the unmasked pass, `prompt` first: see `base_variables`."""
        return scatter(self.batches, [base_variables(self.model, base) for base in self.bases], len(self.encoded))

    def layer_arrays(self, layer: int) -> Arrays:
        """Variables of one layer's masked cells, `[prompt, projection, head]`, and `state` with `d_model` last."""
        parts = [layer_cells(self.model, base, layer, self.job, self.rows) for base in self.bases]
        return scatter(self.batches, parts, len(self.encoded))


def scatter(batches: list[list[int]], parts: list[dict[str, Tensor]], n_prompts: int) -> Arrays:
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
    cells = job.cells_of(model, layer)
    # In the last layer only the last position leads anywhere.
    seen_from = base.n_pos - 1 if layer == model.n_layers - 1 else start
    writes, acts = mask_writes(model, base, layer, job, cells, seen_from)
    parts: dict[str, list[Tensor]] = {}
    for chosen in torch.arange(len(cells), device=writes.device).split(max(1, most_rows // base.n_prompts)):
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
    return at_heads({name: torch.cat(value, dim=1) for name, value in parts.items()}, cells, model, job)


def mask_writes(
    model: HookedLVLM, base: BasePass, layer: int, job: Job, cells: Sequence[tuple[int, int]], seen_from: int | None
) -> tuple[Tensor, Tensor]:
    """What each cell's mask adds to the residual stream of a layer, and whether it changes anything.

    Args:
        cells: (projection, head), projection by projection.
        seen_from: First position that matters.
    Returns: `[prompt, row, pos, d_model]` and `[prompt, row]`.
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


def at_heads(
    found: dict[str, Tensor], cells: Sequence[tuple[int, int]], model: HookedLVLM, job: Job
) -> dict[str, Tensor]:
    """Measured cells `[prompt, row]` at their places in `[prompt, projection, head]`; what was not computed is NaN."""
    n_heads = len(job.mask.row_heads(model.n_heads, model.n_kv_heads))
    numbers, heads = (list(part) for part in zip(*cells, strict=True))
    spread = {}
    for name, value in found.items():
        spread[name] = value.new_full((value.shape[0], len(job.projections), n_heads, *value.shape[2:]), torch.nan)
        spread[name][:, numbers, heads] = value
    return spread


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
