"""Files made to break a reader, or broken on the way: each is refused in words, and nothing of it runs."""

import json
import os
import pickle
import resource
import shutil
import struct
import time
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import zarr
from PIL import Image
from safetensors.torch import load_file, save_file

import workbench as wb
from tests.builders.models import seeded
from tests.faults.harness import swept
from tests.unit.planted_parts import model as planted
from tests.unit.planted_parts import prompts as planted_prompts
from workbench.detectors import OneHeadDetector, load_detector
from workbench.errors import WorkbenchError
from workbench.runs.opening import open_run

SECONDS = 60  # for what takes a second; a hang is what is looked for
RAN = "a-file-that-was-run"


class Runs:
    """Unpickled, it leaves a file behind."""

    def __reduce__(self) -> Any:
        return os.mkdir, (RAN,)


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(change(document) or document), encoding="utf-8")


def cut(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


# Checkpoints: each changes a folder that `save_pretrained` left.
WEIGHTS = "model.safetensors"


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        found = load_file(folder / WEIGHTS)
        change(found)
        save_file(found, folder / WEIGHTS, metadata={"format": "pt"})

    return act


def without(part: str, number: int = 0) -> Callable[[Path], None]:
    def change(found: dict[str, torch.Tensor]) -> None:
        del found[[name for name in sorted(found) if part in name][number]]

    return tensors(change)


def filled(part: str, value: float) -> Callable[[Path], None]:
    def change(found: dict[str, torch.Tensor]) -> None:
        name = next(name for name in sorted(found) if part in name)
        found[name] = found[name].clone().flatten().index_fill(0, torch.tensor([0]), value).view(found[name].shape)

    return tensors(change)


def resized(part: str) -> Callable[[Path], None]:
    def change(found: dict[str, torch.Tensor]) -> None:
        name = next(name for name in sorted(found) if part in name)
        found[name] = found[name][:-1].clone()

    return tensors(change)


def renamed(part: str) -> Callable[[Path], None]:
    def change(found: dict[str, torch.Tensor]) -> None:
        name = next(name for name in sorted(found) if part in name)
        found[name.replace(part, "x" + part)] = found.pop(name)

    return tensors(change)


def config(**values: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "config.json", lambda c: c.update(values))


def text_config(**values: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "config.json", lambda c: c["text_config"].update(values))


def written(name: str, data: bytes | str) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)

    return act


def template(text: str) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        (folder / "chat_template.jinja").write_text(text)

    return act


def header(length: int, text: bytes = b"{}") -> Callable[[Path], None]:
    return written(WEIGHTS, struct.pack("<Q", length) + text)


def index(place: str) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        names = list(load_file(folder / WEIGHTS))
        shutil.move(folder / WEIGHTS, folder.parent / "outside.safetensors")
        document = {"metadata": {}, "weight_map": dict.fromkeys(names, place)}
        (folder / "model.safetensors.index.json").write_text(json.dumps(document))

    return act


def pickled(name: str) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        (folder / name).write_bytes(pickle.dumps(Runs()))

    return act


