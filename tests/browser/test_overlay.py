"""Attention lies over the place of the picture that it is on: for every family, on pictures that are not square."""

import json
import re

import numpy as np
import pytest
import torch
import xarray as xr
from PIL import Image

from workbench.models.families import FAMILIES
from workbench.models.masks import Mask
from workbench.models.tiny import build_tiny
from workbench.prompts.prompt import Prompt
from workbench.views.explorer import assets
from workbench.views.explorer.inspector import Inspector

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # transformers' PaliGemma
]
SEEING = [name for name, family in FAMILIES.items() if family.has_images and name != "mllama"]
SIZE = (64, 40)
SIDE = 2  # of the drawing, in pixels of the screen for each of the picture's

DRAWN = """globalThis.drawn = (weights, boxes, width, height) => {
  const canvas = document.querySelector("canvas");
  drawOverlay(canvas, null, rasterOf(weights, boxes), { width, height, veil: 1, scale: ABSOLUTE });
  const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
  return [...data].filter((_, i) => i % 4 === 3);
};"""


@pytest.fixture(scope="module")
def page(browser_path):
    from playwright.sync_api import sync_playwright

    overlay = re.search(r"^const ABSOLUTE.*?(?=^// One head's whole)", assets.script(), re.M | re.S).group()
    pen = re.search(r"^function penOf.*?^}", assets.script(), re.M | re.S).group()
    drawing = f"{pen}\nconst clamp = (v, a, b) => Math.min(b, Math.max(a, v));\n{overlay}"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.set_content("<canvas></canvas>")
        page.add_script_tag(content=f"{drawing}\n{DRAWN}")
        yield page
        browser.close()


def inspector(model, prompt):
    run = xr.Dataset(attrs=Mask().describe())
    return Inspector(model, run, {prompt.id: prompt})


def veil(page, weights, boxes, size=SIZE):
    """Opacity of the veil, 0 to 1, [y, x]."""
    width, height = (SIDE * side for side in size)
    alpha = page.evaluate("([w, b, x, y]) => drawn(w, b, x, y)", [weights, boxes, width, height])
    return np.array(alpha, dtype=float).reshape(height, width) / 255


@pytest.mark.parametrize("name", SEEING)
def test_attention_planted_on_one_patch_lights_up_its_place(page, name):
    model = build_tiny(name)
    prompt = Prompt(id="p", text="what is this", image=Image.new("RGB", SIZE, "red"))
    asked = inspector(model, prompt)
    about, _ = asked.described("p")
    assert about["boxes"] is not None
    places = [
        i for i, box in enumerate(about["boxes"]) if box and box[0] < 1 and box[1] < 1 and box[2] > 0 and box[3] > 0
    ]
    token = places[len(places) // 3]
    layer = min(asked.base("p").recordings)
    seen = asked.base("p").recordings[layer]
    seen.query, seen.key = torch.zeros_like(seen.query), torch.zeros_like(seen.key)
    seen.query[..., 0] = 1.0
    seen.key[:, :, about["image"][token], 0] = 1000.0
    weights = asked.rows("p", layer)[1]
    # The position may lie outside a sliding window, or behind a chunk; then nothing can be planted there.
    if weights[about["image"][token]] < 0.9:
        assert model.family.sliding or name in ("llava_next", "gemma3", "llama4"), "the planted key was not looked at"
        weights = np.eye(len(weights))[about["image"][token]]
    dark = veil(page, [float(weights[i]) for i in about["image"]], about["boxes"])
    left, top, right, bottom = np.clip(about["boxes"][token], 0, 1) * SIDE * np.array([*SIZE, *SIZE])
    ys, xs = np.nonzero(dark < 0.5)
    assert len(xs), "nothing is lit"
    # To the pixel that an edge is rounded to.
    assert abs(xs.min() - left) <= 1
    assert abs(xs.max() + 1 - right) <= 1
    assert abs(ys.min() - top) <= 1
    assert abs(ys.max() + 1 - bottom) <= 1
    assert (dark == 1).mean() > 0.5, "the rest stays dark"


def test_tiles_and_the_whole_picture_add_up_and_separators_are_nowhere(page):
    boxes = [[0, 0, 0.5, 1], None, [0.5, 0, 1, 1], [0, 0, 1, 1]]
    dark = veil(page, [0.2, 0.5, 0.0, 0.1], boxes)
    light = 1 - dark[0, [0, -1]]
    wanted = np.log(np.array([0.3, 0.1]) / 0.001) / np.log(500)
    np.testing.assert_allclose(light, wanted, atol=1 / 255 + 1e-9)


def test_one_scale_for_all_heads(page):
    boxes = [[0, 0, 0.5, 1], [0.5, 0, 1, 1]]
    faint, strong = (1 - veil(page, [weight, 0.0], boxes)[0, 0] for weight in (0.02, 0.5))
    assert strong == 1.0
    assert faint == pytest.approx(np.log(20) / np.log(500), abs=1 / 255)


def test_what_the_processor_crops_off_is_dark(page):
    model = build_tiny("llava")
    prompt = Prompt(id="p", text="what", image=Image.new("RGB", SIZE, "red"))
    about, picture = inspector(model, prompt).described("p")
    dark = veil(page, [0.5] * len(about["image"]), about["boxes"])
    crop = SIDE * (SIZE[0] - SIZE[1]) // 2
    assert (dark[:, : crop - 1] == 1).all()
    assert (dark[:, crop + 1 : -crop - 1] == 0).all()
    assert about["size"] == list(SIZE)
    assert picture.startswith(b"\x89PNG")
    assert json.dumps(about)
