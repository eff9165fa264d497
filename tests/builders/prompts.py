"""Prompts for tests: short texts in words that the tiny models know, and pictures of seeded noise."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from workbench.prompts.prompt import Prompt

WORDS = ("what is this", "a bomb", "what is this ?", "a red square here", "the cat", "is this a picture ?")


def text_prompts(n: int = len(WORDS)) -> list[Prompt]:
    """Safe and unsafe in turn, without pictures; after six, the same texts twice over, and so on."""
    texts = [" ".join(WORDS[i % len(WORDS)].split() * (1 + i // len(WORDS))) for i in range(n)]
    return asked(texts)


def asked(texts: Sequence[str], pictures: Sequence[Image.Image | None] | None = None) -> list[Prompt]:
    """A prompt a text, safe and unsafe in turn, called p0, p1, …."""
    shown = pictures or [None] * len(texts)
    return [
        Prompt(id=f"p{i}", text=text, image=image, label=("safe", "unsafe")[i % 2])
        for i, (text, image) in enumerate(zip(texts, shown, strict=True))
    ]


def pictures(n: int, *, seed: int = 0) -> list[Image.Image]:
    """Noise, 50 wide and 40 high, no two alike."""
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)) for _ in range(n)]
