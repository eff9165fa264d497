"""Estimates for all heads from a few backward passes.

A mask changes a head's output by Δz, and the final state by J·Δz to first order. For a direction u the number uᵀJ·Δz is
Σ over positions of ⟨∂(u·state)/∂z, Δz⟩, and one backward pass gives the gradient for every head at once; Δz is known
in closed form for both projections. Averages over k directions are estimates:

- u normal in the plane across the state: the mean of (uᵀJΔz)² estimates the squared length of the part of the change
  that turns the state; `deflection_estimate` is the angle that belongs to it;
- u with the covariance of ∇ log p(y), y drawn from the next-token distribution p: half the mean estimates the KL in
  its Fisher form.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from workbench.models.encode import Encoded
from workbench.models.hooked import HookedLVLM
from workbench.models.masks import masked_z
from workbench.models.walk import BasePass, base_pass, walk
from workbench.runs.effects import check_states, wide
from workbench.runs.job import Job
from workbench.sweeps.engines.cells import base_variables, scatter
from workbench.sweeps.plan import batches
from workbench.sweeps.tasks import Arrays


def first_order_step(
    model: HookedLVLM, encoded: Sequence[Encoded], job: Job, rows: int, units: Sequence[int]
) -> Iterator[tuple[int, Arrays]]:
    """The one unit of a block: base passes, and the estimates of all cells."""
    # A graph holds what a row needs in every layer at once, where the exact engine frees each layer's.
    fit = rows // (2 * model.n_layers)
    together = batches(encoded, max(1, fit))
    parts = []
    for batch in together:
        base = base_pass(model, [encoded[i] for i in batch])
        parts.append(base_variables(model, base, job) | estimates(model, base, job, thrifty=fit < 1))
    for unit in units:
        yield unit, scatter(together, parts, len(encoded))


def estimates(model: HookedLVLM, base: BasePass, job: Job, *, thrifty: bool = False) -> dict[str, Tensor]:
    """`deflection_estimate` and `kl_estimate` of every cell, `[prompt, projection, layer, head]`.

    Args:
        thrifty: Keep only layer inputs and compute each layer again on the way back.
    """
    check_states(model, base.state[:, None], base.logits[:, None], [e.prompt_id for e in base.encoded])
    changes = _changes(model, base, job)
    squares: dict[str, Tensor] = {}
    with torch.enable_grad():
        state, taps = tapped_state(model, base, thrifty=thrifty)
        seeds = [zlib.crc32(f"{job.seed} {e.prompt_id}".encode()) for e in base.encoded]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        draw: dict[str, Callable[[], Tensor]] = {
            "deflection": lambda: _across(base.state, generators),
            "kl": lambda: _score_directions(model, base, generators),
        }
        for name in job.estimates:
            for _ in range(job.directions):
                along = (state * draw[name]()).sum()
                slopes = torch.autograd.grad(along, list(taps.values()), retain_graph=True)
                moved = _moved(dict(zip(taps, slopes, strict=True)), changes, job, model)
                squares[name] = squares.get(name, 0) + wide(moved) ** 2 / job.directions
    found = {}
    if "deflection" in squares:
        turn = squares["deflection"].sqrt() / wide(base.state).norm(dim=-1)[:, None, None, None]
        found["deflection_estimate"] = torch.rad2deg(turn.atan()).float()
    if "kl" in squares:
        found["kl_estimate"] = (squares["kl"] / 2).float()
    return found


def _changes(model: HookedLVLM, base: BasePass, job: Job) -> dict[int, Tensor]:
    """Δz of every head masked alone, `[projection, prompt, pos, head, d_head]`, zero where the mask does not act."""
    start = job.mask.start(base.encoded[0])
    changes = {}
    for layer in base.recordings:
        z = base.recordings[layer].z
        change = torch.stack([masked_z(model, base, layer, p, job.mask) - z for p in job.projections])
        change[:, :, :start] = 0
        changes[layer] = change
    return changes


def tapped_state(model: HookedLVLM, base: BasePass, *, thrifty: bool) -> tuple[Tensor, dict[int, Tensor]]:
    """The final state, and zeros added to z of each layer through which its gradient can be read."""
    last = model.n_layers - 1
    taps = {
        layer: torch.zeros_like(seen.z[:, -1:] if layer == last else seen.z).requires_grad_()
        for layer, seen in base.recordings.items()
    }
    return model.normed(walk(model, base, taps=taps, thrifty=thrifty)[last]), taps


def _moved(slopes: Mapping[int, Tensor], changes: Mapping[int, Tensor], job: Job, model: HookedLVLM) -> Tensor:
    """uᵀJΔz of every cell, `[prompt, projection, layer, head]`."""
    rows = job.mask.row_heads(model.n_heads, model.n_kv_heads)
    first = next(iter(slopes.values()))
    moved = first.new_full((first.shape[0], len(job.projections), model.n_layers, len(rows)), torch.nan)
    for layer, slope in slopes.items():
        change = changes[layer][:, :, -slope.shape[1] :]
        by_head = torch.einsum("nshd,pnshd->nph", slope, change)
        moved[:, :, layer] = by_head.unflatten(-1, (len(rows), -1)).sum(-1)  # a group's heads lie side by side
    return moved


def _across(state: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Normal directions across each state."""
    draws = torch.stack([torch.randn(state.shape[-1], generator=g, dtype=torch.float64) for g in generators])
    draws = draws.to(state.device, wide(state).dtype)
    unit = torch.nn.functional.normalize(wide(state), dim=-1)
    return (draws - (draws * unit).sum(-1, keepdim=True) * unit).to(state.dtype)


def _score_directions(model: HookedLVLM, base: BasePass, generators: Sequence[torch.Generator]) -> Tensor:
    """Directions u in each state with E[(u·δ)²] = δᵀFδ, F the Fisher matrix of the next-token distribution.

    A normal draw with the covariance that ∇ log p(y), y ~ p, has: where p is peaked, single tokens drawn from it would
    almost always be the same one.
    """
    leaf = base.state.detach().clone().requires_grad_()
    logits = model.unembed(leaf)
    p = wide(logits.detach()).softmax(-1)
    draws = torch.stack([torch.randn(p.shape[-1], generator=g, dtype=torch.float64) for g in generators])
    root = p.sqrt() * draws.to(p.device, p.dtype)
    weights = root - p * root.sum(-1, keepdim=True)  # covariance diag(p) - p pᵀ
    return torch.autograd.grad((wide(logits) * weights).sum(), leaf)[0]
