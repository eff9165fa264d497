"""Hostile stored runs and detectors: a folder that was changed, or made; all are refused in words, and run nothing."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zarr

from tests.faults.harness import swept
from tests.faults.hostile import Runs, cut, edit, refused, written
from tests.unit.planted_parts import model as planted
from tests.unit.planted_parts import prompts as planted_prompts
from workbench.detectors import OneHeadDetector, load_detector
from workbench.runs.opening import open_run

pytestmark = pytest.mark.usefixtures("elsewhere")


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
