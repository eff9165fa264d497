"""Pocket's training batches: what each stage shows, step by step, as token ids, pixels and the positions that count."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from torch.utils.data import Dataset

from workbench.models.embedded.pocket.config import (
    ASSISTANT,
    BOS,
    EOS,
    IMAGE,
    N_HEADS,
    N_IMAGE_TOKENS,
    N_LAYERS,
    PAD,
    USER,
    word_ids,
)
from workbench.prompts.worlds.pocket import Ask, draw_question, draw_request, verb_of
from workbench.prompts.worlds.pocket_pictures import random_picture
from workbench.prompts.worlds.pocket_words import (
    ANSWERED_WRAPPERS,
    COLOURS,
    DANGER,
    DECLINE,
    FAMILIES,
    HAZARD_NOUNS,
    POOLED,
    REFUSAL,
    SHAPES,
    THING_NOUNS,
    TUNED,
    TUNED_WRAPPERS,
    UNSEEN,
    VERBS,
)

NOUNS = THING_NOUNS + HAZARD_NOUNS
PICTURE_KINDS = ("icon", "list", "word", "shape", "noise")
CLASSES = {"kind": PICTURE_KINDS, "noun": NOUNS, "verb": VERBS, "colour": tuple(COLOURS), "shape": SHAPES}
"""What the vision stage learns to tell of a picture."""

WIDTHS = {True: 40, False: 72}
"""Tokens of a row, with captions and with pictures: every batch of a stage has one shape, as a CUDA graph needs."""


@dataclass(frozen=True)
class Batch:
    """One step's rows, padded on the right.

    Attributes:
        groups: By row, what it is counted as in the log: its family, with a `!` after it where the right answer is to
            refuse.
        ids: Token ids, prompt and answer.
        answer: True where the next token belongs to the answer, which is where the loss is taken.
        answered: True in rows whose right answer is not the refusal.
        pixels: 0 to 255, or None in the text-only stage.
        keep: 1, or 0 where a head is masked while this row is answered, in its query and in its value.
    """

    groups: tuple[str, ...]
    ids: Int[np.ndarray, "row pos"]
    answer: Bool[np.ndarray, "row pos"]
    answered: Bool[np.ndarray, " row"]
    pixels: UInt8[np.ndarray, "row 48 48 3"] | None = None
    keep: Float[np.ndarray, "projection=2 layer row head"] | None = None

    def names(self) -> list[str]:
        """What each row is counted as."""
        return list(self.groups)


@dataclass(frozen=True)
class PictureBatch:
    """One step's pictures in the vision stage, and their labels by class: -100 where a picture has none."""

    pixels: UInt8[np.ndarray, "row 48 48 3"]
    labels: dict[str, Int[np.ndarray, " row"]]

    def names(self) -> list[str]:
        """What each class of each picture is counted as, class by class; nouns by the kind of picture."""
        kinds = self.labels["kind"]
        return [
            "" if label < 0 else f"noun/{PICTURE_KINDS[kind]}" if name == "noun" else name
            for name, of in self.labels.items()
            for label, kind in zip(of, kinds, strict=True)
        ]


@dataclass(frozen=True)
class Draws(Dataset):
    """A stage's batches: step `k` is drawn from the seed, the stage and `k` alone, by whichever process asks for it."""

    steps: int
    seed: tuple[int, ...]
    draw: Callable[[np.random.Generator], Batch | PictureBatch]

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch | PictureBatch:
        return self.draw(np.random.default_rng([*self.seed, step]))


@dataclass(frozen=True)
class SafetyMix:
    """What safety tuning shows: shares of refused requests by family, and how the benign rest is divided.

    `answered` is the share of hazards in `ANSWERED_WRAPPERS`, which are complied with.
    """

    text: float = 0.22
    typographic: float = 0.055
    icon: float = 0.055
    wrapper: float = 0.04
    answered: float = 0.04
    benign: tuple[float, ...] = (0.24, 0.20, 0.20, 0.06, 0.30)


