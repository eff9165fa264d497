"""Our PIL image processors against what transformers' own made with torchvision (see make_torchvision_pixels.py)."""

import numpy as np
import pytest

from tests.contract.make_torchvision_pixels import OUT, SHAPES, SIZES, picture
from workbench.models.families import pil_images

THEIRS = np.load(OUT)
# One grey level of 255, normalised by a standard deviation of about a quarter or a half.
GREY_LEVEL = 1 / 255 / 0.26


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", SIZES)
def test_same_tiles_and_pixels(name, shape):
    ours = getattr(pil_images, name)(**SIZES[name])([picture(*shape)], return_tensors="pt")
    for key, value in ours.items():
        wanted = THEIRS[f"{name} {shape[0]}x{shape[1]} {key}"].astype(np.float32)
        found = np.asarray(value.float() if hasattr(value, "float") else value, dtype=np.float32)
        assert found.shape == wanted.shape, key
        assert np.abs(found - wanted).max() <= (1.1 * GREY_LEVEL if "pixel" in key else 0), key
