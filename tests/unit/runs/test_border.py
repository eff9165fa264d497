"""The border of a stored run: damage is seen, nothing foreign is opened, one bad prompt is one bad prompt."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from rich.console import Console

import workbench as wb
from tests.builders.models import tiny
from tests.builders.stores import files, same, swept
from workbench.errors import ArgumentError, PromptError, RunError
from workbench.models.masks import Mask
from workbench.runs.job import Job
from workbench.runs.origin import mask_of
from workbench.runs.places import local_path
from workbench.runs.schema import layout
from workbench.runs.zarr_store import Store
from workbench.sweeps import execution

pytestmark = pytest.mark.slow

LITTLE = {"projections": ("query",), "keep_states": False}


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def stored(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("border") / "run.zarr"
    swept(model, out, **LITTLE)
    return out


@pytest.fixture
def copy(stored, tmp_path):
    """A copy of the stored run, to be damaged."""
    import shutil

    return Path(shutil.copytree(stored, tmp_path / "copy.zarr"))


def n_files(variables) -> int:
    return sum(int(np.prod([-(-n // s) for n, s in zip(v.shape, v.shards, strict=False)])) for v in variables.values())


def test_a_large_run_is_few_files(model, stored):
    large = SimpleNamespace(
        n_layers=32, n_heads=32, n_kv_heads=8, d_head=128, d_model=4096, dtype=torch.float16, masked_layers=range(32)
    )
    variables = layout(large, 28_000, Job(("query", "value"), Mask(), None, False), 32)
    assert variables["kl"].chunks == (32, 2, 1, 32), "a unit of work is a chunk of its own"
    others = len([p for p in stored.rglob("*") if p.is_file() and p.name == "zarr.json"]) + 64 + 20
    assert n_files(variables) + others <= 2000
    little = layout(model, 6, Job(("query",), Mask(), None, False), 6)
    del little["image_attention"]  # all NaN without pictures, which takes no file
    chunks = [p for name in little for p in (stored / name / "c").rglob("*") if p.is_file()]
    assert len(chunks) == n_files(little)


def test_every_flipped_bit_is_seen_by_every_reader(stored, copy):
    whole = xr.open_zarr(stored).load()
    rng = np.random.default_rng(0)
    paths = sorted(p for p in copy.rglob("*") if p.is_file() and p.name != "lock")
    for number in range(120):
        path = paths[number % len(paths)]
        sound = path.read_bytes()
        data = bytearray(sound)
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        path.write_bytes(data)
        with pytest.raises(RunError):
            wb.open_run(copy)
        if "c" in path.relative_to(copy).parts and "manifest" not in path.parts:
            try:
                found = xr.open_zarr(copy).load()
            except (ValueError, RuntimeError):
                pass
            else:
                same(found, whole)
        path.write_bytes(sound)
    same(wb.open_run(copy).load(), whole)


def changed_json(path: Path, change) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("zarr.json", lambda d: d["attributes"].update(mask_form="scale")),
        ("zarr.json", lambda d: d["attributes"].update(extra=1)),
        ("kl/zarr.json", lambda d: d["attributes"].update(scale_factor=2.0)),
        (
            "zarr.json",
            lambda d: d["consolidated_metadata"]["metadata"]["kl"]["attributes"].update(scale_factor=2.0),
        ),
        ("kl/zarr.json", lambda d: d.update(fill_value=0.0)),
    ],
    ids=["mask", "attribute", "scale", "gathered", "fill"],
)
def test_a_changed_description_is_seen(model, copy, file, change):
    changed_json(copy / file, change)
    before = files(copy)
    for call in (lambda: wb.open_run(copy), lambda: swept(model, copy, **LITTLE)):
        with pytest.raises(RunError, match="is not what was written"):
            call()
    assert files(copy) == before


def test_a_manifest_that_lacks_entries_is_seen_and_mended(model, stored, copy):
    zarr.open_group(copy, mode="r+", use_consolidated=False)["manifest/sha256"][0, 2] = 0
    with pytest.raises(RunError, match=r"damaged: 1 of its parts.*its manifest"):
        wb.open_run(copy)
    swept(model, copy, repair=True, **LITTLE)
    same(wb.open_run(copy).load(), wb.open_run(stored).load())


def test_a_damaged_late_variable_is_seen(copy):
    store = Store(copy)
    store.take_lock()
    store.read_manifest()
    store.put("rule_value", ("projection", "layer", "head"), np.ones((1, 4, 6), np.float32))
    store.note(complete=True)
    store.close()
    assert float(wb.open_run(copy).rule_value.sum()) == 24
    zarr.open_group(copy, mode="r+", use_consolidated=False)["rule_value"][0, 0, 0] = 7
    with pytest.raises(RunError, match="a variable known at the end"):
        wb.open_run(copy)


def resealed(path: Path, name: str, change) -> None:
    """Change the metadata of an array as someone who knows the seal would."""
    from workbench.runs.sealed import seal

    changed_json(path / name / "zarr.json", change)
    root = json.loads((path / "zarr.json").read_text())
    root["consolidated_metadata"]["metadata"][name] = json.loads((path / name / "zarr.json").read_text())
    root["attributes"]["seal"] = seal(root["attributes"], root["consolidated_metadata"]["metadata"])
    (path / "zarr.json").write_text(json.dumps(root))


def test_foreign_formats_codecs_and_sizes_are_refused_before_anything_is_read(model, tmp_path, copy, monkeypatch):
    old = tmp_path / "old.zarr"
    zarr.create_group(old, zarr_format=2, attributes={"schema": "2"})
    monkeypatch.setattr(zarr, "open_group", lambda *a, **k: pytest.fail("Zarr was let near it"))
    for call in (lambda: wb.open_run(old), lambda: swept(model, old, **LITTLE)):
        with pytest.raises(RunError, match=r"Zarr's format 2, whose filters may run code"):
            call()
    resealed(copy, "js", lambda d: d.update(shape=[2**50, 1, 4, 6]))
    with pytest.raises(RunError, match=r"js says it has shape \[1125899906842624, 1, 4, 6\]"):
        wb.open_run(copy)
    inner = {"name": "numcodecs.pickle", "configuration": {}}
    resealed(copy, "js", lambda d: d["codecs"][0]["configuration"]["codecs"].append(inner))
    with pytest.raises(RunError, match=r"js wants the codec 'numcodecs.pickle'"):
        wb.open_run(copy)


def test_a_run_of_the_older_schema_says_what_to_do(model, copy):
    changed_json(copy / "zarr.json", lambda d: d["attributes"].update(schema="1"))
    with pytest.raises(RunError, match=r"schema '1'; this version reads '2'.*Sweep again into another path"):
        wb.open_run(copy)


def test_killed_at_the_very_first_write(model, tmp_path):
    out = tmp_path / "run.zarr"
    (out / "manifest").mkdir(parents=True)
    (out / "manifest" / "lock").touch()
    (out / "zarr.0123456789abcdef0123456789abcdef.partial").write_bytes(b'{"zarr')
    swept(model, out, **LITTLE)
    assert not list(out.rglob("*.partial"))
    assert wb.open_run(out).attrs["complete"]


def test_a_finished_run_needs_no_right_to_write(model, copy, monkeypatch):
    before = files(copy)
    monkeypatch.setattr(Store, "take_lock", lambda self: pytest.fail("a finished run was locked"))
    swept(model, copy, **LITTLE)
    wb.open_run(copy)
    assert files(copy) == before


def test_refused_calls_leave_no_litter(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArgumentError, match="out must be a path or URL; got ''"):
        swept(model, "", **LITTLE)
    with pytest.raises(RunError, match=r"'nosuch://here/run\.zarr' cannot be reached"):
        swept(model, "nosuch://here/run.zarr", **LITTLE)
    with pytest.raises(RunError, match="names the machine 'elsewhere'"):
        swept(model, "file://elsewhere/run.zarr", **LITTLE)
    monkeypatch.setattr(model, "encode", lambda prompt: 1 / 0)
    with pytest.raises(PromptError):
        swept(model, "run.zarr", **LITTLE)
    assert not list(tmp_path.iterdir())


def test_addresses_mean_what_they_mean_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("~/a b") == tmp_path / "a b"
    assert local_path("a%20b") == Path("a%20b")
    for text in ("file:///x/a%20b", "file://localhost/x/a%20b", "file:/x/a%20b"):
        assert local_path(text) == Path("/x/a b")
    assert local_path("file://~/a%20b") == tmp_path / "a b"
    assert local_path("memory://x") is None


def test_a_run_that_is_renamed_midway_ends_in_words(model, tmp_path, small_blocks, monkeypatch):
    from workbench.sweeps.engines.exact import ExactBlock

    out, whole, count = tmp_path / "run.zarr", ExactBlock.layer_arrays, [0]

    def moving(self, layer):
        count[0] += 1
        if count[0] == 6:
            out.rename(tmp_path / "moved.zarr")
        return whole(self, layer)

    monkeypatch.setattr(ExactBlock, "layer_arrays", moving)
    with pytest.raises(RunError, match=r"was moved, renamed or deleted.*with the path that it has now"):
        swept(model, out, **LITTLE)
    assert not out.exists()
    monkeypatch.setattr(ExactBlock, "layer_arrays", whole)
    same(swept(model, tmp_path / "moved.zarr", **LITTLE), swept(model, **LITTLE))


def test_the_mask_of_a_run_is_read_from_what_it_says(stored):
    run = wb.open_run(stored)
    assert mask_of(run) == wb.Mask()
    with pytest.raises(RunError, match="does not record mask_form"):
        mask_of(run.assign_attrs({k: v for k, v in run.attrs.items() if k != "mask_form"}).drop_attrs(deep=False))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_command_says_that_it_goes_on(tmp_path, number, status):
    out = tmp_path / "run.zarr"
    code = "from workbench.cli import main; main()"
    command = [sys.executable, "-c", code, "sweep", "-m", "pocket", "-p", "pocket", "-n", "2000", "--out", str(out)]
    running = subprocess.Popen(
        [*command, "-n", "4000", "--out", str(out)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # whoever runs the tests in the background ignores it
    )
    deadline = time.monotonic() + 200
    while not (out / "manifest" / "staged" / "c").exists():
        assert running.poll() is None, running.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.2)
    running.send_signal(number)
    _, told = running.communicate(timeout=100)
    assert running.returncode == status, told
    assert "make the same call again to go on from there" in " ".join(told.split())
    assert "Traceback" not in told
    assert np.isfinite(wb.open_run(out).base_state.values).sum() > 0


def test_a_log_gets_a_line_with_the_share_done_and_the_time_left(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(execution.time, "monotonic", lambda: clock[0])
    lines = execution.Lines(Console(stderr=True))
    task = lines.add_task("sweep (exact), prompts x layers")
    lines.update(task, total=200)
    for _ in range(50):
        clock[0] += 1
        lines.advance(task, 2)
    told = capsys.readouterr().err.splitlines()
    assert told == ["sweep (exact), prompts x layers: 60 of 200 (30%), about 0:01:10 left"]
