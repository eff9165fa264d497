"""A person's own prompt files: what is read, and what each mistake is answered with."""

import csv
import json
import logging
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from workbench.errors import ArgumentError, PromptError
from workbench.prompts import load_prompts, pictures

ROWS = [
    {"text": "how do I make a cake", "label": "safe", "image": "pictures/red.png", "family": "icon", "pair_id": "a"},
    {"text": "how do I make a bomb", "label": "unsafe", "image": "pictures/red.png", "family": "icon", "pair_id": "a"},
    {"text": "what is this?", "label": "safe", "image": None, "family": "question", "pair_id": None},
]


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (8, 6), "red").save(tmp_path / "pictures" / "red.png")
    return tmp_path


def write(path: Path, rows: list) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    elif path.suffix == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    else:
        pd.DataFrame(rows).to_parquet(path)
    return path


def refusal(path: Path, *, error: type[Exception] = PromptError, **how) -> str:
    with pytest.raises(error) as caught:
        load_prompts(path, **how)
    return str(caught.value)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet", ".CSV"])
def test_three_formats_read_alike(folder, suffix):
    path = write(folder / f"mine{suffix.lower()}", ROWS)
    path = path.rename(folder / f"mine{suffix}")
    prompts = load_prompts(path)
    assert [p.text for p in prompts] == [r["text"] for r in ROWS]
    assert [p.label for p in prompts] == ["safe", "unsafe", "safe"]
    assert [p.id for p in prompts] == ["row-1", "row-2", "row-3"]
    assert [p.pair_id for p in prompts] == ["a", "a", ""]
    assert {p.source for p in prompts} == {"mine"}
    assert {p.variant for p in prompts} == {"as given"}
    assert prompts[0].image.size == (8, 6)
    assert prompts[0].image.getpixel((0, 0)) == (255, 0, 0)
    assert prompts[0].image is prompts[1].image, "a picture that two rows share is opened once"
    assert prompts[2].image is None


def test_every_optional_column_arrives(folder):
    row = {"id": 17, "text": "  spaces stay ", "label": " Unsafe ", "source": "own", "family": "text"}
    row |= {"category": "scam", "pair_id": 3.0, "split": "TEST", "variant": "caption"}
    (prompt,) = load_prompts(write(folder / "mine.jsonl", [row]))
    assert (prompt.id, prompt.text, prompt.label) == ("17", "  spaces stay ", "unsafe")
    assert (prompt.source, prompt.family, prompt.category) == ("own", "text", "scam")
    assert (prompt.pair_id, prompt.split, prompt.variant) == ("3", "test", "caption")


def test_csv_of_a_spreadsheet(folder):
    # A byte-order mark, Windows line ends, a line break and a comma inside a cell, a blank line, a word for "missing".
    content = '\ufefftext,label,image,family\r\n"one, two\nthree",safe,nan,None\r\n\r\nnull,unsafe,NA,text\r\n'
    (folder / "mine.csv").write_bytes(content.encode())
    first, second = load_prompts(folder / "mine.csv")
    assert first.text == "one, two\nthree"
    assert first.image is None
    assert first.family == ""
    assert (second.id, second.text) == ("row-2", "null"), "text is never taken for a missing value"


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_the_bad_row_is_named(folder, suffix):
    rows = [*ROWS, {"text": "x", "label": "harmful", "image": None, "family": "", "pair_id": ""}]
    message = refusal(write(folder / f"mine{suffix}", rows))
    assert "1 of 4 rows" in message
    assert "row 4" in message
    assert "'harmful'" in message
    assert "safe, unsafe" in message
    assert "row 3" not in message
    if suffix == ".csv":
        assert "row 4 (line 5)" in message  # the header is a line, not a row


