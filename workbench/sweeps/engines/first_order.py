"""Estimates for all heads from a few backward passes.

A mask changes a head's output by Δz, and the final state by J·Δz to first order. For a direction u the number uᵀJ·Δz is
Σ over positions of ⟨∂(u·state)/∂z, Δz⟩, and one backward pass gives the gradient for every head at once; Δz is known
in closed form for both projections. From the slopes along k directions follow

- `deflection_estimate`: u random in the plane across the state, from numbers at right angles to each other; the mean of
  (uᵀJΔz)² estimates the squared length of the part of the change that turns the state, and the angle is the one that
  belongs to it;
- `l2_estimate`: u random in the same way; the root of the mean square estimates the length of the change;
- `kl_estimate`: u with the covariance of ∇ log p(y), y drawn from the next-token distribution p; half the mean square
  estimates the KL in its Fisher form;
- `refusal_change_estimate`: u the gradient of the refusal log-odds, the only direction that is needed; the slope
  itself.

The random numbers behind the directions are the same for every prompt. What they get wrong about a head they then get
wrong alike on all prompts, which exact values of the head on some prompts correct; with new numbers for every prompt it
would be noise between the prompts.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from workbench.models.encode import Encoded
from workbench.models.hooked import HookedLVLM
from workbench.models.masks import masked_z
from workbench.models.walk import BasePass, base_pass, walk
from workbench.runs.effects import check_states, refusal_log_odds, wide
from workbench.runs.job import Job
from workbench.sweeps.engines.cells import base_variables, scatter
from workbench.sweeps.plan import batches
from workbench.sweeps.tasks import Arrays

ESTIMATED = ("deflection", "kl", "l2", "refusal_change")


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
        # Of each direction, what is kept is the gradient in z: about an eighth of what a row takes.
        at_once = max(1, 4 * rows // (model.n_layers * len(batch)))
        found = estimates(model, base, job, thrifty=fit < 1, at_once=at_once)
        parts.append(base_variables(model, base, job) | found)
    for unit in units:
        yield unit, scatter(together, parts, len(encoded))


def estimates(
    model: HookedLVLM, base: BasePass, job: Job, *, thrifty: bool = False, at_once: int = 8
) -> dict[str, Tensor]:
    """The estimates that the job names, of every cell, `[prompt, projection, layer, head]`.

    Args:
        thrifty: Keep only layer inputs and compute each layer again on the way back.
        at_once: How many directions go back together.
    """
    check_states(model, base.state[:, None], base.logits[:, None], [e.prompt_id for e in base.encoded])
    changes = _changes(model, base, job)
    found = {}
    with torch.enable_grad():
        before = model.work.layer_tokens
        state, taps = tapped_state(model, base, thrifty=thrifty)
        # Weights ask for no gradients, so that a way back is as many products as a way forward.
        way = (model.work.layer_tokens - before) * (2 if thrifty else 1)
        for name in job.estimates:
            squares: Tensor | float = 0.0
            along = directions(model, base, name, job)
            for part in along.split(at_once):
                slopes = torch.autograd.grad(state, list(taps.values()), part, retain_graph=True, is_grads_batched=True)
                model.work.layer_tokens += way * len(part)
                moved = wide(_moved(dict(zip(taps, slopes, strict=True)), changes, job, model))
                if name == "refusal_change":
                    found[f"{name}_estimate"] = moved[0].float()
                else:
                    squares = squares + (moved**2).sum(0) / len(along)
            if isinstance(squares, Tensor):
                found[f"{name}_estimate"] = _size(name, squares, base).float()
    return found


def _size(name: str, square: Tensor, base: BasePass) -> Tensor:
    """What a measure is where the slopes along its directions have this mean square."""
    if name == "kl":
        return square / 2
    if name == "l2":
        return square.sqrt()
    return torch.rad2deg((square.sqrt() / wide(base.state).norm(dim=-1)[:, None, None, None]).atan())


def directions(model: HookedLVLM, base: BasePass, name: str, job: Job) -> Tensor:
    """Directions of a measure in each state, `[direction, prompt, d_model]`; of a seed, the same for every prompt."""
    if name == "refusal_change":
        leaf = base.state.detach().clone().requires_grad_()
        odds = refusal_log_odds(model, model.unembed(leaf))
        return torch.autograd.grad(odds.sum(), leaf)[0][None]
    generator = torch.Generator().manual_seed(job.seed)
    width = model.d_vocab if name == "kl" else model.d_model
    draws = torch.randn(job.directions, 1, width, generator=generator, dtype=torch.float64)
    draws = draws.to(base.state.device, wide(base.state).dtype)
    if name == "kl":
        return torch.stack([_score_direction(model, base, of_one) for of_one in draws])
    draws = _orthogonal(draws)
    if name == "deflection":
        unit = torch.nn.functional.normalize(wide(base.state), dim=-1)
        draws = draws - (draws * unit).sum(-1, keepdim=True) * unit
    return draws.expand(-1, base.n_prompts, -1).to(base.state.dtype)


def _orthogonal(draws: Tensor) -> Tensor:
    """Directions `[direction, 1, d_model]` that keep their mean square, and say nothing twice.

    Of as many as there are dimensions, the mean square of the slopes is the squared length itself; of fewer, it
    scatters less than along independent ones (K. Choromanski, M. Rowland and A. Weller, "The unreasonable effectiveness
    of structured random orthogonal embeddings", NeurIPS 2017).
    """
    width = draws.shape[-1]
    parts = [torch.linalg.qr(part[:, 0].T)[0].T for part in draws.split(width)]
    return torch.cat(parts)[:, None] * width**0.5


def _score_direction(model: HookedLVLM, base: BasePass, draw: Tensor) -> Tensor:
    """A direction u in each state with E[(u·δ)²] = δᵀFδ, F the Fisher matrix of the next-token distribution.

    A normal draw with the covariance that ∇ log p(y), y ~ p, has: where p is peaked, single tokens drawn from it would
    almost always be the same one.
    """
    leaf = base.state.detach().clone().requires_grad_()
    logits = model.unembed(leaf)
    p = wide(logits.detach()).softmax(-1)
    root = p.sqrt() * draw
    weights = root - p * root.sum(-1, keepdim=True)  # covariance diag(p) - p pᵀ
    return torch.autograd.grad((wide(logits) * weights).sum(), leaf)[0]


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
    """uᵀJΔz of every cell, `[direction, prompt, projection, layer, head]`, from slopes `[direction, prompt, …]`."""
    rows = job.mask.row_heads(model.n_heads, model.n_kv_heads)
    first = next(iter(slopes.values()))
    shape = (*first.shape[:2], len(job.projections), model.n_layers, len(rows))
    moved = first.new_full(shape, torch.nan)
    for layer, slope in slopes.items():
        change = changes[layer][:, :, -slope.shape[2] :]
        by_head = torch.einsum("unshd,pnshd->unph", slope, change)
        moved[:, :, :, layer] = by_head.unflatten(-1, (len(rows), -1)).sum(-1)  # a group's heads lie side by side
    return moved
