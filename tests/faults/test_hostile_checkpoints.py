"""Hostile checkpoints: each changes a folder that `save_pretrained` left; all are refused in words, and run nothing."""

import json
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import workbench as wb
from tests.builders.models import seeded
from tests.faults.hostile import Runs, cut, edit, refused, written

pytestmark = pytest.mark.usefixtures("elsewhere")

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


@pytest.mark.parametrize("change", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_hostile_checkpoint(change, sound, tmp_path):
    folder = tmp_path / "inside" / "checkpoint"
    shutil.copytree(sound, folder)
    change(folder)
    refused(lambda: wb.load_model(folder, device="cpu"))
