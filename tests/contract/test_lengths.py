"""What a sweep is planned from: lengths read from texts and sizes are those of the encoded prompts, in every family."""

import numpy as np
import pytest
from PIL import Image

from workbench.errors import WorkbenchError
from workbench.models.families import FAMILIES
from workbench.models.lengths import Lengths
from workbench.prompts.pictures import Picture
from workbench.prompts.prompt import Prompt

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # transformers' PaliGemma
TEXTS = ("what is this ?", " a bomb", "\n\nwhat\n is a cat ", "é")
SIZES = ((48, 32), (33, 80), (48, 32))


@pytest.mark.parametrize("name", sorted(name for name, family in FAMILIES.items() if family.tiny))
def test_lengths_are_those_of_encoded_prompts(tiny, name):
    model = tiny(name)
    count, noise = Lengths(model), np.random.default_rng(0)
    pictures = [None]
    if model.family.has_images:
        pictures += [Image.fromarray(noise.integers(0, 255, (h, w, 3), dtype=np.uint8)) for w, h in SIZES]
    for k, text in enumerate(TEXTS):
        for more in ({}, {"system": "be kind", "prefill": "a cat"}):
            prompt = Prompt(f"p{k}", text, pictures[k % len(pictures)], **more)
            try:
                want = model.encode(prompt).n_tokens
            except WorkbenchError as error:
                with pytest.raises(type(error)):
                    count(prompt)
            else:
                assert count(prompt) == want


def test_no_picture_is_decoded_and_one_blank_is_put_to_the_processor_for_a_size(tiny, tmp_path, monkeypatch):
    model, asked = tiny("llava"), []
    monkeypatch.setattr(Picture, "_pixels", lambda self: pytest.fail("a picture was decoded to plan a sweep"))
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda prompt: (asked.append(prompt.image.size), encode(prompt))[1])
    from workbench.prompts.pictures import open_picture

    for k, size in enumerate([(8, 6), (9, 6), (8, 6), (8, 6)]):
        Image.new("RGB", size, (k, 0, 0)).save(tmp_path / f"{k}.png")
    count = Lengths(model)
    lengths = [count(Prompt(f"p{k}", "what is " * k, open_picture(tmp_path / f"{k}.png"))) for k in range(4)]
    assert asked == [(8, 6), (9, 6)]
    assert lengths[2] + 2 == lengths[3]
