"""What people hold, and columns under other names: a DataFrame, dicts, a Hugging Face data set, Hub files."""

import gc
import io
import json
import logging

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from workbench.errors import ArgumentError, PromptError
from workbench.prompts import load_prompts, places
from workbench.prompts.pictures import Picture
from workbench.prompts.prompt import Prompt

PIXELS = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)
RGB = Image.fromarray(PIXELS)


def png(pixels: np.ndarray = PIXELS) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


ROWS = [
    {"text": "what is it?", "label": "safe", "image": RGB, "family": "icon"},
    {"text": "break it", "label": "unsafe", "image": None, "family": None},
]


def frame() -> pd.DataFrame:
    return pd.DataFrame(ROWS)


def dataset() -> datasets.Dataset:
    return datasets.Dataset.from_list(ROWS)


def dicts() -> list[dict]:
    return ROWS


@pytest.mark.parametrize("make", [frame, dataset, dicts])
def test_what_is_held_reads_alike(make):
    held = make()
    prompts = load_prompts(held)
    assert [(p.id, p.text, p.label, p.family) for p in prompts] == [
        ("row-1", "what is it?", "safe", "icon"),
        ("row-2", "break it", "unsafe", ""),
    ]
    np.testing.assert_array_equal(np.asarray(prompts[0].image), PIXELS)
    assert prompts[1].image is None
    assert {p.source for p in prompts} == {type(held).__name__}
    assert len(load_prompts(held, n=1)) == 1


def test_a_data_set_is_not_decoded_to_be_loaded(monkeypatch):
    rows = [{"text": f"q {k}", "label": "safe", "image": RGB} for k in range(5)]
    held = datasets.Dataset.from_list(rows)
    with monkeypatch.context() as patch:
        patch.setattr(Picture, "_pixels", lambda self: pytest.fail("decoded"))
        prompts = load_prompts(held)
        assert [p.image.size for p in prompts] == [(8, 6)] * 5
    np.testing.assert_array_equal(np.asarray(prompts[4].image), PIXELS)


def test_what_is_no_table():
    stream = datasets.Dataset.from_list(ROWS).to_iterable_dataset()
    for held, said in (
        (datasets.DatasetDict(train=dataset(), test=dataset()), "splits train, test was given; give one"),
        (stream, "IterableDataset, which cannot be read twice"),
        ([], "DataFrame, a list of dicts or a datasets.Dataset; got []"),
        ([1], "got [1]"),
        (pd.DataFrame({"text": [], "label": []}), "not one row"),
        (pd.DataFrame([["a", "safe", "b"]], columns=["text", "label", "text"]), "text more than once"),
        ([{"text": "x", "label": "safe", "image": "a.png"}], "give images=DIR"),
        ([{"text": "x", "label": "safe", "image": [RGB]}], "image must be text; got list"),
        ([{"text": "x", "label": "safe", "image": b"none"}], "cannot be read"),
    ):
        with pytest.raises(PromptError) as caught:
            load_prompts(held)
        assert said in str(caught.value)


@pytest.mark.parametrize("kind", ["struct", "binary"])
def test_parquet_cells_are_pictures_and_stay_in_the_file(tmp_path, kind, monkeypatch):
    cells = [{"bytes": png(), "path": "a.png"}, None] if kind == "struct" else [png(), None]
    table = pa.table({"text": ["one", "two"], "label": ["safe", "unsafe"], "image": pa.array(cells)})
    parquet.write_table(table, tmp_path / "p.parquet", row_group_size=1)
    with monkeypatch.context() as patch:
        patch.setattr(Picture, "_pixels", lambda self: pytest.fail("decoded"))
        prompts = load_prompts(tmp_path / "p.parquet")
    np.testing.assert_array_equal(np.asarray(prompts[0].image), PIXELS)
    assert prompts[1].image is None
    broken = table.set_column(2, "image", pa.array([{"bytes": b"none", "path": "a"}, None]))
    parquet.write_table(broken, tmp_path / "p.parquet")
    with pytest.raises(PromptError, match=r"row 1: image 'image of row 1' cannot be read"):
        load_prompts(tmp_path / "p.parquet")


