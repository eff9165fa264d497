"""Hostile prompts: each writes a file, and what it points at; all are refused in words, and run nothing."""

import json
import os
import pickle
import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import workbench as wb
from tests.faults.hostile import Runs, refused

pytestmark = pytest.mark.usefixtures("elsewhere")


def rows(*found: dict[str, Any]) -> str:
    return "\n".join(json.dumps(row) for row in found)


def named(name: str, data: str | bytes) -> Callable[[Path], Path]:
    def act(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return path

    return act


jsonl, csv = partial(named, "prompts.jsonl"), partial(named, "prompts.csv")


def shown(name: str, data: bytes = b"", make: Callable[[Path], Any] | None = None) -> Callable[[Path], Path]:
    """A file with one prompt, whose picture is `name`."""

    def act(folder: Path) -> Path:
        if make is not None:
            make(folder / name)
        elif data:
            (folder / name).write_bytes(data)
        return jsonl(rows({"text": "what is this", "label": "safe", "image": name}))(folder)

    return act


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixels = zlib.compress(b"\0" * 1000)
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(a-file-that-was-run) (w) file closefile\nshowpage\n"
GOOD = {"text": "what is this", "label": "safe"}
PROMPTS: dict[str, Callable[[Path], Path]] = {
    "a bomb": shown("bomb.png", png(60_000, 60_000)),
    "a large bomb": shown("bomb.png", png(2**31 - 1, 2**31 - 1)),
    "no width": shown("flat.png", png(0, 10)),
    "a cut picture": shown("cut.png", png(40, 40)[:60]),
    "EPS": shown("x.eps", EPS),
    "EPS by another name": shown("x.png", EPS),
    "SVG": shown("x.svg", b"<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>"),
    "a pipe": shown("pipe.png", make=os.mkfifo),
    "a folder": shown("folder.png", make=Path.mkdir),
    "a link outside": shown("link.png", make=lambda path: path.symlink_to("/etc/hostname")),
    "a link to itself": shown("self.png", make=lambda path: path.symlink_to(path.name)),
    "upwards": shown("../outside.png"),
    "absolute": shown("/etc/hostname"),
    "an address": shown("https://example.org/cat.png"),
    "a file address": shown("file:///etc/hostname"),
    "a name with a zero byte": shown("a\0b.png"),
    "a name without an end": shown("x" * 5000 + ".png"),
    "a picture that is a number": jsonl(rows({**GOOD, "image": 3})),
    "rows that are lists": jsonl("[1, 2]"),
    "rows nested deeply": jsonl("[" * 100_000),
    "no rows": jsonl(""),
    "half a row": jsonl('{"text": "what'),
    "not UTF-8": jsonl(b'{"text": "\xff\xfe", "label": "safe"}'),
    "a lone surrogate": jsonl('{"text": "what \\ud800", "label": "safe"}'),
    "a lone surrogate as id": jsonl('{"text": "what", "label": "safe", "id": "\\ud800"}'),
    "another label": jsonl(rows({**GOOD, "label": "harmless"})),
    "a label that is true": jsonl(rows({**GOOD, "label": True})),
    "a text that is a list": jsonl(rows({**GOOD, "text": ["what"]})),
    "a text that is NaN": jsonl('{"text": NaN, "label": "safe"}'),
    "no text": jsonl(rows({**GOOD, "text": " "})),
    "one id twice": jsonl(rows({**GOOD, "id": "a"}, {**GOOD, "id": "a"})),
    "a column misspelt": jsonl(rows({**GOOD, "image_path": "cat.png"})),
    "a zero byte in CSV": csv("text,label\nwhat\0,safe\n"),
    "an open quote": csv('text,label\n"what,safe\n'),
    "a cell too many": csv("text,label\nwhat,safe,more\n"),
    "a cell too few": csv("text,label\nwhat\n"),
    "one column twice": csv("text,text,label\nwhat,is,safe\n"),
    "a field of megabytes": csv("text,label\n" + "x" * 3_000_000 + ",harmless\n"),
    "a binary as CSV": csv(bytes(range(256)) * 20),
    "no Parquet": named("prompts.parquet", b"PAR1" + b"\0" * 50 + b"PAR1"),
    "a pickle as Parquet": named("x.parquet", pickle.dumps(Runs())),
    "a pickle": named("x.pkl", pickle.dumps(Runs())),
}


@pytest.mark.parametrize("make", PROMPTS.values(), ids=PROMPTS)
def test_hostile_prompts(make, tmp_path):
    folder = tmp_path / "prompts"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "outside.png")
    refused(lambda: wb.load_prompts(make(folder)))