def plain_bin(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


LOOP = "{% for i in range(10**5) %}{% for j in range(10**5) %}{% endfor %}{% endfor %}"
CHECKPOINTS: dict[str, Callable[[Path], None]] = {
    **{
        f"without {part} {n}": without(part, n)
        for part in ("q_proj", "v_proj", "o_proj", "mlp", "norm")
        for n in (0, 2)
    },
    "without the embedding": without("embed_tokens"),
    "without the projector": without("multi_modal"),
    **{f"renamed {part}": renamed(part) for part in ("q_proj", "down_proj", "embed_tokens")},
    **{f"{value} in {part}": filled(part, value) for part in ("v_proj", "norm") for value in (np.nan, np.inf)},
    **{f"a row less of {part}": resized(part) for part in ("q_proj", "embed_tokens", "multi_modal")},
    **{
        f"{share:.0%} of the weights": lambda folder, s=share: cut(folder / WEIGHTS, s)
        for share in (0, 0.01, 0.5, 0.99)
    },
    "a header of 2**63 bytes": header(2**63 - 1),
    "a header of a gigabyte": header(2**30),
    "a header that is a list": header(2, b"[]"),
    "weights that are a pickle": pickled(WEIGHTS),
    "a pickle as .bin": pickled("pytorch_model.bin"),
    "honest weights as .bin": plain_bin,
    "an index upwards": index("../outside.safetensors"),
    "an absolute index": index("/etc/hostname"),
    "an index to a device": index("/dev/zero"),
    "an adapter beside it": written("adapter_config.json", '{"peft_type": "LORA", "base_model_name_or_path": "x"}'),
    "a configuration that is a list": written("config.json", "[]"),
    "an empty configuration": written("config.json", ""),
    "half a configuration": lambda folder: cut(folder / "config.json", 0.5),
    "a configuration nested deeply": written("config.json", "[" * 100_000),
    "an unknown type": config(model_type="nonsense"),
    "a type that is a number": config(model_type=3),
    "code of its own": config(auto_map={"AutoModel": "evil.Model"}, model_type="nonsense"),
    "no heads": text_config(num_attention_heads=0),
    "a negative number of layers": text_config(num_hidden_layers=-1),
    "layers as words": text_config(num_hidden_layers="four"),
    "a width of a billion": text_config(hidden_size=10**9),
    "a vocabulary of a trillion": text_config(vocab_size=10**12),
    "a template without an end": template(
        "{% for i in range(10**10) %}{% for j in range(10**10) %}{% endfor %}{% endfor %}"
    ),
    "a template of gigabytes": template("{{ 'x' * 10**11 }}"),
    "a template that is cut": template("{% for m in messages %}"),
    "a template that reaches out": template("{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    "a template that raises": template("{{ raise_exception('no') }}"),
    "a template that says nothing": template(""),
    "a tokenizer that is a list": written("tokenizer.json", "[]"),
    "half a tokenizer": lambda folder: cut(folder / "tokenizer.json", 0.5),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    model = seeded()
    model.hf.save_pretrained(folder)
    (model.processor or model.tokenizer).save_pretrained(folder)
    wb.load_model(folder, device="cpu")  # it loads as it is
    return folder


def refused(act: Callable[[], Any]) -> str:
    began = time.monotonic()
    with pytest.raises(WorkbenchError) as error:
        act()
    assert time.monotonic() - began < SECONDS
    assert not Path(RAN).exists()
    said = str(error.value)
    assert 20 < len(said) < 5000, said[:300]
    return said


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """In a folder of its own, and with no more memory to take than an honest file could need."""
    monkeypatch.chdir(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 4 * 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("change", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_hostile_checkpoint(change, sound, tmp_path):
    folder = tmp_path / "inside" / "checkpoint"
    shutil.copytree(sound, folder)
    change(folder)
    refused(lambda: wb.load_model(folder, device="cpu"))


# Prompts: each writes a file of prompts, and what it points at.
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


# Stores: each changes the folder of a finished run, or makes one of its own.
def attributes(**values: Any) -> Callable[[Path], None]:
    return lambda path: edit(path / "zarr.json", lambda root: root["attributes"].update(values))


def of_array(change: Callable[[dict[str, Any]], Any], name: str = "kl") -> Callable[[Path], None]:
    """In the array's own metadata, and in the root's copy of it."""

    def act(path: Path) -> None:
        edit(path / name / "zarr.json", change)

        def of_root(root: dict[str, Any]) -> None:
            copies = root.get("consolidated_metadata", {}).get("metadata", {})
            if name in copies:
                change(copies[name])

        edit(path / "zarr.json", of_root)

    return act


def second_format(**more: Any) -> Callable[[Path], None]:
    def act(path: Path) -> None:
        shutil.rmtree(path)
        group = zarr.open_group(path, mode="w", zarr_format=2)
        group.attrs.update({"schema": "1", **more})
        group.create_array("deflection", shape=(2, 1, 1, 1), chunks=(2, 1, 1, 1), dtype="float32")
        about = json.loads((path / "deflection" / ".zarray").read_text())
        about["filters"] = [{"id": "pickle", "protocol": 5}]
        about["dtype"] = "|O"
        (path / "deflection" / ".zarray").write_text(json.dumps(about))
        (path / "deflection" / "0.0.0.0").write_bytes(pickle.dumps(Runs()))

    return act


STORES: dict[str, Callable[[Path], None]] = {
    "the second format, with a pickle": second_format(),
    "the second format, complete": second_format(complete=True),
    "a shape without an end": of_array(lambda m: m.update(shape=[10**12, *m["shape"][1:]])),
    "a negative shape": of_array(lambda m: m.update(shape=[-1, *m["shape"][1:]])),
    "another type": of_array(lambda m: m.update(data_type="float64")),
    "another codec": of_array(lambda m: m.update(codecs=[{"name": "pickle", "configuration": {}}])),
    "no codecs": of_array(lambda m: m.update(codecs=[])),
    "another fill value": of_array(lambda m: m.update(fill_value=0.0)),
    "another chunk grid": of_array(
        lambda m: m["chunk_grid"]["configuration"].update(chunk_shape=[1] * len(m["shape"]))
    ),
    "a scale factor": of_array(lambda m: m["attributes"].update(scale_factor=10.0)),
    "other dimensions": of_array(lambda m: m.update(dimension_names=m["dimension_names"][::-1])),
    "a newer schema": attributes(schema="99"),
    "no schema": attributes(schema=None),
    "another mask": attributes(mask_form="as_published"),
    "another engine": attributes(engine="naive"),
    "a recipe that names a file": attributes(prompt_source='{"name_or_path": "/etc/passwd"}'),
    "a partition that is a word": attributes(partition="nonsense"),
    "a root that is a list": written("zarr.json", "[]"),
    "an empty root": written("zarr.json", ""),
    "a root nested deeply": written("zarr.json", "[" * 100_000),
    "a root of an array": lambda path: shutil.copy(path / "kl" / "zarr.json", path / "zarr.json") and None,
    "a variable that is gone": lambda path: shutil.rmtree(path / "kl"),
    "chunks that are gone": lambda path: shutil.rmtree(path / "kl" / "c"),
    "a manifest that is gone": lambda path: shutil.rmtree(path / "manifest"),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("finished") / "run.zarr"
    swept("exact", path)
    return path


@pytest.mark.parametrize("change", STORES.values(), ids=STORES)
def test_hostile_store(change, finished, tmp_path):
    path = tmp_path / "run.zarr"
    shutil.copytree(finished, path)
    change(path)
    refused(lambda: open_run(path))
    refused(lambda: swept("exact", path))


# Detectors: each changes the folder of a stored one.
def description(**values: Any) -> Callable[[Path], None]:
    return lambda path: edit(path / "detector.json", lambda d: d.update(values))


DETECTORS: dict[str, Callable[[Path], Any]] = {
    "a list": written("detector.json", "[]"),
    "nothing": written("detector.json", ""),
    "half": lambda path: cut(path / "detector.json", 0.5),
    "nested deeply": written("detector.json", "[" * 100_000),
    "another kind": description(kind="nonsense", name="nonsense"),
    "a kind that is a list": description(kind=[], name=[]),
    "a newer format": description(format=99),
    "a threshold that is NaN": description(threshold=float("nan")),
    "a threshold that is a word": description(threshold="high"),
    "a threshold that is true": description(threshold=True),
    "options of another": description(options={"nonsense": 1}),
    "options that are a list": description(options=[1]),
    "no options": lambda path: edit(path / "detector.json", lambda d: d.pop("options") and None),
    "no arrays": lambda path: next(path.glob("*.safetensors")).unlink(),
    "a pickle for arrays": lambda path: next(path.glob("*.safetensors")).write_bytes(pickle.dumps(Runs())),
}


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    return OneHeadDetector().fit(planted(), planted_prompts()).save(tmp_path_factory.mktemp("detector") / "stored")


@pytest.mark.parametrize("change", DETECTORS.values(), ids=DETECTORS)
def test_hostile_detector(change, detector, tmp_path):
    path = tmp_path / "stored"
    shutil.copytree(detector, path)
    change(path)
    refused(lambda: load_detector(path))
