"""Gradients to pixels, in every family: the road ends where the processor does, and its slopes are those of numbers."""

import numpy as np
import pytest
import torch
from PIL import Image

from workbench.detectors.gradients import score_parts
from workbench.detectors.one_head import OneHeadDetector
from workbench.errors import ModelError, PromptError
from workbench.models.families import FAMILIES
from workbench.models.pixels import TOLERANCE, pixel_road
from workbench.models.resampling import resized
from workbench.models.walk import base_pass
from workbench.prompts.prompt import Prompt

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # transformers' PaliGemma
WITH_PICTURES = [name for name, family in FAMILIES.items() if family.has_images]
ROADS = [name for name in WITH_PICTURES if not FAMILIES[name].no_pixel_road]


def picture(width: int = 70, height: int = 50) -> Image.Image:
    """Blurred noise, away from 0 and 255, where nothing is cut off."""
    noise = np.random.default_rng(0).integers(60, 196, (height // 5, width // 5, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BILINEAR)


@pytest.mark.parametrize("name", ROADS)
def test_the_road_leads_where_the_processor_does_and_its_slopes_are_right(tiny, name):
    model = tiny(name)
    road = pixel_road(model, Prompt("p", "what is this", picture()))
    (pixels,) = [key for key in ("pixel_values", "image_pixel_values") if key in road.encoded.model_inputs]
    theirs = road.encoded.model_inputs[pixels]
    assert theirs.std() > 0.1, "a blank picture would prove nothing"
    assert float((road.inputs(road.pixels).model_inputs[pixels] - theirs).abs().max()) <= TOLERANCE
    detector = OneHeadDetector(head=(model.masked_layers[-1], 1), threshold=0.0)

    def score(at: torch.Tensor, gradients: bool = False) -> torch.Tensor:
        base = base_pass(model, [road.inputs(at, rounding=False)], gradients=gradients)
        return score_parts(detector, model, base)[0, 0]

    leaf = road.pixels.clone().requires_grad_()
    (slope,) = torch.autograd.grad(score(leaf, gradients=True), leaf)
    along = slope / slope.norm()  # the steepest way, so that the difference is no rounding
    step = 1e-3
    difference = (score(road.pixels + step * along) - score(road.pixels - step * along)) / (2 * step)
    assert float(slope.norm()) > 1e-7
    # The numbers have an error of step², of the size of the third derivative, and of 1e-14 / step from rounding.
    assert float(difference) == pytest.approx(float(slope.norm()), rel=1e-3)


@pytest.mark.parametrize("name", sorted({*WITH_PICTURES} - {*ROADS}))
def test_a_processor_that_cannot_be_followed_is_refused_by_name(tiny, name):
    with pytest.raises(ModelError, match=rf"'{name}' \(\w+\): its processor (rounds|interpolates)"):
        pixel_road(tiny(name), Prompt("p", "what is this", picture()))


def test_what_has_no_picture_has_no_road(tiny):
    with pytest.raises(PromptError, match="'p' has no picture"):
        pixel_road(tiny("llava"), Prompt("p", "what is this"))
    with pytest.raises(ModelError, match="'llama' reads no pictures"):
        pixel_road(tiny("llama"), Prompt("p", "what is this", picture()))


@pytest.mark.parametrize("resample", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS])
@pytest.mark.parametrize("size", [(20, 61), (80, 31), (33, 90)])
def test_resizing_is_pillows_to_the_bit(resample, size):
    pixels = np.random.default_rng(1).integers(0, 256, (33, 47, 3), dtype=np.uint8)
    theirs = np.asarray(Image.fromarray(pixels).resize(size[::-1], resample)).transpose(2, 0, 1)
    ours = resized(torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float64)), *size, int(resample))
    np.testing.assert_array_equal(ours.numpy(), theirs)


def test_a_filter_without_slope_is_refused():
    with pytest.raises(ModelError, match="nearest"):
        resized(torch.zeros(3, 4, 4, dtype=torch.float64), 8, 8, int(Image.Resampling.NEAREST))
