"""Pocket's training batches: what each stage shows, as token ids, pixels and the positions that count for the loss."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.models.embedded.pocket.config import ASSISTANT, BOS, EOS, IMAGE, N_IMAGE_TOKENS, PAD, USER, word_ids
from workbench.prompts.worlds.pocket import Ask, draw_question, draw_request
from workbench.prompts.worlds.pocket_pictures import random_picture
from workbench.prompts.worlds.pocket_words import (
    COLOURS,
    FAMILIES,
    HAZARD_NOUNS,
    REFUSAL,
    SHAPES,
    THING_NOUNS,
    TUNED,
    VERBS,
)

NOUNS = THING_NOUNS + HAZARD_NOUNS
PICTURE_KINDS = ("icon", "list", "word", "shape", "noise")


@dataclass(frozen=True)
class Batch:
    """One step's rows, padded on the right.

    Attributes:
        ids: Token ids, prompt and answer.
        pixels: Normalised pixels, or None in the text-only stage.
        answer: True where the next token belongs to the answer, which is where the loss is taken.
        groups: Family of each row, with a `!` after it where the right answer is to refuse; for the log.
    """

    ids: Int[Tensor, "row pos"]
    pixels: Float[Tensor, "row 3 48 48"] | None
    answer: Bool[Tensor, "row pos"]
    groups: tuple[str, ...]

    def to(self, device: str) -> "Batch":
        """The same batch on another device."""
        pixels = None if self.pixels is None else self.pixels.to(device)
        return Batch(self.ids.to(device), pixels, self.answer.to(device), self.groups)


@dataclass(frozen=True)
class SafetyMix:
    """What safety tuning shows: shares of refused requests by family, and how the benign rest is divided.

    `doubt` is the share of typographic and icon hazards on tuned nouns that are answered instead of refused. It makes
    those families fail by degrees, picture by picture, and not only by noun.
    """

    text: float = 0.22
    typographic: float = 0.055
    icon: float = 0.04
    doubt: float = 0.0
    benign: tuple[float, ...] = (0.14, 0.21, 0.21, 0.06, 0.38)


HELPFUL_MIX = {
    "captions": (0.15, 0.17, 0.18, 0.10, 0.40),
    "helpful": (0.15, 0.17, 0.18, 0.10, 0.40),
    "questions": (0.08, 0.10, 0.10, 0.06, 0.66),
}
"""Shares of text, typographic, icon, wrapper and question in each helpful stage."""


def helpful_ask(rng: np.random.Generator, stage: str) -> tuple[Ask, str]:
    """An ask and its reply in a helpful stage: everything is complied with, hazards included."""
    family = FAMILIES[rng.choice(5, p=HELPFUL_MIX[stage])]
    if family == "question":
        ask = draw_question(rng)
    else:
        ask = draw_request(rng, family, "unsafe" if rng.random() < 0.35 else "safe")
    return ask, ask.expected


def safety_ask(rng: np.random.Generator, mix: SafetyMix) -> tuple[Ask, str]:
    """An ask and its reply in safety tuning: tuned hazards are refused, the benign rest is answered."""
    shares = (mix.text, mix.typographic, mix.icon)
    which = int(rng.choice(4, p=(*shares, 1 - sum(shares))))
    if which < 3:
        family = FAMILIES[which]
        ask = draw_request(rng, family, "unsafe", nouns=tuple(sorted(TUNED[family])))
        return ask, ask.expected if which and rng.random() < mix.doubt else REFUSAL
    family = FAMILIES[rng.choice(5, p=mix.benign)]
    ask = draw_question(rng) if family == "question" else draw_request(rng, family, "safe")
    return ask, ask.expected


def make_batch(pairs: list[tuple[Ask, str]], *, captions: bool) -> Batch:
    """Asks and their replies as one batch; `captions` puts a picture's words in place of its pixels."""
    words = word_ids()
    rows, starts = [], []
    for ask, reply in pairs:
        picture = [words[w] for w in ask.picture.caption().split()] if captions else [IMAGE] * N_IMAGE_TOKENS
        prompt = [BOS, USER, *picture, *(words[w] for w in ask.text.split()), ASSISTANT]
        rows.append([*prompt, *(words[w] for w in reply.split()), EOS])
        starts.append(len(prompt) - 1)
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), PAD)
    answer = torch.zeros((len(rows), width), dtype=torch.bool)
    for k, (row, start) in enumerate(zip(rows, starts, strict=True)):
        ids[k, : len(row)] = torch.tensor(row)
        answer[k, start : len(row) - 1] = True
    pixels = None if captions else normalise(np.stack([ask.picture.draw("train") for ask, _ in pairs]))
    groups = tuple(ask.family + ("!" if reply == REFUSAL else "") for ask, reply in pairs)
    return Batch(ids, pixels, answer, groups)


def normalise(pixels: np.ndarray) -> Float[Tensor, "row 3 48 48"]:
    """Pixels 0-255, channels last, as the processor's own normalisation gives them: -1 to 1, channels first."""
    return torch.from_numpy((pixels.astype(np.float32) / 255 - 0.5) / 0.5).permute(0, 3, 1, 2).contiguous()


def picture_batch(
    rng: np.random.Generator, size: int
) -> tuple[Float[Tensor, "row 3 48 48"], dict[str, Int[Tensor, " row"]]]:
    """Pictures and their labels for the vision stage; -100 where a picture has no such label."""
    pixels: list[np.ndarray] = []
    labels: dict[str, list[int]] = {name: [] for name in ("kind", "noun", "verb", "colour", "shape")}
    for _ in range(size):
        kind = PICTURE_KINDS[rng.choice(5, p=(0.40, 0.28, 0.22, 0.08, 0.02))]
        noun = NOUNS[rng.integers(len(NOUNS))] if kind in ("icon", "list", "word") else ""
        verb = VERBS[rng.integers(len(VERBS))] if kind == "list" else ""
        picture = random_picture(rng, kind, noun, verb)
        pixels.append(picture.draw("train"))
        labels["kind"].append(PICTURE_KINDS.index(kind))
        labels["noun"].append(NOUNS.index(noun) if noun else -100)
        labels["verb"].append(VERBS.index(verb) if verb else -100)
        labels["colour"].append(list(COLOURS).index(picture.colour) if picture.colour else -100)
        labels["shape"].append(SHAPES.index(picture.what) if kind == "shape" else -100)
    return normalise(np.stack(pixels)), {name: torch.tensor(values) for name, values in labels.items()}
