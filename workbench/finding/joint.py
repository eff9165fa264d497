"""What heads do together: refusal with sets of them masked, exactly and to first order, and what single ones miss."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from workbench.axes import Head, head_names
from workbench.criteria.statistics import bootstrap_weights, percentile_interval
from workbench.errors import DetectorError
from workbench.models.hooked import HookedLVLM
from workbench.models.masks import Mask
from workbench.models.walk import base_pass
from workbench.prompts.prompt import Prompt
from workbench.prompts.ties import tie_names
from workbench.runs.job import check_groups
from workbench.runs.vocabulary import refusal_log_odds, wide
from workbench.sweeps.engines.first_order import tapped_state
from workbench.sweeps.engines.head_sets import group_states
from workbench.sweeps.plan import batches, plan


def refusal_odds(
    model: HookedLVLM,
    prompts: Sequence[Prompt],
    masked: Sequence[Sequence[Head]],
    *,
    projection: str = "value",
    mask: Mask | None = None,
) -> np.ndarray:
    """Log-odds that the reply opens with a refusal, with each of some sets of heads masked: [prompt, set].

    An empty set masks nothing. By default masked heads write nothing.

    Raises:
        DetectorError: The tokenizer knows no opening of a refusal.
    """
    if not model.refusal_tokens:
        raise DetectorError(
            f"The tokenizer of {model.name!r} knows none of the usual openings of a refusal, so there is no refusal to "
            "be faithful to."
        )
    mask = mask or Mask()
    some = [place for place, heads in enumerate(masked) if len(heads)]
    groups = check_groups(model, [masked[place] for place in some], mask) if some else ()
    encoded = [model.encode(prompt) for prompt in prompts]
    rows = plan(model, max(e.n_tokens for e in encoded)).rows
    found = np.empty((len(encoded), len(masked)))
    for batch in batches(encoded, max(1, rows // max(1, len(groups)))):
        if groups:
            base, states = group_states(model, [encoded[i] for i in batch], groups, projection, mask, rows)
        else:
            base, states = base_pass(model, [encoded[i] for i in batch]).state, torch.empty(0)
        odds = _odds(model, base)[:, None].repeat(len(masked), 1)
        if some:
            odds[:, some] = np.concatenate([_odds(model, of)[:, None] for of in states.unbind(1)], axis=1)
        found[batch] = odds
    return found


def _odds(model: HookedLVLM, state: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return refusal_log_odds(model, wide(model.unembed(state))).cpu().numpy()


def first_order_odds(model: HookedLVLM, prompts: Sequence[Prompt]) -> np.ndarray:
    """What removing each head's output would add to the refusal log-odds to first order: [prompt, layer, head].

    One pass forward and one back for all heads; NaN in layers without heads that can be masked.
    """
    encoded = [model.encode(prompt) for prompt in prompts]
    rows = plan(model, max(e.n_tokens for e in encoded)).rows
    found = np.full((len(encoded), model.n_layers, model.n_heads), np.nan)
    for batch in batches(encoded, max(1, rows // (2 * model.n_layers))):
        base = base_pass(model, [encoded[i] for i in batch])
        with torch.enable_grad():
            state, taps = tapped_state(model, base, thrifty=False)
            odds = refusal_log_odds(model, wide(model.unembed(state))).sum()
        for (layer, tap), slope in zip(taps.items(), torch.autograd.grad(odds, list(taps.values())), strict=True):
            z = base.recordings[layer].z[:, -tap.shape[1] :]
            found[batch, layer] = -wide(slope * z).sum((1, 3)).cpu().numpy()
    return found


def joint_effects(
    model: HookedLVLM,
    prompts: Sequence[Prompt],
    sets: Mapping[str, Sequence[Head]],
    *,
    bootstrap: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """What sets of heads do to refusal together, and what their heads do one by one.

    The effect of masking a set is how much it takes of the difference between unsafe and safe prompts in the mean
    refusal log-odds; positive: the set made the model refuse unsafe prompts more than safe ones. Heads that stand in
    for each other do more together than the sum says; heads that do the same work twice do less.

    Args:
        model: The model.
        prompts: Of both labels.
        sets: Heads by a name.
        bootstrap: Resamples behind intervals; pairs are drawn together.
        seed: Of the resamples.

    Returns:
        One row a set × effect: set, heads, n_heads, `effect` (`joint`; `sum of single` effects, each head masked alone;
        `first order`, the sum of what gradients say of each), value, ci_low, ci_high (95 %), in log-odds.
    """
    single = list(dict.fromkeys(head for heads in sets.values() for head in heads))
    odds = refusal_odds(model, prompts, [(), *sets.values(), *([head] for head in single)])
    slopes, lost = first_order_odds(model, prompts), odds[:, :1] - odds[:, 1:]
    unsafe = np.array([p.label == "unsafe" for p in prompts], dtype=bool)
    pairs = tie_names([p.pair_id for p in prompts], [p.content_key() for p in prompts])
    weights = bootstrap_weights(unsafe, pairs, resamples=bootstrap, seed=seed)
    rows = []
    for place, (name, heads) in enumerate(sets.items()):
        alone = [len(sets) + single.index(head) for head in heads]
        effects = {
            "joint": lost[:, place],
            "sum of single": lost[:, alone].sum(1),
            "first order": -np.sum([slopes[:, layer, head] for layer, head in heads], axis=0),
        }
        for effect, values in effects.items():
            low, high = percentile_interval(contrast(weights, unsafe, values[:, None])[:, 0])
            value = contrast(np.ones((1, len(unsafe))), unsafe, values[:, None])[0, 0]
            about = {"set": name, "heads": head_names(heads), "n_heads": len(heads), "effect": effect}
            rows.append(about | {"value": float(value), "ci_low": float(low), "ci_high": float(high)})
    return pd.DataFrame(rows)


def contrast(weights: np.ndarray, unsafe: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Mean over unsafe prompts less mean over safe ones, under each weight of the prompts: [resample, column]."""
    means = [weights[:, of] @ values[of] / weights[:, of].sum(1, keepdims=True) for of in (unsafe, ~unsafe)]
    return means[0] - means[1]
