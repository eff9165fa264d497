"""Pictures: every kind arrives as the same upright RGB by every door, or is refused; stored ones wait to be read."""

import copy
import io
import json
import logging
import pickle
import tarfile
import tracemalloc
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import workbench as wb
from tests.builders.models import tiny
from workbench.errors import PromptError
from workbench.prompts import load_prompts, pictures
from workbench.prompts.pictures import Picture, image_hash, open_picture
from workbench.prompts.prompt import Prompt, PromptSet
from workbench.prompts.splits import check_splits

PIXELS = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)


def stored(image: Image.Image, kind: str, **how) -> Picture:
    content = io.BytesIO()
    image.save(content, kind, **how)
    return pictures.picture_of_bytes(content.getvalue(), f"some {kind}")


def held(image: Image.Image, kind: str, **how) -> Image.Image:
    content = io.BytesIO()
    image.save(content, kind, **how)
    return Prompt("p", "what", Image.open(io.BytesIO(content.getvalue()))).image


@pytest.fixture
def decoded(monkeypatch) -> list:
    """Names of the pictures whose pixels were decoded, in order."""
    names: list[str] = []
    decode = Picture._pixels
    monkeypatch.setattr(Picture, "_pixels", lambda self: (names.append(self.name), decode(self))[1])
    room = pictures.Recent(4 * 48 * 3, pictures.RECENT.size)  # for three pictures of 8 x 6
    monkeypatch.setattr(pictures, "RECENT", room)
    return names


RGB = Image.fromarray(PIXELS)
RAMP = (np.add.outer(np.arange(6), np.arange(8)) * 5000).astype(np.uint16)
EXIF = Image.Exif()
EXIF[0x0112] = 6
CLEAR = Image.new("RGBA", (8, 6), (0, 0, 0, 0))
CLEAR.putpixel((2, 3), (0, 0, 0, 255))
HALF = Image.new("LA", (8, 6), (0, 128))
INKED = np.full((6, 8, 3), 255)
INKED[3, 2] = 0
FIRST = tuple(int(v) for v in PIXELS[0, 0])  # the colour that stands for "nothing here"
HOLED = np.where((np.array(FIRST) == PIXELS).all(-1)[..., None], 255, PIXELS)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, 2)


@pytest.mark.parametrize("door", [stored, held])
@pytest.mark.parametrize(
    ("image", "kind", "how", "wanted"),
    [
        (RGB, "PNG", {}, PIXELS),
        (RGB, "BMP", {}, PIXELS),
        (RGB, "TIFF", {}, PIXELS),
        (RGB, "WEBP", {"lossless": True}, PIXELS),
        (RGB, "PNG", {"exif": EXIF}, np.rot90(PIXELS, -1)),
        (RGB.convert("L"), "PNG", {}, grey(np.asarray(RGB.convert("L")))),
        (Image.fromarray(RAMP), "PNG", {}, grey(RAMP >> 8)),
        (Image.fromarray(RAMP), "TIFF", {}, grey(RAMP >> 8)),
        (CLEAR, "PNG", {}, INKED),
        (HALF, "PNG", {}, np.full((6, 8, 3), 127)),
        (RGB, "PNG", {"transparency": FIRST}, HOLED),
        (Image.fromarray(RAMP), "PNG", {"transparency": 0}, grey(np.where(RAMP == 0, 255, RAMP >> 8))),
        (Image.new("1", (8, 6), 1), "PNG", {}, np.full((6, 8, 3), 255)),
    ],
)
def test_every_kind_becomes_upright_rgb_by_both_doors(door, image, kind, how, wanted):
    picture = door(image, kind, **how)
    assert (picture.mode, picture.size) == ("RGB", wanted.shape[1::-1])
    np.testing.assert_array_equal(np.asarray(picture), wanted)


@pytest.mark.parametrize("mode", ["CMYK", "P", "PA", "La", "RGBa", "YCbCr", "LAB", "HSV"])
def test_every_mode_that_pillow_knows_is_taken(mode):
    base = RGB.convert({"PA": "LA", "La": "LA", "RGBa": "RGBA", "LAB": "RGB"}.get(mode, mode))
    image = (
        Image.new("LAB", (8, 6), (100, 0, 0)) if mode == "LAB" else base if base.mode == mode else base.convert(mode)
    )
    assert Prompt("p", "what", image).image.mode == "RGB"


