"""Where measured cells go in a block's arrays, and what the unmasked pass says about each head."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from workbench.axes import head_name
from workbench.models.bound import bound
from workbench.models.encode import Encoded
from workbench.models.hooked import HookedLVLM, last_attention
from workbench.models.masks import Mask, head_writes
from workbench.models.walk import BasePass
from workbench.runs.effects import measure
from workbench.runs.job import Job
from workbench.runs.vocabulary import refusal_log_odds
from workbench.sweeps.tasks import Arrays


def scatter(batches: list[list[int]], parts: list[dict[str, Tensor]], n_prompts: int) -> Arrays:
    """Parts computed batch by batch, at the places of their prompts; float32 or wider, as NumPy has no bfloat16."""
    arrays: Arrays = {}
    for name in parts[0]:
        dtype = np.float64 if any(part[name].dtype == torch.float64 for part in parts) else np.float32
        arrays[name] = np.full((n_prompts, *parts[0][name].shape[1:]), np.nan, dtype=dtype)
        for batch, part in zip(batches, parts, strict=True):
            value = part[name]
            arrays[name][batch] = value.to(torch.promote_types(value.dtype, torch.float32)).cpu().numpy()
    return arrays


def measured(
    model: HookedLVLM,
    job: Job,
    layer: int,
    cells: Sequence[tuple[int, int]],
    prompts: Sequence[Encoded],
    base: Mapping[int, tuple[Tensor, Tensor]],
    acts: Tensor,
    moved: Mapping[int, Tensor],
) -> dict[str, Tensor]:
    """What a run holds of masked rows `[prompt, row]`, then `readout` where the job names read-outs.

    Args:
        layer: The masked one; `cells` are (projection, head) of each row.
        base: Unmasked states and logits, by the layer they are read after.
        acts: Whether a row's mask changed anything, `[prompt, row]`. One that changed no bit of z changed nothing: the
            base state stands, not a recomputation of it.
        moved: Masked states `[prompt, row, d_model]`, by the layer they are read after.
    """
    found: list[dict[str, Tensor]] = []
    ids = [e.prompt_id for e in prompts]
    names = [f"{head_name(layer, head)} {job.projections[number]}" for number, head in cells]
    for at in job.read_layers(model):
        found.append({})
        if at >= layer:  # a mask cannot act on what lies below it
            state, logits = base[at]
            states = state[:, None].expand(*acts.shape, -1)
            if at in moved:
                states = torch.where(acts[..., None], moved[at], states)
            found[-1] = measure(model, state, logits, states, measures=job.measures, prompts=ids, rows=names)
            if job.keep_states:
                found[-1]["state"] = states
    if not job.readout:
        return found[0]
    known = max(found, key=len)
    return {n: torch.stack([f.get(n, torch.full_like(v, torch.nan)) for f in found], 2) for n, v in known.items()}


def base_reads(model: HookedLVLM, base: BasePass, job: Job) -> dict[int, tuple[Tensor, Tensor]]:
    """Unmasked states and logits `[prompt, …]`, by the layer they are read after."""
    return {at: base.read(model, at) for at in job.read_layers(model)}


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


def base_variables(model: HookedLVLM, base: BasePass, job: Job) -> dict[str, Tensor]:
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
    found = {"twin_gap": twin_gap(model, base, job.mask)} if job.mask.form == "interchange" else {}
    return found | {
        "head_output": head_output,
        "base_state": base_states(model, base, job),
        "image_attention": image_attention,
        "refusal_write": refusal_write,
    }


def twin_gap(model: HookedLVLM, base: BasePass, mask: Mask) -> Tensor:
    """Refusal log-odds of each prompt's twin less its own, both unmasked, `[prompt]`."""
    logits = bound(model, mask, base).logits_of_others()
    return (refusal_log_odds(model, logits) - refusal_log_odds(model, base.logits)).float()


def base_states(model: HookedLVLM, base: BasePass, job: Job) -> Tensor:
    """Unmasked states `[prompt, d_model]`; `[prompt, readout, d_model]` where the job names read-outs."""
    states = [base.read(model, at)[0].float() for at in job.read_layers(model)]
    return torch.stack(states, 1) if job.readout else states[0]


def refusal_gradient(model: HookedLVLM, residual: Tensor) -> Tensor:
    """Gradient of the refusal log-odds in the residual stream at the last position, `[prompt, d_model]`."""
    if not model.refusal_tokens:
        return torch.full_like(residual, torch.nan)
    with torch.enable_grad():
        leaf = residual.detach().clone().requires_grad_(True)
        odds = refusal_log_odds(model, model.unembed(model.normed(leaf)))
        return torch.autograd.grad(odds.sum(), leaf)[0]