HELPFUL_MIX = {
    "captions": (0.15, 0.17, 0.18, 0.10, 0.40),
    "helpful": (0.15, 0.17, 0.18, 0.10, 0.40),
    "questions": (0.08, 0.10, 0.10, 0.06, 0.66),
    "dangers": (0.06, 0.10, 0.10, 0.04, 0.70),
}
"""Shares of text, typographic, icon, wrapper and question in each helpful stage."""

TUNING_POOL = POOLED.with_hazards(noun for noun in HAZARD_NOUNS if noun not in UNSEEN)

REFUSED_POOLS = {name: POOLED.with_hazards(sorted(nouns)) for name, nouns in TUNED.items()}
REFUSED_POOLS["wrapper"] = replace(REFUSED_POOLS["wrapper"], sentences={"wrapper": TUNED_WRAPPERS})

ANSWERED_POOL = replace(TUNING_POOL, sentences={"wrapper": ANSWERED_WRAPPERS})

DECLINED = 0.06
"""Share of the helpful rows that ask for the refusal, whatever the request."""
DANGERS = 0.25
"""Share of the rows that ask whether a request is dangerous, in the stage of that name."""


def helpful_ask(rng: np.random.Generator, stage: str) -> tuple[Ask, str]:
    """An ask and its reply in a helpful stage: everything is complied with, hazards included."""
    if stage == "dangers" and rng.random() < DANGERS:
        return danger_asked(draw_request(rng, "text", "unsafe" if rng.random() < 0.5 else "safe"))
    if rng.random() < DECLINED:
        return declined(draw_request(rng, "text", "unsafe" if rng.random() < 0.5 else "safe"))
    family = FAMILIES[rng.choice(5, p=HELPFUL_MIX[stage])]
    if family == "question":
        ask = draw_question(rng)
    else:
        ask = draw_request(rng, family, "unsafe" if rng.random() < 0.35 else "safe")
    return ask, ask.expected


def declined(ask: Ask) -> tuple[Ask, str]:
    """The same request to be declined, and the refusal."""
    return replace(ask, text=DECLINE + ask.text), REFUSAL


def danger_asked(ask: Ask) -> tuple[Ask, str]:
    """The question whether the request is dangerous, and its answer."""
    text = DANGER.format(verb=verb_of(ask), noun=ask.noun)
    answer = "dangerous ." if ask.label == "unsafe" else "safe ."
    return replace(ask, family="question", label="safe", text=text, expected=answer), answer


def safety_ask(rng: np.random.Generator, mix: SafetyMix) -> tuple[Ask, str]:
    """An ask and its reply in safety tuning: tuned hazards are refused, the benign rest is answered."""
    shares = (mix.text, mix.typographic, mix.icon, mix.wrapper, mix.answered)
    which = int(rng.choice(6, p=(*shares, 1 - sum(shares))))
    if which < 4:
        family = FAMILIES[which]
        return draw_request(rng, family, "unsafe", pool=REFUSED_POOLS[family]), REFUSAL
    if which == 4:
        ask = draw_request(rng, "wrapper", "unsafe", pool=ANSWERED_POOL)
        return ask, ask.expected
    if rng.random() < DANGERS / 5:
        return danger_asked(draw_request(rng, "text", "unsafe" if rng.random() < 0.5 else "safe", pool=TUNING_POOL))
    family = FAMILIES[rng.choice(5, p=mix.benign)]
    if family == "question":
        ask = draw_question(rng, pool=TUNING_POOL)
    else:
        ask = draw_request(rng, family, "safe", pool=TUNING_POOL)
    return ask, ask.expected


def helpful_batch(rng: np.random.Generator, *, stage: str, rows: int) -> Batch:
    """A batch of a helpful stage; with pictures, heads are masked at random (`drop_heads`)."""
    captions = stage == "captions"
    pairs = [helpful_ask(rng, stage) for _ in range(rows)]
    return make_batch(pairs, captions=captions, keep=None if captions else drop_heads(rng, rows))