def test_an_upright_rgb_picture_stays_the_object_it_is():
    assert Prompt("p", "what", RGB).image is RGB
    assert replace(Prompt("p", "what", RGB), split="test").image is RGB


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (Image.new("RGB", (0, 5)), "0 x 5 pixels show nothing"),
        (Image.new("F", (4, 4)), "save it with 8 or 16 bits"),
        (Image.new("I", (4, 4)), "save it with 8 or 16 bits"),
        (Image.new("1", (8000, 7000)), "too large (8000 x 7000 pixels); at most 50 million pixels"),
    ],
)
def test_pictures_that_are_no_input(image, said):
    with pytest.raises(PromptError, match="prompt 'p': image") as caught:
        Prompt("p", "what", image)
    assert said in str(caught.value)


def by_hand(path) -> Prompt:
    with Image.open(path) as image:
        return Prompt("p", "what", image)


@pytest.mark.parametrize("door", [open_picture, by_hand])
def test_postscript_starts_nothing(tmp_path, door, monkeypatch):
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_: pytest.fail("Ghostscript was started"))
    (tmp_path / "a.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    with pytest.raises(PromptError, match="formats"):
        door(tmp_path / "a.eps")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_a_file_that_was_cut_is_refused_when_it_is_opened(kind):
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (90, 90, 3), dtype=np.uint8)).save(content, kind)
    with pytest.raises(PromptError, match="image 'cut' cannot be read"):
        pictures.picture_of_bytes(content.getvalue()[:-2000], "cut")


def test_large_files_are_not_read(monkeypatch):
    monkeypatch.setattr(pictures, "MAX_BYTES", 50)
    with pytest.raises(PromptError, match="too large"):
        stored(RGB, "PNG")


def test_the_first_frame_is_taken_and_said(tmp_path, caplog):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    CLEAR.save(tmp_path / "clear.png")
    rows = [{"text": f"what {k}", "label": "safe", "image": n} for k, n in enumerate(("moving.gif", "clear.png"))]
    with caplog.at_level(logging.INFO, logger="workbench"):
        prompts = load_prompts(rows, images=tmp_path)
    assert prompts[0].image.getpixel((0, 0)) == (255, 0, 0)
    assert "1 of 2 pictures: each holds several frames, of which the first is used; the first is 'moving.gif'" in (
        caplog.text
    )
    assert "1 of 2 pictures: each has transparency and is laid on white; the first is 'clear.png'" in caplog.text


def rows_of(names) -> list[dict]:
    return [{"text": f"question {k}", "label": ("safe", "unsafe")[k % 2], "image": n} for k, n in enumerate(names)]


def test_pictures_are_decoded_when_needed_once_for_what_shares_them_and_let_go(tmp_path, decoded):
    for k in range(5):
        Image.fromarray(np.roll(PIXELS, k, axis=0)).save(tmp_path / f"{k}.png")
    prompts = load_prompts(rows_of([f"{k % 5}.png" for k in range(10)]), images=tmp_path)
    assert prompts[0].image is prompts[5].image
    sizes = {p.image.size for p in prompts}
    prompts.content_hash(), prompts.frame(), prompts.with_split("test"), repr(prompts[0])
    assert (sizes, decoded) == ({(8, 6)}, []), "neither size nor hashes nor copies decode anything"
    for p in (prompts[0], prompts[5], prompts[0]):
        np.testing.assert_array_equal(np.asarray(p.image), PIXELS)
    assert decoded == ["0.png"]
    for p in prompts[1:5]:
        p.image.load()
    np.testing.assert_array_equal(np.asarray(prompts[0].image), PIXELS)
    assert decoded == ["0.png", "1.png", "2.png", "3.png", "4.png", "0.png"], "three are kept, the oldest went"


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_pictures_in_an_archive_are_read_where_they_are(tmp_path, kind):
    RGB.save(tmp_path / "a.png")
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
            archive.write(tmp_path / "a.png", "deep/a.png")
    else:
        with tarfile.open(tmp_path / "set.tar", "w") as archive:
            archive.add(tmp_path / "a.png", "./deep/a.png")
    (tmp_path / "a.png").unlink()
    (prompt,) = load_prompts(rows_of(["deep/a.png"]), images=tmp_path / f"set.{kind}")
    np.testing.assert_array_equal(np.asarray(prompt.image), PIXELS)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"set.{kind}"], "nothing is unpacked"
    with pytest.raises(PromptError, match=r"'deep/b.png' does not exist in .*set"):
        load_prompts(rows_of(["deep/b.png"]), images=tmp_path / f"set.{kind}")