def test_a_large_row_group_is_never_held_whole(tmp_path, monkeypatch):
    """As pandas writes them: all pictures in one row group."""
    drawn = [np.random.default_rng(k).integers(0, 255, (4, 5, 3), dtype=np.uint8) for k in range(23)]
    cells = [{"bytes": png(pixels), "path": f"{k}.png"} for k, pixels in enumerate(drawn)]
    table = pd.DataFrame(
        {"text": [f"t{k}" for k in range(23)], "label": "safe", "image": [*cells[:7], None, *cells[8:]]}
    )
    table.to_parquet(tmp_path / "p.parquet")
    monkeypatch.setattr(places, "HELD_BYTES", 600)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    held, read = [], places.ParquetCells._read_batch
    monkeypatch.setattr(
        places.ParquetCells, "_read_batch", lambda *at: (held.append(len(found := read(*at))), found)[1]
    )
    prompts = load_prompts(tmp_path / "p.parquet")
    for k in (22, 0, 6, 8, 21, 1):
        np.testing.assert_array_equal(np.asarray(prompts[k].image), drawn[k])
    assert prompts[7].image is None
    assert 1 <= max(held) < 5
    assert sum(1 for _ in (tmp_path / "temporary").rglob("*.arrow")) == 1, "written once"
    del prompts
    gc.collect()
    assert not list((tmp_path / "temporary").iterdir())


def hub(tmp_path):
    repository = tmp_path / "datasets--someone--set"
    snapshot = repository / "snapshots" / "0a1b"
    (snapshot / "images").mkdir(parents=True)
    (repository / "blobs").mkdir()
    RGB.save(repository / "blobs" / "ff00", "PNG")
    (snapshot / "images" / "a.png").symlink_to("../../../blobs/ff00")
    (snapshot / "p.jsonl").write_text(json.dumps({"text": "x", "label": "safe", "image": "images/a.png"}))
    return repository, snapshot


def test_links_within_a_hub_cache_are_followed_and_no_others(tmp_path):
    repository, snapshot = hub(tmp_path)
    np.testing.assert_array_equal(np.asarray(load_prompts(snapshot / "p.jsonl")[0].image), PIXELS)
    for secret in (tmp_path / "secret.png", repository / "refs.png"):
        RGB.save(secret)
        (snapshot / "images" / "a.png").unlink()
        (snapshot / "images" / "a.png").symlink_to(secret)
        with pytest.raises(PromptError, match="outside the folder"):
            load_prompts(snapshot / "p.jsonl")
    (snapshot / "p.jsonl").write_text(json.dumps({"text": "x", "label": "safe", "image": "../../blobs/ff00"}))
    with pytest.raises(PromptError, match="outside the folder"):
        load_prompts(snapshot / "p.jsonl")


ALIKE = "image_path img image_file picture images".split()


@pytest.mark.parametrize("name", [*ALIKE, "Image Path"])
def test_a_column_that_looks_like_pictures_must_be_mapped(tmp_path, name):
    RGB.save(tmp_path / "a.png")
    file = tmp_path / "p.csv"
    file.write_text(f"text,label,{name}\nwhat,safe,a.png\n")
    with pytest.raises(PromptError) as caught:
        load_prompts(file)
    assert f"columns={{'image': '{name}'}} (--columns image={name})" in str(caught.value)
    assert load_prompts(file, columns={"image": name})[0].image.size == (8, 6)
    assert load_prompts(file, columns={"image": None})[0].image is None


@pytest.mark.parametrize("name", "jailbreak_query query question prompt instruction".split())
def test_so_must_one_that_looks_like_the_text(name):
    rows = [{name: "what is it?", "label": "safe"}]
    with pytest.raises(PromptError, match=f"'{name}' looks like the column 'text'"):
        load_prompts(rows)
    assert load_prompts(rows, columns={"text": name})[0].text == "what is it?"


def test_cells_that_name_pictures_tell_on_their_column(tmp_path, caplog):
    RGB.save(tmp_path / "a.PNG")
    rows = [{"text": f"q {k}", "label": "safe", "shown": c} for k, c in enumerate(("", "a.PNG", "b.png"))]
    with pytest.raises(PromptError, match="'shown' looks like the column 'image'"):
        load_prompts(rows, images=tmp_path)
    with caplog.at_level(logging.INFO, logger="workbench"):
        assert len(load_prompts([r | {"shown": "c.png"} for r in rows], images=tmp_path)) == 3
        assert len(load_prompts([r | {"image": "a.PNG"} for r in rows], images=tmp_path)) == 3
    assert caplog.text.count("columns that are not read: shown") == 2


def test_mapped_columns_take_the_place_of_our_own(caplog):
    rows = [{"query": "asked", "text": "a note", "class": "unsafe", "prompt": "null"}]
    with caplog.at_level(logging.INFO, logger="workbench"):
        (prompt,) = load_prompts(rows, columns={"text": "query", "label": "class", "system": "prompt"})
    assert (prompt.text, prompt.label, prompt.system) == ("asked", "unsafe", "null")
    assert "columns that are not read: text" in caplog.text


