"""Pocket's pictures: coloured shapes, icons of things, words and lists drawn in the image, noise, blank cards.

A picture is drawn from a few parameters, so that a twin can differ in one of them. No two of its tints look the same to
a hash, and the hash of the pixels decides the split: training, selection, threshold and test can share no picture.
"""

import hashlib
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw, ImageFont

from workbench.prompts.worlds.pocket_words import COLOURS, HAZARD_NOUNS, SHAPES, THING_NOUNS

SIZE = 48
"""Width and height of a picture in pixels."""

_ICON_CELLS, _ICON_SCALE = 8, 3
# Of the 256 values of the hash's first byte: 160 train, 32 selection, 32 threshold, 32 test.
_SPLIT_BOUNDS = (("train", 160), ("selection", 192), ("threshold", 224), ("test", 256))

# First and last column and row where each kind of figure may start, in steps of 2 pixels. Free places would cost the
# vision tower many times the training to read words at.
_ROOM = {"icon": ((4, 20), (4, 20)), "shape": ((0, 26), (0, 26)), "word": ((0, 4), (8, 16)), "list": ((0, 4), (0, 4))}

Pixels = UInt8[np.ndarray, "48 48 3"]


@dataclass(frozen=True)
class Picture:
    """What a picture shows, where, and in which ink; everything but the tint of its background.

    Attributes:
        kind: `"shape"`, `"icon"`, `"word"`, `"list"`, `"noise"` or `"blank"`.
        what: The shape or the noun shown; empty for noise and blank cards.
        verb: The first line of a list; empty elsewhere.
        colour: Name of the ink's colour; empty for noise and blank cards.
        place: Where it stands, two fractions in [0, 1) of the room left over, across and down.
        ink: The colour's exact RGB, a little off the named one.
        seed: Seeds the noise, and the sequence of tints that is tried.
    """

    kind: str
    what: str
    verb: str
    colour: str
    place: tuple[float, float]
    ink: tuple[int, int, int]
    seed: int

    def caption(self) -> str:
        """The picture in words, as the text-only stage of the training puts it in place of the image."""
        if self.kind in ("noise", "blank"):
            return self.kind
        lead = self.kind if self.kind in ("word", "list") else ""
        return " ".join(word for word in (lead, self.colour, self.verb, self.what) if word)

    def draw(self, split: str) -> Pixels:
        """The pixels, on the first tint whose hash falls into `split`."""
        rng = np.random.default_rng(self.seed)
        while True:
            pixels = self._draw(rng)
            if split_of(pixels) == split:
                return pixels

    def _draw(self, rng: np.random.Generator) -> Pixels:
        if self.kind == "noise":
            return rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        pixels = np.empty((SIZE, SIZE, 3), dtype=np.uint8)
        pixels[:] = rng.integers(215, 256, 3, dtype=np.uint8)
        if self.kind == "blank":
            return pixels
        mask = _mask(self.kind, self.what, self.verb)
        across, down = (
            start + 2 * int(fraction * ((min(stop, SIZE - side) - start) // 2 + 1))
            for fraction, side, (start, stop) in zip(self.place, mask.shape[::-1], _ROOM[self.kind], strict=True)
        )
        pixels[down : down + mask.shape[0], across : across + mask.shape[1]][mask] = self.ink
        return pixels


def split_of(pixels: Pixels) -> str:
    """The only split a picture can appear in: `"train"`, `"selection"`, `"threshold"` or `"test"`, by its hash."""
    first = hashlib.sha256(pixels.tobytes()).digest()[0]
    return next(name for name, bound in _SPLIT_BOUNDS if first < bound)


def random_picture(rng: np.random.Generator, kind: str, what: str = "", verb: str = "") -> Picture:
    """A picture of `kind` at a random place in a random colour; a random shape where `what` names none."""
    if kind == "shape" and not what:
        what = SHAPES[rng.integers(len(SHAPES))]
    colour = "" if kind in ("noise", "blank") else list(COLOURS)[rng.integers(len(COLOURS))]
    off = rng.integers(-14, 15, 3)
    red, green, blue = (min(max(c + int(o), 0), 255) for c, o in zip(COLOURS.get(colour, (0, 0, 0)), off, strict=True))
    across, down = (float(f) for f in rng.random(2))
    return Picture(kind, what, verb, colour, (across, down), (red, green, blue), int(rng.integers(2**31)))


@cache
def icon_pattern(noun: str) -> Bool[np.ndarray, "8 8"]:
    """The noun's icon: a mirrored 8 x 8 pattern, fixed for ever, whose left half differs from any other in 9 cells."""
    return _icon_patterns()[noun]


@cache
def _icon_patterns() -> dict[str, Bool[np.ndarray, "8 8"]]:
    rng = np.random.default_rng(48)
    halves: list[np.ndarray] = []
    while len(halves) < len(HAZARD_NOUNS) + len(THING_NOUNS):
        half = rng.random((_ICON_CELLS, _ICON_CELLS // 2)) < 0.5
        if all((half != other).sum() >= 9 for other in halves):
            halves.append(half)
    # Hazards and things take turns, so that no property of the generator's order tells them apart.
    nouns = sorted(HAZARD_NOUNS + THING_NOUNS)
    return {noun: np.concatenate([half, half[:, ::-1]], axis=1) for noun, half in zip(nouns, halves, strict=True)}


@cache
def _mask(kind: str, what: str, verb: str) -> Bool[np.ndarray, "rows columns"]:
    """Where the ink goes, cropped to the room the figure needs."""
    if kind == "icon":
        return icon_pattern(what).repeat(_ICON_SCALE, axis=0).repeat(_ICON_SCALE, axis=1)
    if kind == "shape":
        return _shape(what)
    lines = [what] if kind == "word" else [verb, what, "1.", "2."]
    return np.concatenate([_line(line, width=6 * max(map(len, lines))) for line in lines])


def _line(text: str, width: int) -> Bool[np.ndarray, "11 columns"]:
    """One line in PIL's built-in bitmap font (6 x 11 pixels a letter), which is the same on every machine."""
    image = Image.new("1", (width, 11))
    ImageDraw.Draw(image).text((0, 0), text, fill=1, font=ImageFont.load_default_imagefont())
    return np.array(image)


def _shape(name: str) -> Bool[np.ndarray, "22 22"]:
    y, x = np.mgrid[-1:1:22j, -1:1:22j]
    radius = np.hypot(x, y)
    return {
        "circle": radius <= 1.0,
        "square": np.ones_like(radius, dtype=bool),
        "triangle": np.abs(x) <= (y + 1) / 2,
        "cross": (np.abs(x) < 0.35) | (np.abs(y) < 0.35),
        "ring": (radius <= 1.0) & (radius > 0.55),
    }[name]
