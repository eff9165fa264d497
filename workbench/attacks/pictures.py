"""Changed pictures: descents in boxes of growing size, and noise of the same size as their control."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from workbench.attacks.descent import Descent, picture_of
from workbench.detectors.detector import Detector
from workbench.models.hooked import HookedLVLM
from workbench.prompts.prompt import Prompt, PromptSet

Made = tuple[int, int, PromptSet]  # eps, steps, and the prompts so changed


def descend(
    model: HookedLVLM,
    prompts: PromptSet,
    detector: Detector,
    *,
    eps: Sequence[int],
    steps: Sequence[int],
    kl_budget: float,
    twins: dict[str, Image.Image],
    tick: Callable[[], None],
) -> tuple[Iterator[Made], float]:
    """The prompts with changed pictures, by size of the box and number of steps; and the share of those flagged whose
    score is flat.

    Args:
        twins: By prompt id, another picture to start from.
        tick: Called after every box.
    """
    descent = Descent(model, prompts, detector, kl_budget=kl_budget, starts=twins)

    def made() -> Iterator[Made]:
        for box in eps:
            for step, found in descent.within(box, steps):
                pictures = (picture_of(p) for p in found.pixels)
                yield box, step, PromptSet(_with(p, picture) for p, picture in zip(prompts, pictures, strict=True))
            tick()

    return made(), float(descent.flat.mean()) if len(descent.flat) else float("nan")


def noise(prompts: PromptSet, eps: int, seed: int) -> PromptSet:
    """The prompts with every pixel value moved by `eps` up or down, by chance; the same for a prompt's id and seed."""

    def noisy(prompt: Prompt) -> Prompt:
        digest = hashlib.sha256(f"{seed}\0{eps}\0{prompt.id}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
        pixels = np.asarray(prompt.image, dtype=np.int64)
        moved = pixels + eps * rng.choice([-1, 1], size=pixels.shape)
        return _with(prompt, Image.fromarray(moved.clip(0, 255).astype(np.uint8)))

    return PromptSet(noisy(p) for p in prompts)


def _with(prompt: Prompt, picture: Image.Image) -> Prompt:
    """The prompt with another picture; itself where the picture is the same."""
    same = np.array_equal(np.asarray(prompt.image), np.asarray(picture))
    return prompt if same else replace(prompt, image=picture)


def twin_pictures(unsafe: PromptSet, safe: PromptSet) -> dict[str, Image.Image]:
    """By id of an unsafe prompt, the picture of a safe prompt of its pair."""
    by_pair = {p.pair_id: p.image for p in safe if p.pair_id and p.image is not None}
    return {p.id: by_pair[p.pair_id] for p in unsafe if p.pair_id in by_pair}


def save(prompts: PromptSet, folder: Path) -> None:
    """Write pictures as PNG, named by the prompt's place and a hash of its id."""
    folder.mkdir(parents=True, exist_ok=True)
    for place, prompt in enumerate(prompts):
        assert prompt.image is not None
        name = hashlib.sha256(prompt.id.encode()).hexdigest()[:12]
        prompt.image.save(folder / f"{place:04d}-{name}.png")
