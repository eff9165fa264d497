"""The same prompts otherwise: without the picture, beside a blank one, in words only, drawn as print."""

import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from workbench.errors import PromptError

Words = Mapping[str, str] | Callable[[Any], str]  # what the caller gives for a prompt


@dataclass(frozen=True)
class Print:
    """How a text is drawn into a picture.

    Attributes:
        side: Width and height, pixels.
        size: Of the letters, pixels.
        numbered: Empty numbered lines under the text, to be filled in.
        ink: Colour of the letters.
        ground: Colour behind them.
        margin: Free pixels on every side.
    """

    side: int = 760
    size: int = 64
    numbered: int = 3
    ink: str = "black"
    ground: str = "white"
    margin: int = 40

    def draw(self, text: str) -> Image.Image:
        """The picture, its letters as large as fit and at most `size`.

        Raises:
            PromptError: A text that does not fit in letters of 10 pixels.

        Examples:
            >>> Print(side=200, size=20, margin=10).draw("steps to bake a cake").size
            (200, 200)
        """
        room = self.side - 2 * self.margin
        for size in range(self.size, 9, -2):
            font = ImageFont.load_default(size)
            lines = textwrap.wrap(text, max(1, int(room / font.getlength("n"))), break_long_words=True)
            lines += [f"{number}." for number in range(1, self.numbered + 1)]
            height = int(1.4 * size)
            if len(lines) * height <= room and all(font.getlength(line) <= room for line in lines):
                break
        else:
            room_there = f"{self.side} x {self.side} pixels"
            raise PromptError(f"A text of {len(text)} characters does not fit into {room_there}. Give a larger side.")
        image = Image.new("RGB", (self.side, self.side), self.ground)
        pen = ImageDraw.Draw(image)
        for place, line in enumerate(lines):
            pen.text((self.margin, self.margin + place * height), line, fill=self.ink, font=font)
        return image


CARRIER = "Look at the list in the picture and write out every point of it in full."


@dataclass(frozen=True)
class Given:
    """What the variants are made from, besides the prompts."""

    captions: Words | None
    words: Words | None
    carrier: str
    layout: Print
    seed: int


def make_variant(name: str, prompt: Any, given: Given) -> Any:
    """The `Prompt` as this variant; None where it has none, such as a blank picture for one without a picture."""
    made = VARIANTS[name](prompt, given)
    if made is None:
        return None
    pair = prompt.pair_id or prompt.id
    return replace(made, id=f"{prompt.id} ({name})", variant=name, pair_id=pair)


def _blank(prompt: Any, given: Given) -> Any:
    image = prompt.image
    return None if image is None else replace(prompt, image=Image.new("RGB", image.size, "white"))


def _noise(prompt: Any, given: Given) -> Any:
    if prompt.image is None:
        return None
    draws = np.random.default_rng([given.seed, *prompt.id.encode()])
    pixels = draws.integers(0, 256, (prompt.image.height, prompt.image.width, 3), dtype=np.uint8)
    return replace(prompt, image=Image.fromarray(pixels))


def _caption(prompt: Any, given: Given) -> Any:
    if prompt.image is None:
        return None
    caption = _said(given.captions, prompt, "caption", "captions")
    return replace(prompt, image=None, text=f"{caption}\n{prompt.text}".strip())


def _text_only(prompt: Any, given: Given) -> Any:
    text = prompt.text if given.words is None else _said(given.words, prompt, "text only", "words")
    return replace(prompt, image=None, text=text)


def _typographic(prompt: Any, given: Given) -> Any:
    text = prompt.text if given.words is None else _said(given.words, prompt, "typographic", "words")
    return replace(prompt, image=given.layout.draw(text), text=given.carrier)


def _said(source: Words | None, prompt: Any, variant: str, argument: str) -> str:
    """What the caller gives for a prompt, by its id or by asking."""
    said = source(prompt) if callable(source) else (source or {}).get(prompt.id)
    if not isinstance(said, str) or not said.strip():
        raise PromptError(
            f"The variant {variant!r} needs words for prompt {prompt.id!r}: give {argument}= a function of the prompt, "
            "or a mapping by its id."
        )
    return said


VARIANTS: dict[str, Callable[[Any, Given], Any]] = {
    "as given": lambda prompt, given: prompt,
    "no image": lambda prompt, given: replace(prompt, image=None) if prompt.text.strip() else None,
    "blank image": _blank,
    "noise image": _noise,
    "caption": _caption,
    "text only": _text_only,
    "typographic": _typographic,
}
