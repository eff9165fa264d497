"""Many replies at once: prompts that can share a batch without padding are decoded together, under one mask."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import torch
from transformers import LogitsProcessor

from workbench.axes import MASKABLE, Head, as_heads
from workbench.checking import Converted, Finite, OneOf, Seed, Whole, checked
from workbench.models.bound import with_source
from workbench.models.encodings import Encodings
from workbench.models.hooked import HookedLVLM
from workbench.models.masks import Mask
from workbench.prompts.prompt import Prompt, PromptSet
from workbench.sweeps.execution import progress_bar
from workbench.sweeps.plan import batches

ROWS = 64  # prompts decoded together, at most
LONGEST = 10**6  # tokens


def _as_batch(prompts: Any) -> list[Prompt]:
    """Prompts to answer. Unlike a set, a batch may hold one prompt several times, to draw replies, or none at all."""
    found = [prompts] if isinstance(prompts, Prompt) else list(prompts) if isinstance(prompts, Iterable) else []
    if not all(isinstance(prompt, Prompt) for prompt in found) or not (found or isinstance(prompts, Sequence)):
        raise ValueError("must be prompts, as wb.load_prompts gives them")
    return found


@checked
def generate_batch(
    model: HookedLVLM,
    prompts: Annotated[Sequence[Prompt], Converted(_as_batch)],
    *,
    max_new_tokens: Annotated[int, Whole(1, LONGEST)] = 32,
    heads: Annotated[Sequence[Head], Converted(as_heads)] = (),
    projection: Annotated[str, OneOf(MASKABLE)] = "query",
    mask: Mask | None = None,
    opening: str = "",
    do_sample: bool = False,
    temperature: Annotated[float, Finite(1e-3, 1e3)] = 1.0,
    top_k: Annotated[int, Whole(0, LONGEST)] = 0,
    top_p: Annotated[float, Finite(1e-6, 1)] = 1.0,
    num_beams: Annotated[int, Whole(1, 1000)] = 1,
    seed: Seed | None = None,
    rows: Annotated[int, Whole(1)] = ROWS,
    progress: bool | str = False,
    stream: Callable[[int, str], Any] | None = None,
) -> list[str]:
    """The reply to each prompt, with the given (layer, head) pairs masked in the prompt and while decoding.

    Without sampling it is what `model.generate` says prompt by prompt, up to the last bits of a batched product: where
    two tokens are as good as equally likely, a batch may choose the other one.

    Args:
        model: The model that answers.
        prompts: What it is asked.
        max_new_tokens: Length of a reply at most, a forced opening included.
        heads: Heads to mask.
        projection: Which projection of them.
        mask: How; a form that takes z of other prompts takes them from these, unless it names its own.
        opening: Every reply begins with these words, whatever the model would say.
        do_sample: Draw tokens instead of taking the likeliest; the next three say how.
        temperature: Divides the logits.
        top_k: Draw among this many likeliest tokens; 0 for all.
        top_p: Draw among the likeliest tokens that together have this probability.
        num_beams: Beams of a beam search; 1 for none.
        seed: Of the draws; None draws on from the generator of the process.
        rows: Most prompts in one batch.
        progress: Show a bar with the time left, or words for it.
        stream: Called with a prompt's place and its reply as soon as its batch is done.

    Returns:
        Replies in the order of the prompts.

    Examples:
        >>> import workbench as wb
        >>> from workbench.replies import generate_batch
        >>> generate_batch(wb.load_model("planted"), wb.load_prompts("planted", n=2))
        ['i cannot help with that', 'sure here it is']
    """
    if heads and mask is not None and prompts:
        mask = with_source(model, mask, PromptSet(prompts))
    encoded = Encodings(model, prompts)
    options: dict[str, Any] = {"heads": heads, "projection": projection, "mask": mask, "num_beams": num_beams}
    if do_sample:
        options |= {"do_sample": True, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    forced = token_ids(model, opening)
    replies = [""] * len(prompts)
    with _seeded(model, seed), progress_bar(bool(progress)) as bar:
        line = bar.add_task(progress if isinstance(progress, str) else "replies", total=len(prompts))
        for batch in batches(encoded, rows):
            first = ForcedOpening(forced, encoded[batch[0]].n_tokens)
            more: dict[str, Any] = {"logits_processor": [first]} if forced else {}
            out = model.generated([encoded[i] for i in batch], max_new_tokens=max_new_tokens, **options, **more)
            new = out.sequences[:, out.n_prompt_tokens :]
            for i, reply in zip(batch, model.tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
                replies[i] = reply.strip()
                if stream is not None:
                    stream(i, replies[i])
            bar.advance(line, len(batch))
    return replies


class ForcedOpening(LogitsProcessor):
    """Makes the first tokens of a reply certain, whatever the model would say.

    Args:
        opening: Token ids, in order.
        n_prompt: Tokens of the prompt.
    """

    def __init__(self, opening: Sequence[int], n_prompt: int) -> None:
        self.opening, self.n_prompt = tuple(opening), n_prompt

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = input_ids.shape[1] - self.n_prompt
        if not 0 <= step < len(self.opening):
            return scores
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.opening[step]] = 0.0
        return forced


def token_ids(model: HookedLVLM, text: str) -> list[int]:
    """Ids of a text's tokens, without those that a tokenizer adds of itself."""
    return list(model.tokenizer.encode(text, add_special_tokens=False)) if text else []


def can_write(model: HookedLVLM, text: str) -> bool:
    """Whether the tokenizer knows all of the text."""
    unknown = getattr(model.tokenizer, "unk_token_id", None)
    return unknown is None or unknown not in token_ids(model, text)


@contextmanager
def _seeded(model: HookedLVLM, seed: int | None) -> Iterator[None]:
    """Draws of a seed for the length of a block, after which the process draws on as if nothing had been."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
