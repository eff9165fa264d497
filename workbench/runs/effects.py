"""What a mask did to the final state and to the next-token distribution, row by row.

Everything here is computed in float64, in forms that stay accurate when the change is tiny.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.errors import RunError
from workbench.models.hooked import HookedLVLM
from workbench.runs.schema import MEASURES


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


def check_states(
    model: HookedLVLM,
    states: Float[Tensor, "prompt row d_model"],
    logits: Float[Tensor, "prompt row vocab"],
    prompts: Sequence[str] = (),
    rows: Sequence[str] = (),
) -> None:
    """Refuse states from which nothing can be measured.

    Args:
        prompts: Names of the prompts, for the message.
        rows: Names of the masks; none for unmasked states.

    Raises:
        RunError: For states or logits that are not finite numbers, and for states of length zero, which have no
            direction; it names the prompts and masks.
    """
    finite = states.isfinite().all(-1) & logits.isfinite().all(-1)
    bad = ~finite | (wide(states).norm(dim=-1) == 0)
    if not bad.any():
        return

    def first(names: Sequence[str], numbers: list[int]) -> str:
        known = [repr(names[n]) for n in numbers if n < len(names)]
        return f" ({', '.join(known[:3])}{', …' if len(known) > 3 else ''})" if known else ""

    by_prompt, by_row = (bad.any(dim).nonzero().flatten().tolist() for dim in (1, 0))
    what = (
        "states of length zero, which have no direction,"
        if finite.all()
        else "states or logits that are not finite numbers"
    )
    masks = f"{len(by_row)} of {states.shape[1]} masks{first(rows, by_row)}" if rows else "no mask"
    raise RunError(
        f"{model.name!r} gave {what} on {len(by_prompt)} of {states.shape[0]} prompts{first(prompts, by_prompt)} under "
        f"{masks}, in {model.dtype}. Nothing can be measured there: weights are damaged, or the dtype is too narrow "
        "(try dtype='float32', or bfloat16 instead of float16)."
    )


def measure(
    model: HookedLVLM,
    base_state: Float[Tensor, "prompt d_model"],
    base_logits: Float[Tensor, "prompt vocab"],
    states: Float[Tensor, "prompt row d_model"],
    *,
    prompts: Sequence[str] = (),
    rows: Sequence[str] = ("masked",),
) -> dict[str, Float[Tensor, "prompt row"]]:
    """Every per-cell variable of a run (`MEASURES`; units in the Records of the run) for some masked states.

    KL is KL(base || masked) in nats; `refusal_change` is masked - base, negative when the heads helped to refuse.
    A row whose state equals the base state bit for bit gets exactly 0 (and a norm ratio of exactly 1).

    Args:
        prompts: Names of the prompts, for messages.
        rows: Names of the masks, for messages.

    Raises:
        RunError: For states that nothing can be measured from; see `check_states`.
    """
    logits = model.unembed(states)
    check_states(model, base_state[:, None], base_logits[:, None], prompts)
    check_states(model, states, logits, prompts, rows)
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
    return {name: found[name].masked_fill(same, 1.0 if name == "norm_ratio" else 0.0) for name in MEASURES}