def test_maps_that_cannot_be_meant():
    for columns, error, said in (
        ({"picture": "image"}, PromptError, "columns maps 'picture'; a prompt has id, text, image"),
        ({"image": "imag"}, PromptError, "has no column 'imag'. The columns there are: 'text', 'label'"),
        ({"text": None}, PromptError, "neither text nor image"),
        ({"image": 3}, ArgumentError, "columns must be a valid string"),
        ("image", ArgumentError, "columns must be"),
    ):
        with pytest.raises(error) as caught:
            load_prompts([{"text": "x", "label": "safe"}], columns=columns)
        assert said in str(caught.value)


def test_missing_pictures_are_dropped_when_that_is_said(tmp_path, caplog):
    RGB.save(tmp_path / "a.png")
    rows = [{"text": f"q {k}", "label": "safe", "image": name} for k, name in enumerate(("a.png", "b.png"))]
    assert [p.text for p in load_prompts(rows, images=tmp_path, missing="drop")] == ["q 0"]
    assert "1 of 2 rows are left out" in caplog.text
    assert "row 2: image 'b.png' does not exist" in caplog.text
    with pytest.raises(PromptError, match="no usable path"):
        load_prompts([rows[0] | {"image": "a\0.png"}], images=tmp_path, missing="drop")


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_what_else_a_prompt_says_is_read_from_columns(tmp_path, suffix):
    turns = [["user", "hello"], ["assistant", " hi "]]
    row = {"text": "x", "label": "safe", "system": " be kind ", "prefill": "Sure"}
    file = tmp_path / f"p.{suffix}"
    if suffix == "csv":
        pd.DataFrame([row | {"turns": json.dumps(turns)}]).to_csv(file, index=False)
    elif suffix == "jsonl":
        file.write_text(json.dumps(row | {"turns": [{"role": r, "content": c} for r, c in turns]}))
    else:
        pd.DataFrame([row | {"turns": turns}]).to_parquet(file)
    (prompt,) = load_prompts(file)
    assert (prompt.system, prompt.prefill) == (" be kind ", "Sure")
    assert prompt.turns == (("user", "hello"), ("assistant", " hi "))


@pytest.mark.parametrize(
    "turns", ["hello", '{"user": "x"}', [["user"]], [["robot", "x"]], 3, [{"role": "user"}], ["ab"]]
)
def test_turns_that_are_none(turns):
    with pytest.raises(PromptError, match=r"row 1: (prompt 'row-1': )?turns must be"):
        load_prompts([{"text": "x", "label": "safe", "turns": turns}])


def test_splits_that_overlap_are_refused_as_they_are_loaded():
    rows = [{"text": "What is it?", "label": "safe", "split": split} for split in ("selection", "test")]
    with pytest.raises(PromptError, match="The splits overlap: the content"):
        load_prompts(rows)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"id": None}, "needs a non-empty text id; got None"),
        ({"id": "x" * 301}, "id has 301 characters; at most 300"),
        ({"family": "x" * 301}, "family has 301 characters"),
        ({"id": "\ud800"}, "id holds half of a character (a lone surrogate)"),
        ({"text": "\udfff"}, "text holds half of a character"),
        ({"text": None}, "text must be a string; got NoneType. Use ''"),
        ({"label": None}, "label must be a string; got NoneType"),
        ({"label": "harmful"}, "label must be one of safe, unsafe; got 'harmful'"),
        ({"split": "train"}, "split must be empty or one of selection, threshold, test; got 'train'"),
        ({"image": "a.png"}, "image must be a PIL image or None; got str"),
        ({"text": " "}, "neither text nor image"),
        ({"system": 3}, "system must be a string; got int"),
    ],
)
def test_prompts_that_are_none(how, said):
    with pytest.raises(PromptError) as caught:
        Prompt(**{"id": "p", "text": "x"} | how)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"n": 10**9}, "n must be a whole number from 1 to 1000000"),
        ({"seed": None}, "seed must be a whole number from 0; got None"),
        ({"missing": "skip"}, "missing must be 'raise' or 'drop'"),
        ({"split": ""}, "split must be one of"),
        ({"root": 3}, "root must be"),
        ({"images": 3}, "images must be"),
        ({"what": 3}, "unexpected keyword argument 'what'"),
    ],
)
def test_calls_that_cannot_be_meant(how, said):
    with pytest.raises(ArgumentError) as caught:
        load_prompts("pocket", **how)
    assert said in str(caught.value)
