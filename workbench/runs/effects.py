"""What a mask did to the final state and to the next-token distribution, row by row.

Everything here is computed in float64, in forms that stay accurate when the change is tiny.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.errors import RunError
from workbench.models.hooked import HookedLVLM
from workbench.runs.job import MEASURES
from workbench.runs.vocabulary import OF_VOCABULARY, over_vocabulary, wide


def angle_degrees(one: Float[Tensor, "... d"], other: Float[Tensor, "... d"]) -> Float[Tensor, "..."]:
    """Angle between vectors in degrees, 0-180; exact near 0 and 180, where acos loses half its digits.

    Source:
        W. Kahan's 2 atan2(|u - v|, |u + v|) for unit vectors u, v.
    """
    u = one / one.norm(dim=-1, keepdim=True)
    v = other / other.norm(dim=-1, keepdim=True)
    return torch.rad2deg(2 * torch.atan2((u - v).norm(dim=-1), (u + v).norm(dim=-1)))


def check_states(
    model: HookedLVLM,
    states: Float[Tensor, "prompt row d_model"],
    logits: Float[Tensor, "prompt row vocab"],
    prompts: Sequence[str] = (),
) -> None:
    """Refuse unmasked states from which nothing can be measured.

    Args:
        prompts: Names of the prompts, for the message.

    Raises:
        RunError: For states or logits that are not finite numbers, and for states of length zero, which have no
            direction; it names the prompts and masks.
    """
    _refuse(model, states, logits.isfinite().all(-1), prompts, ())


def _refuse(model: HookedLVLM, states: Tensor, finite: Tensor, prompts: Sequence[str], rows: Sequence[str]) -> None:
    """As `check_states`; `finite` says of which rows the logits are finite, `[prompt, row]`."""
    finite = states.isfinite().all(-1) & finite
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
    measures: Sequence[str] = MEASURES,
    prompts: Sequence[str] = (),
    rows: Sequence[str] = ("masked",),
) -> dict[str, Float[Tensor, "prompt row"]]:
    """Per-cell variables of a run (units in the Records of the run) for some masked states.

    KL is KL(base || masked) in nats; `refusal_change` is masked - base, negative when the heads helped to refuse.
    A row whose state equals the base state bit for bit gets exactly 0 (and a norm ratio of exactly 1).

    Args:
        measures: Which of `MEASURES`. Where none needs the next-token distribution, nothing is unembedded.
        prompts: Names of the prompts, for messages.
        rows: Names of the masks, for messages.

    Raises:
        RunError: For states that nothing can be measured from; see `check_states`.
    """
    check_states(model, base_state[:, None], base_logits[:, None], prompts)
    found, finite = {}, torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
    if set(measures) & set(OF_VOCABULARY):
        found = over_vocabulary(model, base_logits, states)
        finite = found.pop("finite") > 0
        model.work.readouts += states.shape[0] * states.shape[1]
    _refuse(model, states, finite, prompts, rows)
    base_state, states = wide(base_state)[:, None], wide(states)
    found |= {
        "deflection": angle_degrees(base_state.expand_as(states), states),
        "l2": (states - base_state).norm(dim=-1),
        "norm_ratio": states.norm(dim=-1) / base_state.norm(dim=-1),
    }
    # Logits of equal states may differ in the last bit when the batch has another shape; equal is equal.
    same = (states == base_state).all(-1)
    return {name: found[name].masked_fill(same, 1.0 if name == "norm_ratio" else 0.0) for name in measures}
