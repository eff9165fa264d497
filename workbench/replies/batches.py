"""Many replies at once: prompts that can share a batch without padding are decoded together, under one mask."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from workbench.errors import WorkbenchError
from workbench.models.hooked import HookedLVLM
from workbench.models.masks import Mask
from workbench.models.precision import double_kept
from workbench.models.walk import join
from workbench.prompts.prompt import Prompt
from workbench.sweeps.plan import batches

ROWS = 64  # prompts decoded together, at most


def generate_batch(
    model: HookedLVLM,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 32,
    heads: Sequence[tuple[int, int]] = (),
    projection: str = "query",
    mask: Mask | None = None,
    rows: int = ROWS,
    **options: Any,
) -> list[str]:
    """The greedy reply to each prompt, with the given (layer, head) pairs masked in the prompt and while decoding.

    What `model.generate` says prompt by prompt, up to the last bits of a batched product: where two tokens are as good
    as equally likely, a batch may choose the other one.

    Args:
        rows: Most prompts in one batch.
        options: For transformers' `generate`.

    Returns:
        Replies in the order of the prompts.
    """
    if max_new_tokens < 1:
        raise WorkbenchError(f"max_new_tokens must be at least 1; got {max_new_tokens}.")
    mask = mask or Mask()
    encoded = [model.encode(prompt) for prompt in prompts]
    replies = [""] * len(prompts)
    for batch in batches(encoded, rows):
        together = [encoded[i] for i in batch]
        start = mask.start(together[0]) if heads else 0
        masked = model.masked(heads, projection, mask, start)
        with torch.no_grad(), masked, model.plain_generation(), double_kept(model.dtype):
            out = model.hf.generate(
                **join(together),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                # A cache without sliding layers, so that a position keeps its index while decoding.
                past_key_values=DynamicCache(),
                **options,
            )
        new = out[:, together[0].n_tokens :]
        for i, reply in zip(batch, model.tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
            replies[i] = reply.strip()
    return replies