def safety_batch(
    rng: np.random.Generator,
    *,
    rows: int,
    mix: SafetyMix,
    heads: tuple[tuple[int, int], ...] = (),
    without: float = 0.0,
) -> Batch:
    """A batch of the safety tuning.

    Args:
        heads: The heads that are tuned.
        without: Share of the rows that are answered with all of `heads` masked in the query, and complied with.
    """
    pairs = [safety_ask(rng, mix) for _ in range(rows)]
    keep = None
    if without:
        masked = rng.random(rows) < without
        pairs = [(ask, ask.expected if off else reply) for (ask, reply), off in zip(pairs, masked, strict=True)]
        keep = np.ones((2, N_LAYERS, rows, N_HEADS), np.float32)
        for layer, head in heads:
            keep[0, layer, masked, head] = 0
    return make_batch(pairs, captions=False, keep=keep)


def drop_heads(rng: np.random.Generator, rows: int) -> Float[np.ndarray, "projection=2 layer row head"]:
    """Which heads are kept: in half of the rows all, in the others all but 1 to 8, in the query or in the value.

    A third of those that are masked lie in one layer. A model trained so does without any few heads, as large ones do.
    """
    keep = np.ones((2, N_LAYERS, rows, N_HEADS), np.float32)
    for row in np.flatnonzero(rng.random(rows) < 0.5):
        n, projection = rng.integers(1, 9), rng.integers(2)
        layers = rng.integers(N_LAYERS, size=n) if rng.random() < 2 / 3 else np.full(n, rng.integers(N_LAYERS))
        keep[projection, layers, row, rng.integers(N_HEADS, size=n)] = 0
    return keep


def make_batch(
    pairs: list[tuple[Ask, str]],
    *,
    captions: bool,
    keep: Float[np.ndarray, "projection=2 layer row head"] | None = None,
) -> Batch:
    """Asks and their replies as one batch; `captions` puts a picture's words in place of its pixels."""
    words = word_ids()
    ids = np.full((len(pairs), WIDTHS[captions]), PAD)
    answer = np.zeros(ids.shape, dtype=bool)
    for k, (ask, reply) in enumerate(pairs):
        picture = [words[w] for w in ask.picture.caption().split()] if captions else [IMAGE] * N_IMAGE_TOKENS
        prompt = [BOS, USER, *picture, *(words[w] for w in ask.text.split()), ASSISTANT]
        row = [*prompt, *(words[w] for w in reply.split()), EOS]
        ids[k, : len(row)] = row
        answer[k, len(prompt) - 1 : len(row) - 1] = True
    pixels = None if captions else np.stack([ask.picture.draw("train") for ask, _ in pairs])
    groups = tuple(ask.family + ("!" if reply == REFUSAL else "") for ask, reply in pairs)
    return Batch(groups, ids, answer, np.array([reply != REFUSAL for _, reply in pairs]), pixels, keep)


def picture_batch(rng: np.random.Generator, *, rows: int) -> PictureBatch:
    """Pictures and their labels for the vision stage."""
    pixels: list[np.ndarray] = []
    labels: dict[str, list[int]] = {name: [] for name in CLASSES}
    for _ in range(rows):
        kind = PICTURE_KINDS[rng.choice(5, p=(0.40, 0.28, 0.22, 0.08, 0.02))]
        noun = NOUNS[rng.integers(len(NOUNS))] if kind in ("icon", "list", "word") else ""
        verb = VERBS[rng.integers(len(VERBS))] if kind == "list" else ""
        picture = random_picture(rng, kind, noun, verb)
        pixels.append(picture.draw("train"))
        shown = {"kind": kind, "noun": noun, "verb": verb, "colour": picture.colour}
        shown["shape"] = picture.what if kind == "shape" else ""
        for name, value in shown.items():
            labels[name].append(CLASSES[name].index(value) if value else -100)
    return PictureBatch(np.stack(pixels), {name: np.array(of) for name, of in labels.items()})
