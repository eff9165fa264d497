"""From the pixels of a picture to a model's inputs, with a way back: what an attack on pictures takes its gradients on.

A processor resizes, cuts, pads and normalises, each family in a way of its own. None of them is written again here. The
family's own processor is run once on the picture with arrays of place numbers in place of pixels: what cuts, pads,
transposes and stacks them leaves the numbers readable, and what computes with pixels (resizing, rescaling, normalising)
is noted on a tape, which torch then plays. The result is compared with the processor's own, prompt by prompt.

A processor that does more than that to pixels (rounds them to bfloat16, interpolates in torch) is refused by name.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL.Image import Resampling
from torch import Tensor
from transformers.image_processing_backends import PilBackend

from workbench.errors import ModelError, PromptError
from workbench.models.decoder import Decoder
from workbench.models.encode import Encoded, encode
from workbench.models.resampling import resized
from workbench.prompts.prompt import Prompt

TOLERANCE = 1e-4  # largest difference from the processor's own output, in units of the normalised pixels
PIXELS = ("pixel_values", "image_pixel_values")  # names of the inputs that hold pixels
# Place numbers begin here; smaller numbers are constants that a processor fills in (padding, 0 to 255).
FIRST_PLACE = 4096


@dataclass(eq=False)
class _Tape:
    """What was done to pixels, in order: each step reads places of earlier ones and gives new places."""

    sizes: list[int] = field(default_factory=list)
    steps: list[tuple[np.ndarray, Callable[[Tensor, bool], Tensor]]] = field(default_factory=list)
    picture: np.ndarray = field(default_factory=lambda: np.empty(0))

    def places(self, shape: tuple[int, ...]) -> np.ndarray:
        """New place numbers, in an array that goes through a processor as pixels do."""
        start = FIRST_PLACE + sum(self.sizes)
        self.sizes.append(int(np.prod(shape)))
        return np.arange(start, start + self.sizes[-1], dtype=np.float64).reshape(shape)

    def note(self, read: np.ndarray, shape: tuple[int, ...], step: Callable[[Tensor, bool], Tensor]) -> np.ndarray:
        self.steps.append((_whole_places(read), step))
        return self.places(shape)


def _whole_places(array: np.ndarray) -> np.ndarray:
    places = np.asarray(array)
    if places.dtype == np.float32 and places.size and places.max() >= 2**24:
        raise ModelError(
            "The picture, once resized, has over 16 million pixels, too many for a way back to them: make it smaller."
        )
    return places.astype(np.int64)


class _Traced(PilBackend):
    """Stands between a family's image processor and the base whose steps it calls; see the module."""

    tape: _Tape
    seen: dict[str, Any]

    def process_image(self, image: Any, *args: Any, **options: Any) -> np.ndarray:
        self.tape.picture = np.asarray(super().process_image(image, *args, **options))
        return self.tape.places(self.tape.picture.shape)

    def resize(self, image: np.ndarray, size: Any, resample: Any = None, **options: Any) -> np.ndarray:
        resample = int(Resampling.BILINEAR if resample is None else resample)  # as the base has it
        blank = np.zeros(image.shape, dtype=np.uint8)
        _, height, width = super().resize(blank, size, resample=resample, **options).shape
        return self.tape.note(
            image,
            (image.shape[0], height, width),
            lambda pixels, rounding: resized(pixels, height, width, resample, rounding=rounding),
        )

    def rescale(self, image: np.ndarray, scale: float, **options: Any) -> np.ndarray:
        return self.tape.note(image, image.shape, lambda pixels, rounding: pixels * scale)

    def normalize(self, image: np.ndarray, mean: Any, std: Any, **options: Any) -> np.ndarray:
        centre, spread = (torch.as_tensor(of, dtype=torch.float64).reshape(-1, 1, 1) for of in (mean, std))
        return self.tape.note(
            image, image.shape, lambda pixels, rounding: (pixels - centre.to(pixels)) / spread.to(pixels)
        )

    def __call__(self, *args: Any, **options: Any) -> Any:
        found = super().__call__(*args, **options)
        self.seen.update({name: found[name] for name in PIXELS if name in found})
        return found


@contextmanager
def _tracing(model: Decoder) -> Iterator[_Traced]:
    """Put a traced copy of the image processor in the place of the model's own for the length of a block."""
    own = model.processor.image_processor
    traced: Any = copy.copy(own)
    traced.__class__ = type(type(own).__name__, (type(own), _Traced), {})
    traced.tape, traced.seen = _Tape(), {}
    with model.lock:
        model.processor.image_processor = traced
        try:
            yield traced
        finally:
            model.processor.image_processor = own