def test_archives_that_cannot_be_used(tmp_path):
    (tmp_path / "a.zip").write_text("no archive")
    with tarfile.open(tmp_path / "b.tar.gz", "w:gz"):
        pass
    (tmp_path / "b.tar.gz").rename(tmp_path / "b.tar")
    (tmp_path / "c.rar").write_text("no archive")
    for name, said in (
        ("a.zip", "zip archive"),
        ("b.tar", "plain tar"),
        ("c.rar", "Unpack it"),
        ("d", "There is no folder"),
    ):
        with pytest.raises(PromptError, match=said):
            load_prompts(rows_of(["x.png"]), images=tmp_path / name)


def test_a_stored_picture_is_a_pil_image_to_everyone(tmp_path):
    RGB.save(tmp_path / "a.png")
    picture = open_picture(tmp_path / "a.png")
    assert isinstance(picture, Image.Image)
    assert picture.resize((4, 3)).size == (4, 3)
    for again in (picture.copy(), picture.convert("RGB")):
        assert type(again) is Image.Image
        np.testing.assert_array_equal(np.asarray(again), PIXELS)
    before = image_hash(picture)
    for again in (pickle.loads(pickle.dumps(picture)), copy.deepcopy(picture)):  # noqa: S301
        (tmp_path / "a.png").rename(tmp_path / "b.png")  # in another process the file may not be there
        np.testing.assert_array_equal(np.asarray(again), PIXELS)
        assert image_hash(again) == before, "what is stored travels, and is known again"
        (tmp_path / "b.png").rename(tmp_path / "a.png")
    picture.putpixel((0, 0), (1, 2, 3))
    assert picture.getpixel((0, 0)) == (1, 2, 3)
    assert image_hash(picture) != before, "a changed picture is not the stored one"
    assert image_hash(pickle.loads(pickle.dumps(picture))) == image_hash(picture)  # noqa: S301
    assert open_picture(tmp_path / "a.png").getpixel((0, 0)) == tuple(PIXELS[0, 0]), "and the stored one is as it was"


@pytest.mark.slow
def test_two_thousand_pictures_cost_names(tmp_path):
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(2).integers(0, 255, (200, 200, 3), dtype=np.uint8)).save(content, "JPEG")
    names = [f"{k}.jpg" for k in range(2000)]
    for name in names:
        (tmp_path / name).write_bytes(content.getvalue() + name.encode())
    tracemalloc.start()
    try:
        prompts = load_prompts(rows_of(names), images=tmp_path)
        assert len({image_hash(p.image) for p in prompts}) == 2000
        for prompt in prompts[:300]:
            prompt.image.load()
        used = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    # Encoded they are 2000 x 30 kB, decoded 2000 x 160 kB; Pillow's own pixels are bounded by what is kept of them.
    assert used < 2000 * 6000, f"{used / 2000:.0f} bytes a prompt"
    assert sum(4 * w * h for w, h in (p.size for p in pictures.RECENT._kept.values())) <= pictures.RECENT_BYTES


def test_a_set_of_one_prompt_is_a_set():
    prompt = Prompt("p", "what")
    assert list(PromptSet(prompt)) == [prompt]


def test_a_picture_that_is_gone_or_broken_is_a_matter_of_its_prompt(tmp_path):
    noise = Image.fromarray(np.random.default_rng(3).integers(0, 255, (32, 32, 3), dtype=np.uint8))
    for name in ("a.png", "gone.png"):
        noise.save(tmp_path / name)
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[100:400] = bytes(300)  # the header says the size, the end says that it is whole
    (tmp_path / "broken.png").write_bytes(bytes(content))
    rows = rows_of(["a.png", "gone.png", "broken.png", "broken.png"])
    prompts = load_prompts([row | {"split": "test", "id": f"p{k}"} for k, row in enumerate(rows)], images=tmp_path)
    check_splits([prompts[2], replace(prompts[0], split="selection", image=None)])  # looks for flat pictures
    (tmp_path / "gone.png").unlink()
    run = wb.sweep(tiny("llava"), prompts, heads=[(0, 0)], on_error="skip", progress=False)
    assert list(json.loads(run.attrs["skipped"])) == ["p1", "p2", "p3"]
    assert np.isfinite(run.deflection.values[0, 0, 0, 0])
    with pytest.raises(PromptError, match=r"Prompt 'p1' cannot be swept.*gone\.png"):
        wb.sweep(tiny("llava"), prompts, heads=[(0, 0)], progress=False)
