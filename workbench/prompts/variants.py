"""The same prompts otherwise: without the picture, beside a blank one, in words only, drawn as print."""

import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from workbench.errors import PromptError
from workbench.prompts.pictures import Made

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
        return self._drawn(self._laid_out(text))

    def made(self, text: str) -> Made:
        """The picture, drawn when its pixels are asked for; whether the text fits is seen at once."""
        return Made(partial(self._drawn, self._laid_out(text)), (self.side, self.side))

    def _laid_out(self, text: str) -> tuple[int, list[str]]:
        """The size of the letters, and the lines."""
        room, letters = self.side - 2 * self.margin, sum(map(len, text.split()))
        for size in range(self.size, 9, -2):
            font = _font(size)
            across = max(1, int(room / font.getlength("n")))
            if (letters / across + self.numbered) * _height(size) > room:
                continue  # however they are broken into lines
            lines = textwrap.wrap(text, across, break_long_words=True)
            lines += [f"{number}." for number in range(1, self.numbered + 1)]
            if len(lines) * _height(size) <= room and all(font.getlength(line) <= room for line in lines):
                return size, lines
        room_there = f"{self.side} x {self.side} pixels"
        raise PromptError(f"A text of {len(text)} characters does not fit into {room_there}. Give a larger side.")

    def _drawn(self, laid_out: tuple[int, list[str]]) -> Image.Image:
        size, lines = laid_out
        image = Image.new("RGB", (self.side, self.side), self.ground)
        pen = ImageDraw.Draw(image)
        for place, line in enumerate(lines):
            at = (self.margin, self.margin + place * _height(size))
            pen.text(at, line, fill=self.ink, font=_font(size))
        return image


def _height(size: int) -> int:
    """Of a line in letters of this size, pixels."""
    return int(1.4 * size)


@cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size)


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
    if prompt.image is None:
        return None
    size = prompt.image.size
    return replace(prompt, image=Made(partial(Image.new, "RGB", size, "white"), size))


def _noise(prompt: Any, given: Given) -> Any:
    if prompt.image is None:
        return None
    size = prompt.image.size
    return replace(prompt, image=Made(partial(_drawn_noise, [given.seed, *prompt.id.encode()], size), size))


def _drawn_noise(seed: list[int], size: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


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
    return replace(prompt, image=given.layout.made(text), text=given.carrier)


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
