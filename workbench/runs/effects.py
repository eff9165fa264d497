"""What a mask did to the final state and to the next-token distribution, row by row.

Everything here is computed in float64, in forms that stay accurate when the change is tiny.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.errors import RunError
from workbench.models.hooked import HookedLVLM

MEASURES = ("deflection", "kl", "js", "tv", "top1_change", "l2", "norm_ratio", "refusal_change")


def wide(tensor: Tensor) -> Tensor:
    """float64, or float32 on devices that have no float64."""
    return tensor.to(torch.float32 if tensor.device.type == "mps" else torch.float64)


def angle_degrees(one: Float[Tensor, "... d"], other: Float[Tensor, "... d"]) -> Float[Tensor, "..."]:
    """Angle between vectors in degrees, 0-180; exact near 0 and 180, where acos loses half its digits.

    Source:
        W. Kahan's 2 atan2(|u - v|, |u + v|) for unit vectors u, v.
    """
    u = one / one.norm(dim=-1, keepdim=True)
    v = other / other.norm(dim=-1, keepdim=True)
    return torch.rad2deg(2 * torch.atan2((u - v).norm(dim=-1), (u + v).norm(dim=-1)))


def refusal_log_odds(model: HookedLVLM, logits: Float[Tensor, "... vocab"]) -> Float[Tensor, "..."]:
    """Log-odds that the next token opens a refusal; NaN when the tokenizer knows no refusal opening."""
    if not model.refusal_tokens:
        return torch.full(logits.shape[:-1], torch.nan, dtype=logits.dtype, device=logits.device)
    opens = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    opens[list(model.refusal_tokens)] = True
    return logits[..., opens].logsumexp(-1) - logits[..., ~opens].logsumexp(-1)


def measure(
    model: HookedLVLM,
    base_state: Float[Tensor, "prompt d_model"],
    base_logits: Float[Tensor, "prompt vocab"],
    states: Float[Tensor, "prompt row d_model"],
) -> dict[str, Float[Tensor, "prompt row"]]:
    """Every per-cell variable of a run (`MEASURES`; units in the Records of the run) for some masked states.

    KL is KL(base || masked) in nats; `refusal_change` is masked - base, negative when the heads helped to refuse.
    A row whose state equals the base state bit for bit gets exactly 0 (and a norm ratio of exactly 1).

    Raises:
        RunError: When a state or a logit is not a finite number.
    """
    logits = model.unembed(states)
    if not (logits.isfinite().all() and states.isfinite().all()):
        rows = int((~logits.isfinite()).any(-1).sum())
        raise RunError(
            f"{model.name!r} gave logits or states that are not finite numbers under {rows} of "
            f"{states.shape[0] * states.shape[1]} masks, in {model.dtype}. "
            "Such a cell has no value; try dtype='float32', or bfloat16 instead of float16."
        )
    base_state, states = wide(base_state)[:, None], wide(states)
    base, masked = wide(base_logits)[:, None].log_softmax(-1), wide(logits).log_softmax(-1)
    p, q = base.exp(), masked.exp()
    mean = torch.logaddexp(base, masked) - torch.log(torch.tensor(2.0, dtype=base.dtype, device=base.device))
    found = {
        "deflection": angle_degrees(base_state.expand_as(states), states),
        "kl": (p * (base - masked)).sum(-1).clamp_min(0),
        "js": (0.5 * (p * (base - mean)).sum(-1) + 0.5 * (q * (masked - mean)).sum(-1)).clamp_min(0),
        "tv": 0.5 * (p - q).abs().sum(-1),
        "top1_change": (base.argmax(-1) != masked.argmax(-1)).to(p.dtype).expand(states.shape[:-1]),
        "l2": (states - base_state).norm(dim=-1),
        "norm_ratio": states.norm(dim=-1) / base_state.norm(dim=-1),
        "refusal_change": refusal_log_odds(model, masked) - refusal_log_odds(model, base),
    }
    # Logits of equal states may differ in the last bit when the batch has another shape; equal is equal.
    same = (states == base_state).all(-1)
    return {name: value.masked_fill(same, 1.0 if name == "norm_ratio" else 0.0) for name, value in found.items()}
