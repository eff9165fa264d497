"""Sets of heads that are learned: a gate or a score a head, fitted with Adam through the decoder, weights frozen.

Rankings look at one head at a time; a learned mask is fitted with all others at work, so that it sees heads that stand
in for each other.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Annotated

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from workbench.axes import Head
from workbench.checking import Finite, OneOf, Seed, Whole, checked
from workbench.models.attention import HeadEdit, sites_set
from workbench.models.hooked import HookedLVLM
from workbench.models.walk import BasePass, base_pass, walk
from workbench.prompts.prompt import SomePrompts
from workbench.runs.vocabulary import wide
from workbench.sweeps.execution import progress_bar
from workbench.sweeps.plan import batches, plan

METHODS = ("gating", "top-k")
LARGEST_LOGIT = 5.0  # of a gate, so that none is ever quite open or shut


@checked
def learn_heads(
    model: HookedLVLM,
    prompts: SomePrompts,
    *,
    method: Annotated[str, OneOf(METHODS)] = "top-k",
    steps: Annotated[int, Whole(1, 10**6)] = 500,
    learning_rate: Annotated[float, Finite(1e-6, 10)] = 0.05,
    penalty: Annotated[float, Finite(0, 1e3)] = 0.1,
    share: Annotated[float, Finite(0, 1)] = 0.5,
    progress: bool = False,
    seed: Seed = 0,
) -> pd.DataFrame:
    """One value a head, fitted so that the model with its heads' outputs scaled says what it says by itself.

    The loss is the mean KL(model ‖ gated model) of the next token, in nats, over batches of the prompts.

    Args:
        model: The model; its weights stay.
        prompts: Of both labels, so that what tells them apart is kept.
        method: `"gating"` fits a gate from 0 to 1 a head twice, pushed open and pushed shut by `penalty` times the sum
            of the gates' logits. `"top-k"` fits one score a head: at each step a number k of heads is drawn, and heads
            are kept by a sigmoid of their scores around the k-th largest.
        steps: Of Adam.
        learning_rate: Of Adam.
        penalty: Of `"gating"`, in nats a logit and head.
        share: Largest share of heads that `"top-k"` keeps.
        progress: Show progress, with the time left.
        seed: Of the draws.

    Returns:
        One row a head, best first: layer, head, `value` (the score; for gates the mean of both), and for `"gating"`
        `pushed_open` and `pushed_shut`, 0 to 1: both near 1, the head helps; both near 0, it hurts; apart, it does not
        matter. `.attrs["loss"]`: the mean loss over the last tenth of the steps, nats.

    Source:
        `"gating"`: causal head gating, arXiv 2505.13737 (andrewnam/causal_head_gating), with the next token in the
        place of a target text. `"top-k"`: after MAttr, arXiv 2609.25518, of which the abstract alone was read; what is
        masked is set to zero here.

    Examples:
        >>> import workbench as wb
        >>> from workbench.finding.gates import learn_heads
        >>> prompts = wb.load_prompts("planted", split="selection", n=8)
        >>> learned = learn_heads(wb.load_model("planted"), prompts, steps=30)
        >>> len(learned), sorted(learned.columns)
        (16, ['head', 'layer', 'value'])
    """
    encoded = [model.encode(prompt) for prompt in prompts]
    rows = plan(model, max(e.n_tokens for e in encoded)).rows
    parts = batches(encoded, max(1, rows // (2 * model.n_layers)))
    bases = [base_pass(model, [encoded[i] for i in part]) for part in parts]
    heads = [(layer, head) for layer in model.masked_layers for head in range(model.n_heads)]
    runs = {"pushed_open": penalty, "pushed_shut": -penalty} if method == "gating" else {"value": 0.0}
    found: dict[str, np.ndarray] = {}
    losses = []
    with progress_bar(progress) as bar:
        line = bar.add_task("steps", total=steps * len(runs))
        for name, push in runs.items():
            rng = np.random.default_rng(seed)
            values = torch.zeros(len(heads), dtype=torch.float64, device=model.device, requires_grad=True)
            adam = torch.optim.Adam([values], lr=learning_rate)
            for step in range(steps):
                gates = _kept(values, share, rng) if method == "top-k" else torch.sigmoid(values)
                loss = gated_kl(model, bases[int(rng.integers(len(bases)))], heads, gates)
                adam.zero_grad()
                (loss - push * values.sum()).backward()
                adam.step()
                with torch.no_grad():
                    values.clamp_(-LARGEST_LOGIT, LARGEST_LOGIT)
                if step >= steps - max(1, steps // 10):
                    losses.append(float(loss.detach()))
                bar.advance(line)
            found[name] = (values if method == "top-k" else torch.sigmoid(values)).detach().cpu().numpy()
    table = pd.DataFrame(heads, columns=["layer", "head"]).assign(**found)
    if method == "gating":
        table.insert(2, "value", (table["pushed_open"] + table["pushed_shut"]) / 2)
    table = table.sort_values(["value", "layer", "head"], ascending=[False, True, True], ignore_index=True)
    table.attrs = {"loss": float(np.mean(losses)), "method": method, "steps": steps}
    return table


def _kept(scores: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    """How much of each head is kept where about k of them are, k drawn up to a share of them."""
    k = int(rng.integers(1, max(2, round(share * len(scores)) + 1)))
    around = scores.detach().sort(descending=True).values[[k - 1, min(k, len(scores) - 1)]].mean()
    return torch.sigmoid(4 * (scores - around))


def gated_kl(model: HookedLVLM, base: BasePass, heads: Sequence[Head], gates: Tensor) -> Tensor:
    """Mean KL(model ‖ model with the outputs of heads multiplied by gates) of the next token, nats; has gradients."""
    by_layer: dict[int, list[tuple[int, int]]] = {}
    for place, (layer, head) in enumerate(heads):
        by_layer.setdefault(layer, []).append((head, place))
    with ExitStack() as stack:
        stack.enter_context(model.lock)
        for layer, of in by_layer.items():
            chosen, places = (torch.tensor(column, device=gates.device) for column in zip(*of, strict=True))
            factor = torch.ones(1, model.n_heads, dtype=gates.dtype, device=gates.device)
            factor = factor.index_put((torch.zeros_like(chosen), chosen), gates[places])
            stack.enter_context(sites_set([model.sites[layer]], edit=HeadEdit(output_factor=factor)))
        state = model.normed(walk(model, base)[model.n_layers - 1])
    p, q = wide(base.logits).log_softmax(-1), wide(model.unembed(state)).log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean()
