"""Maps of models whose heads are split in parts: many heads, of which a trained model says how much each matters.

A part attends as its head does, and writes a share of what that writes: its masks are found from those of the head.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator

from workbench.bench import jobs
from workbench.bench.replay import Stored
from workbench.bench.searches import stored
from workbench.bench.synthetic import Shape
from workbench.models.encode import Encoded
from workbench.models.hooked import HookedLVLM
from workbench.models.masks import Mask
from workbench.models.walk import base_pass, read_out
from workbench.prompts.prompt import PromptSet
from workbench.runs.effects import angle_degrees
from workbench.runs.job import Job
from workbench.sweeps.engines.exact import mask_writes
from workbench.sweeps.plan import batches, plan

TOKENS = 605  # of a prompt of a 7B-like model: a picture of 576 and a short question


def split_stored(model: HookedLVLM, prompts: PromptSet, wide: HookedLVLM, each: int) -> list[Stored]:
    """What `stored` is for `wide = split_heads(model, …)`, from walks of the narrow model.

    The parts of a head attend alike, so that a part's mask writes what the head's would, times the part's share of it:
    the narrow model goes on from there, where attention is a fraction as wide. To first order a part's change is its
    share of the head's.
    """
    shares = part_shares(model, wide)
    exact = split_map(model, [model.encode(prompt) for prompt in prompts], shares)

    def of_parts(estimate: np.ndarray) -> np.ndarray:
        turns = np.tan(np.deg2rad(estimate))[..., None] * shares.numpy()
        return np.rad2deg(np.arctan(turns)).reshape(exact.shape)

    return stored(model, prompts, exact, each, of_parts)


@torch.no_grad()
def part_shares(model: HookedLVLM, wide: HookedLVLM) -> torch.Tensor:
    """Of what a head writes, the share that each of its parts does in `wide`, `[layer, head, part]`."""
    shares, into = [], wide.n_heads // model.n_heads
    for layer, attention in model.attentions.items():
        whole = attention.o_proj.weight.view(-1, model.n_heads, model.d_head)
        parts = wide.attentions[layer].o_proj.weight.view(-1, model.n_heads, into, model.d_head)
        shares.append(parts.norm(dim=(0, -1)) / whole.norm(dim=(0, -1))[:, None])
    return torch.stack(shares)


@torch.no_grad()
def split_map(model: HookedLVLM, prompts: Sequence[Encoded], shares: torch.Tensor) -> np.ndarray:
    """Deflections of every part of every head, `[prompt, projection, layer, part]`, degrees; see `split_stored`."""
    job, n_parts = Job(jobs.PROJECTIONS, Mask(), None, False), shares[0].numel()
    found = np.full((len(prompts), len(jobs.PROJECTIONS), model.n_layers, n_parts), np.nan)
    most = plan(model, max(e.n_tokens for e in prompts)).rows
    for batch in batches(prompts, max(1, most // n_parts)):
        base = base_pass(model, [prompts[i] for i in batch])
        for layer in model.masked_layers:
            start = base.n_pos - 1 if layer == max(model.masked_layers) else 0
            writes, _ = mask_writes(model, base, layer, job, job.cells_of(model, layer), start)
            of_parts = writes.unflatten(1, (len(jobs.PROJECTIONS), -1))[:, :, :, None] * shares[layer][..., None, None]
            for number, some in enumerate(of_parts.flatten(2, 3).unbind(1)):
                states = read_out(model, base, layer, n_parts, writes=some, start=start)[model.n_layers - 1]
                still = base.state[:, None].double().expand(*states.shape)
                found[batch, number, layer] = angle_degrees(still, states.double()).numpy()
    return found


def at_large_size(known: Stored, shares: np.ndarray, shape: Shape, seed: int = 0) -> Stored:
    """A map of parts of heads as it may be in a model with more layers and heads, no harder to tell apart.

    Each part is split once more, unevenly. What a finer part's cell would be is read off the curve through the cells of
    all the parts of its head, of which it writes a known share, and nothing. Layers are dealt out to several.
    """
    draws = np.random.default_rng(seed)
    n_layers, n_heads, n_parts = shares.shape
    deal = shape.layers // n_layers
    halves = shape.heads * deal // (n_heads * n_parts)
    odds = np.exp(1.5 * draws.standard_normal((*shares.shape, halves)))
    ratio = odds / odds.sum(-1, keepdims=True)
    finer = (shares[..., None] * ratio).reshape(n_layers, n_heads, -1)
    exact = np.empty((*known.exact.shape[:3], n_heads, n_parts * halves))
    of_heads = known.exact.reshape(*known.exact.shape[:3], n_heads, n_parts)
    for layer, head in np.ndindex(n_layers, n_heads):
        order = np.argsort(shares[layer, head])
        at, cells = shares[layer, head][order], of_heads[:, :, layer, head][..., order]
        curve = PchipInterpolator([0.0, *at], np.pad(cells, ((0, 0), (0, 0), (1, 0))), axis=-1)
        exact[:, :, layer, head] = curve(finer[layer, head])
    turns = np.tan(np.deg2rad(known.estimate.reshape(*of_heads.shape, 1))) * ratio

    def dealt(of_parts: np.ndarray) -> np.ndarray:
        of_layers = of_parts.reshape(*of_parts.shape[:3], n_heads, deal, -1).swapaxes(3, 4)
        return of_layers.reshape(*of_parts.shape[:2], shape.layers, shape.heads)

    estimate = np.rad2deg(np.arctan(turns)).reshape(exact.shape)
    return replace(known, exact=dealt(exact), estimate=dealt(estimate), tokens=np.full(len(exact), TOKENS))
