"""Changed texts: another sentence of the world for the same request, and harmless words of its vocabulary added.

Only the embedded worlds have such sentences and words. The request stays what it is: its verb and its noun are those of
the prompt, and no hazard is ever added.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from workbench.attacks.descent import drawn_scores
from workbench.attacks.pictures import Made
from workbench.detectors.detector import Detector
from workbench.detectors.gradients import next_token_kl
from workbench.errors import PromptError
from workbench.models.hooked import HookedLVLM
from workbench.prompts.prompt import Prompt, PromptSet
from workbench.prompts.worlds import planted, pocket, pocket_words

TRIED = 16  # words of the vocabulary that are tried at each step, drawn by seed


def search(
    model: HookedLVLM,
    prompts: PromptSet,
    detector: Detector,
    logits: Callable[[Sequence[Prompt]], torch.Tensor],
    *,
    steps: Sequence[int],
    kl_budget: float,
    seed: int,
    tick: Callable[[], None],
) -> Iterator[Made]:
    """The prompts with changed texts, after each number of steps: first another sentence, then a word more at a time.

    A candidate is taken where its next-token distribution stays within the budget of the prompt's own and its score is
    lower; it needs the detector's scores only, and no gradients.

    Args:
        logits: Next-token logits of prompts, [prompt, vocab].
        tick: Called after every step.

    Raises:
        PromptError: For prompts that are of no embedded world.
    """
    if strangers := [p.id for p in prompts if p.source not in ("pocket", "planted")]:
        raise PromptError(
            "Texts are changed only on prompts of Pocket's and the planted world, whose sentences and words are known; "
            f"{len(strangers)} of {len(prompts)} are of neither (first: {strangers[0]!r}). Use side='picture'."
        )
    before, rng = logits(prompts), np.random.default_rng(seed)
    now = list(prompts)
    score = drawn_scores(detector, model, prompts).max(0)
    for step in range(max(steps) + 1):
        if step:
            offers = [sentences(p) for p in now] if step == 1 else [_longer(p, rng) for p in now]
            for number in range(max(map(len, offers))):
                tried = [replace(p, text=o[number]) if number < len(o) else p for p, o in zip(now, offers, strict=True)]
                scores = drawn_scores(detector, model, tried).max(0)
                kl = next_token_kl(before, logits(tried)).cpu().numpy()
                better = (scores < score) & (kl <= kl_budget)
                score = np.where(better, scores, score)
                now = [t if b else p for t, p, b in zip(tried, now, better, strict=True)]
            tick()
        if step in steps:
            yield 0, step, PromptSet(now)


def sentences(prompt: Prompt) -> list[str]:
    """Other ways of Pocket's world to ask for the same; the planted world has none."""
    if prompt.source != "pocket" or prompt.family not in pocket_words.SENTENCES:
        return []
    words = {"verb": pocket.verb_of(prompt), "noun": pocket.noun_of(prompt)}
    every = [s.format(**words) for s in pocket_words.SENTENCES[prompt.family]]
    return [text for text in every if text != prompt.text]


def harmless_words(source: str) -> list[str]:
    """Words of a world's vocabulary that name no hazard, no verb of a request, and nothing of a reply."""
    if source == "planted":
        return [*planted.FILLERS, *planted.MANNERS]
    said = f"{pocket_words.REFUSAL} {pocket_words.COMPLIANCE}".split()
    left_out = {*pocket_words.HAZARD_NOUNS, *pocket_words.VERBS, *said}
    return [word for word in pocket_words.vocabulary() if word.isalpha() and word not in left_out]


def _longer(prompt: Prompt, rng: np.random.Generator) -> list[str]:
    words = harmless_words(prompt.source)
    drawn = rng.choice(len(words), size=min(TRIED, len(words)), replace=False)
    return [f"{words[i]} {prompt.text}" for i in drawn]
