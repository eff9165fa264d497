"""A model must prove itself when it loads: its masks act, and looking changes nothing.

What is shown, on one short prompt: (1) our fast tree gives the logits of transformers' eager attention; (2) every
layer's attention runs through the door where heads are masked; (3) going on from the first, a middle and the last
layer gives the state of the full forward; (4) masking moves the state, for both projections, and so does half a mask;
(5) recording leaves the logits bit for bit as they were. `workbench check` does more
(`workbench.models.conformance.report`).
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from PIL import ImageOps

from workbench.errors import SelfCheckError
from workbench.models.hooked import HookedLVLM
from workbench.models.masks import Mask, head_writes, masked_z
from workbench.models.probes import (
    TOLERANCE_UNITS,
    eager_tolerance,
    known_tokens,
    probe_prompt,
    relative_error,
    tolerance,
)
from workbench.models.walk import BasePass, base_pass, resume
from workbench.prompts.prompt import Prompt


def check_at_load(model: HookedLVLM) -> None:
    """Run the checks of this module's docstring; raise SelfCheckError with the first that fails."""
    work = model.work
    model.work = type(work)()
    try:
        _check(model)
    finally:
        model.work = work


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
    error = relative_error(before, reference)
    _near(model, "the fast tree against transformers' eager attention", error, eager_tolerance(model))
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
                    "A sweep would report zeros for the wrong reason, so this model is refused. "
                    + _ruled_out(model, prompt, base)
                )


def _ruled_out(model: HookedLVLM, prompt: Prompt, base: BasePass) -> str:
    """What else could have kept the masks from acting, and did not, or did."""
    known = known_tokens(model.tokenizer, prompt.text)
    words = f"Its words are {known} different tokens known to the tokenizer, so they are not the cause."
    if known < 2:
        words = f"The tokenizer tells no words apart (not even {prompt.text!r}), which may be the cause."
    if prompt.image is None:
        return words
    other = dataclasses.replace(prompt, image=ImageOps.invert(prompt.image))
    moved = relative_error(base_pass(model, [model.encode(other)]).state, base.state)
    seen = "so the picture reaches it" if moved else "so it is blind to it, which may be the cause"
    return f"{words} The inverted picture moves the state by {moved:.1e}, {seen}."


def _near(model: HookedLVLM, what: str, error: float, limit: float) -> None:
    if not error <= limit:
        raise SelfCheckError(
            f"{model.name!r}: {what} differs by {error:.1e} of the largest value; wanted at most {limit:.1e} in "
            f"{model.dtype}. Run `workbench check` on it for the whole report."
        )
