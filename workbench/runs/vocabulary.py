"""What a mask did to the next-token distribution: sums over the vocabulary, in float64, in blocks of bounded size.

A block is small enough to stay in a processor's cache, and takes one exponential and one logarithm an entry.

With δ the change of the logits, p and q the distributions before and after, and c = E_p[δ]: S = E_p[exp(δ - c)],
q/p = exp(δ - c) / S, KL(p || q) = log S - E_p[δ - c], and the other measures are sums of p times a function of q/p.
What is summed is of the size of the result or at most about 1, so that float64 leaves errors of `ERROR` and less.
"""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.models.hooked import HookedLVLM

OF_VOCABULARY = ("kl", "js", "tv", "top1_change", "refusal_change")
# Bound of the absolute error against exact sums, in nats (kl, js), probability (tv) and log-odds (refusal_change), for
# changes of up to 50 nats: float64 rounds by 1.1e-16, and the largest terms are c and δ.
ERROR = 1e-12
# Entries (rows x vocabulary) whose logits are held at once, and that are worked on at once.
LOGITS_BLOCK = 2**24
CPU_BLOCK, GPU_BLOCK = 2**17, 2**24
# Beyond this factor between q and p the sums are taken in the slow, careful form.
FAR = 1e200


def wide(tensor: Tensor) -> Tensor:
    """float64, or float32 on devices that have no float64."""
    return tensor.to(torch.float32 if tensor.device.type == "mps" else torch.float64)


def refusal_log_odds(model: HookedLVLM, logits: Float[Tensor, "... vocab"]) -> Float[Tensor, "..."]:
    """Log-odds that the next token opens a refusal; NaN when the tokenizer knows no refusal opening."""
    if not model.refusal_tokens:
        return torch.full(logits.shape[:-1], torch.nan, dtype=logits.dtype, device=logits.device)
    opens = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    opens[list(model.refusal_tokens)] = True
    return logits[..., opens].logsumexp(-1) - logits[..., ~opens].logsumexp(-1)


def over_vocabulary(
    model: HookedLVLM, base_logits: Float[Tensor, "prompt vocab"], states: Float[Tensor, "prompt row d_model"]
) -> dict[str, Float[Tensor, "prompt row"]]:
    """The measures `OF_VOCABULARY`, and as `finite` whether a row's logits are finite numbers (1 or 0).

    Never more than `LOGITS_BLOCK` logits exist at once (one row's, where a row has more).
    """
    n_prompts, n_rows = states.shape[:2]
    found: dict[str, Tensor] = {}
    for some in _blocks(n_prompts, n_rows, base_logits.shape[-1], LOGITS_BLOCK):
        logits = model.unembed(states[some])
        base = Reference(model, base_logits[some[0]])
        size = CPU_BLOCK if logits.device.type == "cpu" else GPU_BLOCK
        for few in _blocks(logits.shape[0], logits.shape[1], logits.shape[2], size):
            for name, value in base.compared(few[0], logits[few]).items():
                if name not in found:
                    found[name] = value.new_full((n_prompts, n_rows), torch.nan)
                found[name][some][few] = value
    return found


def _blocks(n_prompts: int, n_rows: int, width: int, most: int) -> Iterator[tuple[slice, slice]]:
    """Prompts and rows whose entries are at most `most` together, and at least one row."""
    prompts, rows = max(1, most // (n_rows * width)), max(1, min(n_rows, most // width))
    for first in range(0, n_prompts, prompts):
        for row in range(0, n_rows, rows):
            yield slice(first, min(first + prompts, n_prompts)), slice(row, min(row + rows, n_rows))


class Reference:
    """Unmasked next-token distributions, and what masked ones are held against."""

    def __init__(self, model: HookedLVLM, logits: Float[Tensor, "prompt vocab"]) -> None:
        self.model, self.logits, self.first = model, wide(logits), logits.argmax(-1)
        self.opens = torch.tensor(model.refusal_tokens, device=logits.device, dtype=torch.long)
        rest = self.logits.clone()
        rest[:, self.opens] = -torch.inf
        # p over all entries, over those that open a refusal, and over the others.
        self.p, self.p_rest = self.logits.softmax(-1), rest.softmax(-1)
        self.p_opens = self.logits[:, self.opens].softmax(-1)

    def compared(self, some: slice, logits: Float[Tensor, "prompt row vocab"]) -> dict[str, Tensor]:
        """Masked logits of some of the prompts."""
        base, p, first = self.logits[some, None], self.p[some], self.first[some]
        change = wide(logits) - base  # δ
        centre = _sums(change, p)  # c
        change -= centre[..., None]
        left = _sums(change, p)  # what rounding left of E_p[δ - c]
        ratio = change.exp()
        total, rest = _sums(ratio, p), _sums(ratio, self.p_rest[some])  # S = total
        opened = _sums(ratio[..., self.opens], self.p_opens[some])
        # What is not a number is not small either.
        far = ~((ratio.amax(-1) < FAR) & (total > 1 / FAR))
        if self.model.refusal_tokens:
            far |= ~((opened > 1 / FAR) & (rest > 1 / FAR))
        change *= ratio
        js = 0.5 * (_sums(change, p) / total - total.log())  # half of E_q[log(q/p)]
        ratio *= (1 / total)[..., None]  # q/p
        both = ratio + 1
        js -= 0.5 * _sums(both.log().mul_(both), p)
        ratio -= 1
        found = {
            "finite": left.isfinite().to(p.dtype),
            "kl": total.log() - left,
            "js": js + math.log(2),
            "tv": 0.5 * _sums(ratio.abs_(), p),
            "top1_change": (_at(logits, first) < logits.amax(-1)).to(p.dtype),
            "refusal_change": opened.log() - rest.log() if self.model.refusal_tokens else total * torch.nan,
        }
        if far.any():
            slow = self._far(base, wide(logits))
            found |= {name: torch.where(far, slow[name], found[name]) for name in slow}
        return found | {name: found[name].clamp_min(0) for name in ("kl", "js")}

    def _far(self, base: Tensor, logits: Tensor) -> dict[str, Tensor]:
        """The same where q/p is beyond what float64 holds, from logarithms alone."""
        log_p, log_q = base.log_softmax(-1), logits.log_softmax(-1)
        p, q, mean = log_p.exp(), log_q.exp(), torch.logaddexp(log_p, log_q) - math.log(2)
        return {
            "kl": (p * (log_p - log_q)).sum(-1),
            "js": 0.5 * ((p * (log_p - mean)).sum(-1) + (q * (log_q - mean)).sum(-1)),
            "tv": 0.5 * (p - q).abs().sum(-1),
            "refusal_change": refusal_log_odds(self.model, log_q) - refusal_log_odds(self.model, log_p),
        }


def _sums(values: Float[Tensor, "prompt row entry"], weights: Float[Tensor, "prompt entry"]) -> Tensor:
    """Weighted sums over the last axis, `[prompt, row]`."""
    if len(weights) == 1:  # the product of a matrix and a vector is much the faster
        return (values[0] @ weights[0])[None]
    return (values @ weights[..., None])[..., 0]


def _at(logits: Float[Tensor, "prompt row vocab"], entry: Tensor) -> Tensor:
    """The logit of one entry a prompt, `[prompt, row]`."""
    return logits.gather(-1, entry[:, None, None].expand(-1, logits.shape[1], 1))[..., 0]
