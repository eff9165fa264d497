"""Many replies at once: prompts that can share a batch without padding are decoded together, under one mask."""

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

from workbench.axes import PROJECTIONS, Head, as_heads
from workbench.checking import Converted, OneOf, Whole, checked
from workbench.errors import WorkbenchError
from workbench.models.hooked import HookedLVLM
from workbench.models.masks import Mask
from workbench.prompts.prompt import Prompt
from workbench.sweeps.plan import batches

ROWS = 64  # prompts decoded together, at most


def _as_prompts(prompts: Any) -> list[Prompt]:
    found = [prompts] if isinstance(prompts, Prompt) else list(prompts) if isinstance(prompts, Iterable) else []
    if not all(isinstance(prompt, Prompt) for prompt in found) or not (found or isinstance(prompts, Sequence)):
        raise ValueError("must be prompts, as wb.load_prompts gives them")
    return found


@checked
def generate_batch(
    model: HookedLVLM,
    prompts: Annotated[Sequence[Prompt], Converted(_as_prompts)],
    *,
    max_new_tokens: int = 32,
    heads: Annotated[Sequence[Head], Converted(as_heads)] = (),
    projection: Annotated[str, OneOf(PROJECTIONS)] = "query",
    mask: Mask | None = None,
    rows: Annotated[int, Whole(1)] = ROWS,
    **options: Any,
) -> list[str]:
    """The greedy reply to each prompt, with the given (layer, head) pairs masked in the prompt and while decoding.

    What `model.generate` says prompt by prompt, up to the last bits of a batched product: where two tokens are as good
    as equally likely, a batch may choose the other one.

    Args:
        rows: Most prompts in one batch.
        options: For transformers' `generate` (do_sample, temperature, top_p, num_beams, …).

    Returns:
        Replies in the order of the prompts.
    """
    if max_new_tokens < 1:
        raise WorkbenchError(f"max_new_tokens must be at least 1; got {max_new_tokens}.")
    if options.get("num_return_sequences", 1) != 1:
        raise WorkbenchError("generate_batch gives one reply a prompt. For several, give the prompt several times.")
    encoded = [model.encode(prompt) for prompt in prompts]
    masked: dict[str, Any] = {"heads": heads, "projection": projection, "mask": mask}
    replies = [""] * len(prompts)
    for batch in batches(encoded, rows):
        out = model.generated([encoded[i] for i in batch], max_new_tokens=max_new_tokens, **masked, **options)
        new = out.sequences[:, out.n_prompt_tokens :]
        for i, reply in zip(batch, model.tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
            replies[i] = reply.strip()
    return replies
