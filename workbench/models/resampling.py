"""Pillow's resizing of 8-bit pictures in torch, to the bit, and with a way back for gradients.

Pillow resizes across and down in two passes, rounds to 8 bits after each, and has weights that are whole multiples of
2⁻²². Which pass comes first depends on the sizes, and on its version: it is asked. All of that is repeated here, so
that what a gradient was taken of is the picture that the model is shown. Rounding passes gradients on as they are; what
is cut off at 0 or 255 passes none.

Source: Pillow's src/libImaging/Resample.c (`precompute_coeffs`, `ImagingResampleHorizontal_8bpc`).
"""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import PIL
import torch
from jaxtyping import Float
from PIL import Image
from PIL.Image import Resampling
from torch import Tensor

from workbench.errors import ModelError

WEIGHT_BITS = 32 - 8 - 2
_CUBIC = -0.5


def _triangle(x: float) -> float:
    return max(0.0, 1.0 - abs(x))


def _cubic(x: float) -> float:
    x = abs(x)
    if x < 1:
        return ((_CUBIC + 2) * x - (_CUBIC + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * _CUBIC if x < 2 else 0.0


def _lanczos(x: float) -> float:
    def sinc(of: float) -> float:
        return 1.0 if of == 0 else math.sin(math.pi * of) / (math.pi * of)

    return sinc(x) * sinc(x / 3) if -3 <= x < 3 else 0.0


FILTERS: dict[int, tuple[Callable[[float], float], float]] = {  # by Pillow's number: the filter, and how far it reaches
    Resampling.BILINEAR: (_triangle, 1.0),
    Resampling.BICUBIC: (_cubic, 2.0),
    Resampling.LANCZOS: (_lanczos, 3.0),
}


@lru_cache(maxsize=64)
def resampling_weights(n_in: int, n_out: int, resample: int) -> Float[Tensor, "out in"]:
    """What each pixel of a line adds to each pixel of the resized line, float64; rows sum to about 1.

    Raises:
        ModelError: For a filter that has no slope (nearest, box, Hamming are not repeated here).
    """
    if resample not in FILTERS:
        raise ModelError(
            f"Pillow's resampling filter {Resampling(resample).name.lower()} is not repeated in torch; those that are: "
            f"{', '.join(Resampling(number).name.lower() for number in FILTERS)}."
        )
    weigh, reach = FILTERS[resample]
    scale = n_in / n_out
    wide = max(scale, 1.0)
    support, weights = reach * wide, torch.zeros(n_out, n_in, dtype=torch.float64)
    for at in range(n_out):
        centre = (at + 0.5) * scale
        first, last = max(int(centre - support + 0.5), 0), min(int(centre + support + 0.5), n_in)
        row = [weigh((place - centre + 0.5) / wide) for place in range(first, last)]
        weights[at, first:last] = torch.tensor(row, dtype=torch.float64) / sum(row)
    whole = weights * 2**WEIGHT_BITS
    return torch.trunc(whole + torch.sign(whole) * 0.5) / 2**WEIGHT_BITS


def resized(
    pixels: Float[Tensor, "channel height width"], height: int, width: int, resample: int, *, rounding: bool = True
) -> Float[Tensor, "channel rows columns"]:
    """A picture of numbers from 0 to 255, resized as Pillow does.

    Args:
        pixels: float64; whole numbers for Pillow's own result.
        height: Rows wanted.
        width: Columns wanted.
        resample: Pillow's number of the filter.
        rounding: Round to whole numbers and cut off at 0 and 255 after each pass, as Pillow does; without it, the
            smooth map whose gradient this is wherever nothing is cut off.
    """
    passes = [_across, _down] if across_first(tuple(pixels.shape[1:]), (height, width), resample) else [_down, _across]
    for one_pass in passes:
        pixels = one_pass(pixels, (height, width), resample, rounding)
    return pixels


def _across(pixels: Tensor, size: tuple[int, int], resample: int, rounding: bool) -> Tensor:
    if size[1] == pixels.shape[2]:
        return pixels
    return _whole(pixels @ resampling_weights(pixels.shape[2], size[1], resample).to(pixels).T, rounding)


def _down(pixels: Tensor, size: tuple[int, int], resample: int, rounding: bool) -> Tensor:
    if size[0] == pixels.shape[1]:
        return pixels
    weights = resampling_weights(pixels.shape[1], size[0], resample).to(pixels)
    return _whole(torch.einsum("oh,chw->cow", weights, pixels), rounding)


@lru_cache(maxsize=256)
def across_first(before: tuple[int, ...], after: tuple[int, int], resample: int) -> bool:
    """Whether Pillow resizes across before it resizes down, at these (height, width): found out on noise.

    Raises:
        ModelError: Neither order gives what Pillow gives.
    """
    noise = np.random.default_rng(0).integers(0, 256, (*before, 3), dtype=np.uint8)
    theirs = np.asarray(Image.fromarray(noise).resize(after[::-1], resample)).transpose(2, 0, 1)
    pixels = torch.from_numpy(noise.transpose(2, 0, 1).astype(np.float64))
    for first, second, answer in ((_across, _down, True), (_down, _across, False)):
        ours = second(first(pixels, after, resample, True), after, resample, True)
        if np.array_equal(ours.numpy(), theirs):
            return answer
    raise ModelError(
        f"Pillow {PIL.__version__} resizes a picture of {before[1]} x {before[0]} pixels to {after[1]} x {after[0]} in "
        "a way that is not repeated here, so gradients would be those of another picture."
    )


def _whole(values: Tensor, rounding: bool) -> Tensor:
    """Whole numbers of 8 bits, half of one rounded up; gradients pass as if nothing had been rounded."""
    if not rounding:
        return values
    values = values.clamp(0, 255)
    return values + (torch.floor(values + 0.5) - values).detach()
