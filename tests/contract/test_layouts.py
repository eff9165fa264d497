"""Where each image token lies in the picture, shown by painting a spot and looking which tokens carry it."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from workbench.models.families import FAMILIES
from workbench.models.tiny import build_tiny
from workbench.models.walk import base_pass
from workbench.prompts.prompt import Prompt

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # transformers' PaliGemma
SEEING = [name for name, family in FAMILIES.items() if family.has_images and name != "mllama"]
OUTPUTS = ("out_proj", "proj", "projection_layer", "o_proj")


def silence_tower(model):
    """Patches that see only themselves: the image tower's attention adds nothing any more."""
    decoder = {id(m) for m in model.decoder.layers.modules()}
    for module in model.hf.modules():
        if "Attention" in type(module).__name__ and id(module) not in decoder:
            for name in OUTPUTS:
                if isinstance(found := getattr(module, name, None), torch.nn.Linear):
                    found.weight.data.zero_()


@pytest.mark.parametrize("size", [(64, 40), (40, 64)], ids=["wide", "tall"])
@pytest.mark.parametrize("name", SEEING)
def test_a_painted_spot_is_carried_by_the_tokens_laid_over_it(name, size):
    model = build_tiny(name)
    silence_tower(model)
    pixels = np.random.default_rng(0).integers(90, 160, (size[1], size[0], 3)).astype(np.uint8)
    prompt = Prompt(id="spot", text="what is this", image=Image.fromarray(pixels))
    encoded = model.encode(prompt)
    base = base_pass(model, [encoded])
    assert encoded.patch_boxes is not None
    # The crop at the centre leaves the ends of a long picture unseen; paint inside.
    for x, y in ((0.4, 0.4), (0.6, 0.45), (0.45, 0.62)):
        painted = pixels.copy()
        left, top = int(x * size[0]) - 2, int(y * size[1]) - 2
        painted[top : top + 4, left : left + 4] = (255, 0, 0)
        changed = base_pass(model, [model.encode(dataclasses.replace(prompt, image=Image.fromarray(painted)))])
        moved = (changed.inputs[0] - base.inputs[0])[0].norm(dim=-1)[encoded.image_positions]
        boxes = encoded.patch_boxes[moved > 0.3 * moved.max()]
        spot = torch.tensor([left / size[0], top / size[1], (left + 4) / size[0], (top + 4) / size[1]])
        # Resampling carries a spot a little further than its pixels.
        slack = 3.0 / min(size)
        assert len(boxes)
        assert not boxes.isnan().any(), "a separator carries the spot"
        assert (boxes[:, :2] < spot[2:] + slack).all(), boxes
        assert (boxes[:, 2:] > spot[:2] - slack).all(), boxes


def test_a_grid_is_a_grid_of_boxes(tiny):
    encoded = tiny("qwen3_vl").encode(Prompt(id="wide", text="what", image=Image.new("RGB", (64, 32), "red")))
    rows, columns = encoded.patch_grid
    assert columns == 2 * rows, "a picture twice as wide as high"
    boxes = encoded.patch_boxes.view(rows, columns, 4)
    assert torch.allclose(boxes[0, :, 0], torch.arange(columns) / columns)
    assert torch.allclose(boxes[:, 0, 1], torch.arange(rows) / rows)
    assert boxes[-1, -1].tolist() == [1 - 1 / columns, 1 - 1 / rows, 1.0, 1.0]


def test_tiles_come_before_the_whole_picture(tiny):
    boxes = (
        tiny("internvl").encode(Prompt(id="square", text="what", image=Image.new("RGB", (64, 64), "red"))).patch_boxes
    )
    assert len(boxes) == 4 * 4 + 4, "four tiles and a thumbnail of 2 x 2 tokens each"
    assert boxes[4].tolist() == [0.5, 0.0, 0.75, 0.25], "the second tile is the top right one"
    assert boxes[-1].tolist() == [0.5, 0.5, 1.0, 1.0], "the last token is the thumbnail's"