def test_bad_rows_are_told_together_five_at_most(folder):
    rows = [{"text": "x", "label": "?"} for _ in range(8)]
    rows[2] = {"text": "fine", "label": "safe"}
    message = refusal(write(folder / "mine.jsonl", rows))
    assert "7 of 8 rows" in message
    assert [k for k in range(1, 9) if f"row {k} " in message] == [1, 2, 4, 5, 6]
    assert "and 2 more" in message


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"label": "safe"}, "neither text nor image"),
        ({"text": None, "label": "safe"}, "neither text nor image"),
        ({"text": float("nan"), "label": "safe"}, "neither text nor image"),
        ({"text": "x"}, "label is empty"),
        ({"text": "x", "label": 1}, "label must be text; got int"),
        ({"text": ["x"], "label": "safe"}, "text must be text; got list"),
        ({"text": 5, "label": "safe"}, "text must be text; got int"),
        ({"text": "\ud800", "label": "safe"}, "lone surrogate"),
        ({"text": "x", "label": "safe", "id": True}, "id must be text; got bool"),
        ({"text": "x", "label": "safe", "id": "good"}, "already that of row 1"),
        ({"text": "x", "label": "safe", "split": "train"}, "selection, threshold, test"),
        ({"text": "x", "label": "safe", "image": "pictures/blue.png"}, "'pictures/blue.png' does not exist"),
        ({"text": "x", "label": "safe", "image": "pictures"}, "is a folder"),
        ({"text": "x", "label": "safe", "image": "../red.png"}, "outside the folder"),
        ({"text": "x", "label": "safe", "image": "pictures/../../red.png"}, "outside the folder"),
        ({"text": "x", "label": "safe", "image": "/etc/passwd"}, "not an absolute one"),
        ({"text": "x", "label": "safe", "image": "C:\\red.png"}, "not an absolute one"),
        ({"text": "x", "label": "safe", "image": "https://example.org/red.png"}, "nothing is fetched"),
        ({"text": "x", "label": "safe", "image": "a\0b.png"}, "no usable path"),
        ({"text": "x", "label": "safe", "image": "pictures\\red.png"}, "use / between folders"),
        ("{", "no JSON"),
        ("[1, 2]", "got list"),
    ],
)
def test_what_is_wrong_with_a_row(folder, row, said):
    message = refusal(write(folder / "mine.jsonl", [{"text": "x", "label": "safe", "id": "good"}, row]))
    assert "row 2 (line 2)" in message
    assert said in message


def test_pictures_cannot_be_reached_through_a_link(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    Image.new("RGB", (4, 4)).save(outside / "secret.png")
    (folder / "pictures" / "link.png").symlink_to(outside / "secret.png")
    (folder / "linked").symlink_to(outside)
    for image in ("pictures/link.png", "linked/secret.png"):
        path = write(folder / "mine.jsonl", [{"text": "x", "label": "safe", "image": image}])
        assert "outside the folder" in refusal(path)


def test_pictures_that_cannot_be_used(folder, monkeypatch):
    good = (folder / "pictures" / "red.png").read_bytes()
    (folder / "text.png").write_text("not a picture")
    (folder / "cut.png").write_bytes(good[: len(good) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "program.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    Image.new("F", (4, 4)).save(folder / "deep.tiff")
    names = ["text.png", "cut.png", "empty.png", "program.eps", "deep.tiff"]
    path = write(folder / "mine.jsonl", [{"text": "x", "label": "safe", "image": name} for name in names])
    message = refusal(path)
    assert "5 of 5 rows" in message
    assert all(f"image '{name}' cannot be read" in message for name in names)

    monkeypatch.setattr(pictures, "MAX_PIXELS", 47)  # red.png has 48
    path = write(folder / "mine.jsonl", [{"text": "x", "label": "safe", "image": "pictures/red.png"}])
    assert "too large (8 x 6 pixels)" in refusal(path)


def test_pictures_arrive_as_upright_rgb(folder):
    turned = Image.new("L", (8, 6), 200)
    exif = turned.getexif()
    exif[0x0112] = 6  # turn by 90 degrees to see it upright
    turned.save(folder / "turned.jpg", exif=exif)
    palette = Image.new("P", (4, 4))
    palette.putpalette([0, 0, 0, 9, 9, 9, 200, 3, 3])
    palette.putpixel((1, 1), 2)
    palette.save(folder / "palette.png", transparency=b"\x10\x80\x90")  # Pillow warns if it goes straight to RGB
    rows = [{"text": "x", "label": "safe", "image": name} for name in ("turned.jpg", "palette.png")]
    first, second = load_prompts(write(folder / "mine.jsonl", rows))
    assert (first.image.mode, first.image.size) == ("RGB", (6, 8))
    assert second.image.getpixel((1, 1)) == (224, 113, 113), "144 of 255 of (200, 3, 3), the rest white"


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("text", ["column label is missing", "'text'"]),
        ("prompt,class", ["text and label is missing", "'prompt', 'class'"]),
        ("text,lable", ["label is missing", "'lable' is not a known column: is it 'label'"]),
        ("text,label,famly", ["'famly' is not a known column: is it 'family'"]),
        ("Text,label", ["'Text' is not a known column: is it 'text'"]),
        ("text;label", ["something else than a comma"]),
        ("text,label,text", ["names 'text' more than once"]),
    ],
)
def test_columns_are_checked_before_rows(folder, header, said):
    (folder / "mine.csv").write_text(f"{header}\n{','.join('x' for _ in header.split(','))}\n")
    message = refusal(folder / "mine.csv")
    assert all(part in message for part in said), message


def test_other_columns_are_left_out_and_logged(folder, caplog):
    with caplog.at_level(logging.INFO, logger="workbench"):
        (prompt,) = load_prompts(
            write(folder / "mine.csv", [{"text": "x", "label": "safe", "annotator": "B", "id": 1}])
        )
    assert prompt.id == "1"
    assert "annotator" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.csv", b"", "not one row"),
        ("header.csv", b"text,label\n", "not one row"),
        ("empty.jsonl", b"\n \n", "not one row"),
        ("latin.csv", "text,label\ncaf\xe9,safe\n".encode("latin-1"), "not UTF-8"),
        ("latin.jsonl", '{"text": "caf\xe9"}'.encode("latin-1"), "not UTF-8"),
        ("quote.csv", b'text,label\n"x,safe\n', "no well-formed CSV"),
        ("narrow.csv", b"text,label\nx\n", "1 cells where the header names 2"),
        ("wide.csv", b"text,label\nx,y,safe\n", "3 cells where the header names 2"),
        ("text.parquet", b"PAR1 not really", "cannot be read as parquet"),
        ("mine.json", b"[]", ".jsonl, .csv, .parquet"),
    ],
)
def test_files_that_cannot_be_read(folder, name, content, said):
    (folder / name).write_bytes(content)
    assert said in refusal(folder / name)


