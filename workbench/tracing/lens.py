"""What the residual stream says on its way up: read by the unembedding, and along the direction of refusal.

Sources: the logit lens (nostalgebraist, 2020), with the final norm; the direction is the usual difference of means
(Arditi et al., arXiv 2406.11717), for each pair from all the others, so that no pair is measured by its own difference.
"""

import numpy as np
import torch
from torch import Tensor

from workbench.tracing.passes import TwinPass


def read_layers(passes: TwinPass) -> dict[str, Tensor]:
    """The residual stream at the last position after each layer, and what it would answer.

    Returns:
        `residual` `[prompt, layer, d_model]`, `kl` (nats, from the final distribution to that of the layer), `refusal`
        (log-odds) and `token` (the likeliest next one's id), `[prompt, layer]`. NaN (of tokens, −1) for layers that
        did not run.
    """
    model, base = passes.model, passes.base
    ran = sorted(base.inputs)
    above = [passes.above(layer) for layer in ran]
    streams = torch.stack([passes.residual if n is None else base.inputs[n][:, -1] for n in above], 1)
    states = model.normed(streams)
    found = passes.measured(states, [f"layer {layer}" for layer in ran], towards=False)
    token = torch.stack([model.unembed(states[:, i]).argmax(-1) for i in range(len(ran))], 1)
    return {
        "residual": _spread(streams.float(), ran, model.n_layers, torch.nan),
        "kl": _spread(found["kl"], ran, model.n_layers, torch.nan),
        "refusal": _spread(found["refusal_change"] + passes.refusal[:, None], ran, model.n_layers, torch.nan),
        "token": _spread(token, ran, model.n_layers, -1),
    }


def _spread(values: Tensor, layers: list[int], n_layers: int, fill: float) -> Tensor:
    """`[prompt, place, …]` of some layers at their places among all."""
    spread = values.new_full((values.shape[0], n_layers, *values.shape[2:]), fill)
    spread[:, layers] = values
    return spread


def projections(residual: np.ndarray) -> np.ndarray:
    """How far each prompt's residual stream lies along the direction of refusal of the other pairs.

    The direction is the unit vector from the mean of the safe to the mean of the unsafe prompts of all other pairs, at
    the same layer.

    Args:
        residual: `[pair, side, layer, d_model]`, unsafe first.

    Returns:
        State units, `[pair, side, layer]`; NaN for a pair alone, and where the others' means are equal.
    """
    wide = residual.astype(np.float64)
    n_pairs = len(wide)
    if n_pairs < 2:
        return np.full(wide.shape[:3], np.nan)
    differences = wide[:, 0] - wide[:, 1]
    of_others = (differences.sum(0) - differences) / (n_pairs - 1)
    length = np.linalg.norm(of_others, axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.einsum("psld,pld->psl", wide, of_others / length)