@dataclass(eq=False)
class PixelRoad:
    """The road from one prompt's pixels to what its model reads.

    Attributes:
        encoded: The prompt as the processor gives it.
        pixels: The picture, whole numbers from 0 to 255, `[3, height, width]`, float64.
    """

    encoded: Encoded
    pixels: Tensor
    _name: str
    _sources: Tensor
    _steps: list[tuple[Tensor, Callable[[Tensor, bool], Tensor]]]

    def inputs(self, pixels: Tensor, *, rounding: bool = True) -> Encoded:
        """The prompt with other pixels in its picture, through which gradients flow.

        Args:
            pixels: As `pixels`.
            rounding: Round after resizing, as the processor does; see `workbench.models.resampling.resized`.
        """
        known = pixels.flatten()
        for read, step in self._steps:
            known = torch.cat([known, step(_gathered(known, read), rounding).flatten()])
        old = self.encoded.model_inputs[self._name]
        new = _gathered(known, self._sources).to(old.device, old.dtype)
        return _with_inputs(self.encoded, {self._name: new})


def _with_inputs(encoded: Encoded, changed: dict[str, Tensor]) -> Encoded:
    other = copy.copy(encoded)
    other.model_inputs = {**encoded.model_inputs, **changed}
    return other


def _gathered(known: Tensor, read: Tensor) -> Tensor:
    """Numbers at places; constants stand for themselves."""
    values = known[(read - FIRST_PLACE).clamp_min(0)]
    return torch.where(read >= FIRST_PLACE, values, read.to(values))


def pixel_road(model: Decoder, prompt: Prompt) -> PixelRoad:
    """The differentiable road from a prompt's pixels to its model's inputs, checked against the processor.

    Raises:
        PromptError: The prompt has no picture.
        ModelError: The family's processor has no such road, which it names; or the road does not lead where the
            processor does, within 1e-4.
    """
    if prompt.image is None:
        raise PromptError(f"Prompt {prompt.id!r} has no picture, so there are no pixels to go from.")
    refuse_without_road(model)
    encoded = encode(model, prompt)
    with _tracing(model) as traced:
        encode(model, prompt)
        tape, seen = traced.tape, traced.seen
    name = next((name for name in PIXELS if name in seen and name in encoded.model_inputs), None)
    if name is None:
        raise ModelError(_no_road(model, f"its inputs hold none of {', '.join(PIXELS)}"))
    device = encoded.model_inputs[name].device
    steps = [(torch.from_numpy(read).to(device), step) for read, step in tape.steps]
    pixels = torch.from_numpy(tape.picture.astype(np.float64)).to(device)
    sources = torch.from_numpy(_whole_places(np.asarray(seen[name]))).to(device)
    road = PixelRoad(encoded, pixels, name, sources, steps)
    theirs = encoded.model_inputs[name]
    ours = road.inputs(pixels).model_inputs[name]
    if ours.shape != theirs.shape:
        raise ModelError(_no_road(model, f"it gives {tuple(ours.shape)}, and the processor {tuple(theirs.shape)}"))
    # In half precision the last bit is coarser than the tolerance, and both are rounded alike.
    if not (off := float((ours.double() - theirs.double()).abs().max())) <= TOLERANCE:
        raise ModelError(_no_road(model, f"it ends {off:.1e} from the processor's output, over {TOLERANCE:.0e}"))
    return road


def refuse_without_road(model: Decoder) -> None:
    """Refuse a family whose processor has no differentiable road.

    Raises:
        ModelError: It names the family, its processor, and why.
    """
    if not model.family.has_images:
        raise ModelError(f"Family {model.family.name!r} reads no pictures, so there are no pixels to go from.")
    images = getattr(model.processor, "image_processor", None)
    if why := model.family.no_pixel_road:
        raise ModelError(_no_road(model, why))
    if not isinstance(images, PilBackend):
        why = (
            "it does not read pictures with Pillow, as what `load_model` loads by name does; beside a model of your "
            "own hand in a processor whose image_processor is AutoImageProcessor.from_pretrained(NAME, backend='pil')"
        )
        raise ModelError(_no_road(model, why))


def _no_road(model: Decoder, why: str) -> str:
    kind = type(getattr(model.processor, "image_processor", None)).__name__
    return (
        f"There is no differentiable road to the pixels of family {model.family.name!r} ({kind}): {why}. "
        "Its detectors can be attacked on the side of the text, or with pictures made on another model."
    )