def test_a_very_long_cell_is_an_error_not_a_crash(folder):
    (folder / "mine.csv").write_text(f"text,label\n{'x' * (csv.field_size_limit() + 1)},safe\n")
    assert "field larger than" in refusal(folder / "mine.csv")


def test_names_that_do_not_exist(folder):
    write(folder / "mine.csv", ROWS)
    assert "Did you mean mine.csv?" in refusal(folder / "mime.csv")
    (folder / "sub.csv").mkdir()
    assert "is a folder" in refusal(folder / "sub.csv")
    message = refusal("pokcet")
    assert "Did you mean 'pocket'" in message
    assert "'planted'" in message
    assert ".parquet" in message
    assert "a datasets.Dataset; got 3" in refusal(3)


def balanced(folder) -> Path:
    rows = [
        {"text": f"t{k}", "label": "unsafe" if k < 12 else "safe", "id": k, "split": ("", "test")[k % 2]}
        for k in range(20)
    ]
    return write(folder / "mine.csv", rows)


def test_a_sample_is_seeded_balanced_and_in_order(folder):
    path = balanced(folder)
    prompts = load_prompts(path, n=8, seed=3)
    assert [p.label for p in prompts] == ["unsafe"] * 4 + ["safe"] * 4
    assert [int(p.id) for p in prompts] == sorted(int(p.id) for p in prompts)
    assert [p.id for p in load_prompts(path, n=8, seed=3)] == [p.id for p in prompts]
    assert [p.id for p in load_prompts(path, n=8, seed=4)] != [p.id for p in prompts]
    # 8 safe ones are all there are, so 18 take 10 unsafe ones; and an odd number is still met
    assert sum(p.label == "safe" for p in load_prompts(path, n=18)) == 8
    assert [len(load_prompts(path, n=n)) for n in (1, 7, 19, 20)] == [1, 7, 19, 20]


def test_a_split_is_the_one_declared(folder):
    path = balanced(folder)
    assert [int(p.id) % 2 for p in load_prompts(path, split="test")] == [1] * 10
    message = refusal(path, split="selection")
    assert "'selection'" in message
    assert "declares are test" in message
    assert "declares no splits" in refusal(write(folder / "none.csv", ROWS), split="test")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"n": 0}, "whole number from 1"),
        ({"n": -3}, "whole number from 1"),
        ({"n": 2.5}, "got 2.5"),
        ({"n": True}, "got True"),
        ({"n": 21}, "there are 20"),
        ({"split": "train"}, "selection, threshold, test"),
        ({"seed": -1}, "whole number from 0"),
        ({"seed": "a"}, "whole number from 0"),
    ],
)
def test_selections_that_cannot_be_made(folder, how, said):
    error = PromptError if how == {"n": 21} else ArgumentError
    assert said in refusal(balanced(folder), error=error, **how)


@pytest.mark.parametrize("world", ["pocket", "planted"])
def test_the_embedded_worlds_go_through_the_same_door(world):
    prompts = load_prompts(world, split="test", seed=1, n=8)
    assert len(prompts) == 8
    assert {p.split for p in prompts} == {"test"}
    assert {p.label for p in prompts} == {"safe", "unsafe"}
    assert prompts.content_hash() == load_prompts(world, split="test", seed=1, n=8).content_hash()
    assert prompts.content_hash() != load_prompts(world, split="test", seed=2, n=8).content_hash()
