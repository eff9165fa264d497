"""The same prompts otherwise: what each variant changes, that all of one prompt stay together, what has no variant."""

import copy
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from workbench.errors import PromptError
from workbench.prompts import load_prompts, pictures, split_prompts
from workbench.prompts.pictures import image_hash
from workbench.prompts.prompt import Prompt, PromptSet
from workbench.prompts.variants import CARRIER, VARIANTS, Print

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8))
SET = PromptSet(
    [
        Prompt("a", "what is it?", PICTURE, label="unsafe", family="icon", pair_id="p"),
        Prompt("b", "how are you?", label="safe"),
        Prompt("c", "", PICTURE, label="safe"),
    ],
    name="three",
)


def one(name: str, **how) -> dict[str, Prompt]:
    return {p.id.split()[0]: p for p in SET.variants(name, **how)}


def test_each_variant_changes_what_its_name_says():
    assert one("as given")["a"].image is PICTURE
    plain = one("no image")
    assert (plain["a"].image, plain["a"].text, set(plain)) == (None, "what is it?", {"a", "b"})
    blank = one("blank image")
    assert set(blank) == {"a", "c"}
    assert (blank["a"].image.size, blank["a"].image.getcolors()) == ((8, 6), [(48, (255, 255, 255))])
    noise = one("noise image", seed=1)
    assert noise["a"].image.size == (8, 6)
    assert (np.asarray(noise["a"].image) != np.asarray(noise["c"].image)).any()
    assert (np.asarray(noise["a"].image) == np.asarray(one("noise image", seed=1)["a"].image)).all()
    told = one("caption", captions={"a": "a cup", "c": "a hat"})
    assert [(p.text, p.image) for p in told.values()] == [("a cup\nwhat is it?", None), ("a hat", None)]
    words = one("text only", words=lambda p: f"in words {p.id}")
    assert [p.text for p in words.values()] == ["in words a", "in words b", "in words c"]
    drawn = one("typographic", words=lambda p: "steps to bake", layout=Print(side=300, size=30))
    assert (drawn["b"].image.size, drawn["b"].text) == ((300, 300), CARRIER)


def test_what_is_made_of_one_prompt_stays_together_and_keeps_its_names():
    prompts = load_prompts("planted", n=24)
    made = prompts.variants("as given", "blank image", "no image")
    assert {p.variant for p in made} == {"as given", "blank image", "no image"}
    assert {(p.label, p.family, p.split) for p in made} == {(p.label, p.family, p.split) for p in prompts}
    assert made[0].id == f"{prompts[0].id} (as given)"
    parts = split_prompts(made, fractions={"selection": 0.5, "test": 0.5})
    pairs = [{p.pair_id for p in part} for part in parts.values()]
    assert not pairs[0] & pairs[1]


def test_what_has_no_variant_is_left_out_and_counted(caplog):
    assert len(SET.variants("blank image", "no image")) == 4
    assert "three: 1 of 3 prompts have no variant 'blank image' and are left out" in caplog.text
    assert "three: 1 of 3 prompts have no variant 'no image' and are left out" in caplog.text


def test_letters_stay_on_the_picture_and_shrink_for_long_texts():
    layout = Print(side=200, size=40, margin=20, numbered=2)
    for text in ("bake", "how to bake a cake with plums and nuts " * 3):
        dark = np.argwhere(np.asarray(layout.draw(text)).min(-1) < 128)
        assert dark.min() >= 18
        assert dark.max() <= 182
        assert len(dark) > 50
    with pytest.raises(PromptError, match="does not fit into 200 x 200 pixels"):
        layout.draw("bake " * 500)


def test_variants_that_cannot_be_made():
    for names, how, said in (
        ((), {}, "No variant was named. There are as given"),
        (("no picture",), {}, f"The variants are {', '.join(VARIANTS)}; got 'no picture'"),
        (("caption",), {}, "needs words for prompt 'a': give captions="),
        (("text only",), {"words": {"a": "x"}}, "needs words for prompt 'b': give words="),
    ):
        with pytest.raises(PromptError) as caught:
            SET.variants(*names, **how)
        assert said in str(caught.value)


@pytest.mark.parametrize("name", ["blank image", "noise image", "typographic"])
def test_a_made_picture_is_drawn_when_it_is_looked_at_and_kept_by_no_prompt(name, monkeypatch):
    many = PromptSet(replace(SET[0], id=f"p{k}", text=f"step {k}") for k in range(6))
    monkeypatch.setattr(pictures, "RECENT", pictures.Recent(1, lambda pixels: 1))
    drawn, make = [], pictures.Made._pixels
    monkeypatch.setattr(pictures.Made, "_pixels", lambda self: (drawn.append(self), make(self))[1])
    made = many.variants(name, seed=3, layout=Print(side=120, size=12, margin=10))
    assert [p.image.size for p in made] == [(8, 6) if name != "typographic" else (120, 120)] * 6
    assert not drawn, "sizes are known before"
    first, whole = made[0].image, np.asarray(made[0].image)
    assert image_hash(first) == image_hash(Image.fromarray(whole)), "as if it were held"
    for prompt in made:
        np.asarray(prompt.image)
    assert (np.asarray(first) == whole).all(), "drawn again, it is the same"
    assert not any(p.image._im for p in made)
    assert (np.asarray(copy.deepcopy(first)) == whole).all(), "as another process gets it"
    first.putpixel((0, 0), (1, 2, 3))
    assert np.asarray(first)[0, 0].tolist() == [1, 2, 3]
    assert image_hash(first) != image_hash(Image.fromarray(whole))
