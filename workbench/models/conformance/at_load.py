"""A model must prove itself when it loads: its masks act, and looking changes nothing.

What is shown, on one short prompt: (1) our fast tree gives the logits of transformers' eager attention; (2) every
layer's attention runs through the door where heads are masked; (3) going on from the first, a middle and the last
layer gives the state of the full forward; (4) masking moves the state, for both projections, and so does half a mask;
(5) recording leaves the logits bit for bit as they were. `workbench check` does more
(`workbench.models.conformance.report`).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from PIL import Image
from torch import Tensor

from workbench.errors import SelfCheckError
from workbench.models.hooked import HookedLVLM
from workbench.models.masks import Mask, head_writes, masked_z
from workbench.models.walk import base_pass, resume
from workbench.prompts.prompt import Prompt

# Largest relative error on final states between two roads, as a multiple of the dtype's rounding unit. Two orders of
# summation over a few hundred terms differ by tens of units; an intervention that acts differs by thousands.
TOLERANCE_UNITS = 300
# In half precision one rounding unit is already a percent or a tenth of one, and errors grow with depth, not with the
# length of sums, which are kept in float32.
HALF_TOLERANCE_UNITS = 16


def check_at_load(model: HookedLVLM) -> None:
    """Run the checks of this module's docstring; raise SelfCheckError with the first that fails."""
    work = model.work
    model.work = type(work)()
    try:
        _check(model)
    finally:
        model.work = work


def probe_prompt(model: HookedLVLM, side: int = 64) -> Prompt:
    """A prompt for checks: a few words of the model's vocabulary, and a picture with structure if it sees pictures."""
    picture = None
    if model.family.has_images:
        ramp = torch.arange(side * side, dtype=torch.int64).view(side, side)
        pixels = torch.stack([ramp % 251, (ramp * 7) % 253, (ramp // side * 5) % 255], -1).to(torch.uint8)
        picture = Image.fromarray(pixels.numpy())
    return Prompt(id="self-check", text="what is this", image=picture)


@contextmanager
def eager_attention(model: HookedLVLM) -> Iterator[None]:
    """transformers' own eager attention for the length of a block; the sites do nothing meanwhile."""
    configs = model.attention_configs()
    with model.lock:
        before = [c._attn_implementation for c in configs]
        for config in configs:
            config._attn_implementation = {"": "eager"}
        try:
            yield
        finally:
            for config, name in zip(configs, before, strict=True):
                config._attn_implementation = {"": name}


def relative_error(one: Tensor, other: Tensor) -> float:
    """Largest absolute difference over the largest absolute value."""
    return float((one - other).abs().max() / other.abs().max().clamp_min(1e-30))


def tolerance(model: HookedLVLM) -> float:
    """Relative error on final states below which two roads count as one, at the model's dtype."""
    half = torch.finfo(model.dtype).bits < 32
    return (HALF_TOLERANCE_UNITS if half else TOLERANCE_UNITS) * torch.finfo(model.dtype).eps


def movement_bound(model: HookedLVLM, noise: float) -> float:
    """Relative change of the final state above which a mask has acted, given the error of resuming without one."""
    eps = torch.finfo(model.dtype).eps
    return max(3 * noise, 2 * eps) if torch.finfo(model.dtype).bits < 32 else TOLERANCE_UNITS * eps


def _check(model: HookedLVLM) -> None:
    prompt = probe_prompt(model)
    before = model.logits(prompt)
    if not before.isfinite().all():
        raise SelfCheckError(
            f"{model.name!r}: {int((~before.isfinite()).sum())} of {len(before)} logits on one prompt are not finite "
            f"numbers. The weights are damaged, or {model.dtype} is too narrow for this model; try another dtype."
        )
    encoded = model.encode(prompt)
    with eager_attention(model):
        reference = model.hf(**encoded.model_inputs, use_cache=False, logits_to_keep=1).logits[0, -1]
    limit = tolerance(model)
    # Eager attention rounds its softmax to float32 whatever the model's dtype, so float64 is no stricter here.
    eager_limit = max(limit, TOLERANCE_UNITS * torch.finfo(torch.float32).eps)
    _near(model, "the fast tree against transformers' eager attention", relative_error(before, reference), eager_limit)
    base = base_pass(model, [encoded])
    if not torch.equal(base.logits[0], model.logits(prompt)):
        raise SelfCheckError(
            f"{model.name!r}: recording changed the logits, so looking is not harmless here. Please report this."
        )
    noise = 0.0
    for layer in {0, model.n_layers // 2, model.n_layers - 1}:
        error = relative_error(resume(model, base, layer, 1)[:, 0], base.state)
        noise = max(noise, error)
        _near(model, f"going on from layer {layer}", error, limit)
    bound = movement_bound(model, noise)
    for form, factor in (("limit", 0.0), ("scale", 0.5)):
        mask = Mask(form=form, factor=factor)  # type: ignore[arg-type]
        for projection in ("query", "value"):
            moved = 0.0
            for layer in model.masked_layers:
                delta = masked_z(model, base, layer, projection, mask) - base.recordings[layer].z
                # Every other head: where a norm follows W_O, scaling all heads alike would be divided out again.
                writes = head_writes(model, layer, delta, [tuple(range(0, model.n_heads, 2))])
                moved = max(moved, relative_error(resume(model, base, layer, 1, writes=writes)[:, 0], base.state))
                if moved > bound:
                    break
            else:
                raise SelfCheckError(
                    f"{model.name!r}: masking the {projection} projection of every other head ({form}, factor "
                    f"{factor}) moves the final state by {moved:.1e} of its size in the most sensitive layer, less "
                    f"than the rounding bound {bound:.1e}. "
                    "A sweep would report zeros for the wrong reason, so this model is refused."
                )


def _near(model: HookedLVLM, what: str, error: float, limit: float) -> None:
    if not error <= limit:
        raise SelfCheckError(
            f"{model.name!r}: {what} differs by {error:.1e} of the largest value; wanted at most {limit:.1e} in "
            f"{model.dtype}. Run `workbench check` on it for the whole report."
        )
