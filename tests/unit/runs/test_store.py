"""Runs on disk: nothing is lost, nothing is overwritten, damage is found and mended."""

import errno
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

import workbench as wb
from tests.builders.models import tiny
from tests.builders.prompts import text_prompts
from tests.builders.stores import files, interrupt_after, same, swept
from workbench.errors import RunError
from workbench.models.tiny import build_tiny
from workbench.runs.opening import open_run
from workbench.runs.zarr_store import Store


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.mark.slow
@pytest.mark.parametrize("url", [False, True], ids=["path", "url"])
def test_a_stored_run_is_the_run(model, tmp_path, small_blocks, url):
    out = f"memory://{tmp_path.name}/run.zarr" if url else tmp_path / "deep" / "run.zarr"
    plain, stored = swept(model), swept(model, out)
    same(stored, plain)
    assert stored.deflection.max() > 1
    same(xr.open_zarr(out), plain)
    same(open_run(out), plain)
    for name in ("weight_hash", "prompt_hash", "mask_form", "engine", "partition", "started", "versions"):
        assert stored.attrs[name] == xr.open_zarr(out).attrs[name]
    assert xr.open_zarr(out).deflection.attrs["units"] == "degrees"


@pytest.mark.slow
def test_an_interrupted_run_opens_and_goes_on(model, tmp_path, small_blocks, monkeypatch):
    out = tmp_path / "run.zarr"
    whole = swept(model, tmp_path / "whole.zarr")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 5, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt, match=r"holds what was finished; make the same call again"):
            swept(model, out)
    half = open_run(out)
    assert not half.attrs["complete"]
    filled = ~np.isnan(half.deflection.values)
    assert filled[:2].all()
    assert filled[2:4, :, 0].all()
    assert filled.sum() == 5 * filled[:2, :, 0].size
    before = model.work.layer_tokens
    same(swept(model, out), whole)
    again = model.work.layer_tokens - before
    assert files(out) == files(tmp_path / "whole.zarr")
    assert again < 0.75 * whole.attrs["layer_tokens"], "what was stored was computed again"
    before = model.work.layer_tokens
    swept(model, out)
    assert model.work.layer_tokens == before, "a finished run was computed again"


def test_without_a_store_an_interruption_says_so(model, monkeypatch):
    interrupt_after(monkeypatch, 1, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt, match="Nothing is stored"):
        swept(model)


@pytest.mark.slow
def test_a_run_of_two_machines_says_so(model, tmp_path, small_blocks, monkeypatch):
    from workbench.sweeps import execution

    out = tmp_path / "run.zarr"
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3, KeyboardInterrupt())
        patch.setattr(execution, "provenance_of_session", lambda model: {"started": "before", "device": "another"})
        with pytest.raises(KeyboardInterrupt):
            swept(model, out)
    stored = swept(model, out)
    assert stored.attrs["parts_agree"] == "within rounding"
    assert [s["device"] for s in json.loads(stored.attrs["sessions"])] == ["another", "cpu"]
    assert swept(model).attrs["parts_agree"] == "bit for bit"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"mask": wb.Mask(positions="last")}, "mask_positions is 'all' there and 'last' here"),
        ({"projections": ("query",)}, "projections"),
        ({"heads": [(0, 1)]}, "heads is 'all' there"),
        ({"engine": "naive"}, "engine is 'exact' there"),
        ({"keep_states": False}, "keeps_states"),
    ],
    ids=["mask", "projections", "heads", "engine", "states"],
)
def test_a_store_takes_no_other_run(model, tmp_path, changed, said):
    out = tmp_path / "run.zarr"
    swept(model, out)
    before = files(out)
    with pytest.raises(RunError, match=said):
        swept(model, out, **changed)
    assert files(out) == before


@pytest.mark.slow
def test_a_store_takes_no_other_model_or_prompts(model, tmp_path):
    out = tmp_path / "run.zarr"
    swept(model, out)
    other = build_tiny("llava")
    other.hf.lm_head.weight.data[0, 0] += 1
    with pytest.raises(RunError, match="weight_hash"):
        swept(other, out)
    one_more = [*text_prompts(), wb.Prompt(id="p6", text="the cat is red", label="safe")]
    changed = [replace(text_prompts()[0], text="what is that"), *text_prompts()[1:]]
    for others in (one_more, changed, [replace(p, label="safe") for p in text_prompts()]):
        with pytest.raises(RunError, match="prompt_hash"):
            wb.sweep(model, others, out=out, progress=False)


def test_what_is_no_run_is_left_alone(model, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.txt").write_text("mine")
    with pytest.raises(RunError, match=r"holds 'cat.txt' and no run"):
        swept(model, tmp_path / "photos")
    zarr.create_group(tmp_path / "other.zarr")
    with pytest.raises(RunError, match="not a run of the workbench"):
        swept(model, tmp_path / "other.zarr")
    with pytest.raises(RunError, match="is a file"):
        swept(model, tmp_path / "photos" / "cat.txt")
    with pytest.raises(RunError, match="There is no run"):
        open_run(tmp_path / "nothing.zarr")


def test_a_newer_schema_is_refused(model, tmp_path):
    out = tmp_path / "run.zarr"
    swept(model, out)
    zarr.open_group(out).attrs["schema"] = "3"
    before = files(out)
    for call in (lambda: swept(model, out), lambda: open_run(out), lambda: swept(model, out, repair=True)):
        with pytest.raises(RunError, match=r"schema '3'.*newer version"):
            call()
    assert files(out) == before


def chunk_in_shard(array: Path, chunk: tuple[int, ...]) -> tuple[int, int]:
    """Where a chunk begins in the first shard of an array, and its size: from the index at the end."""
    about = json.loads((array / "zarr.json").read_text())
    shard, inner = (
        about["chunk_grid"]["configuration"]["chunk_shape"],
        about["codecs"][0]["configuration"]["chunk_shape"],
    )
    per_shard = [-(-a // b) for a, b in zip(shard, inner, strict=True)]
    data = (array / "c" / "/".join("0" * len(shard))).read_bytes()
    index = np.frombuffer(data[-16 * int(np.prod(per_shard)) - 4 : -4], "<u8").reshape(*per_shard, 2)
    begins, size = index[chunk].tolist()
    return begins, size


@pytest.mark.slow
@pytest.mark.parametrize("how", ["cut", "flipped", "gone", "coordinates"])
def test_damage_is_found_and_repaired(model, tmp_path, small_blocks, how):
    out = tmp_path / "run.zarr"
    whole = swept(model, out)
    sound = files(out)
    chunk = out / ("label/c/0" if how == "coordinates" else "kl/c/0/0/0/0")
    data = bytearray(chunk.read_bytes())
    begins, size = chunk_in_shard(out / "kl", (1, 0, 2, 0))
    if how == "gone":
        chunk.unlink()
    elif how in ("cut", "coordinates"):
        chunk.write_bytes(data[: len(data) // 2])
    else:
        data[begins + size // 2] ^= 1
        chunk.write_bytes(data)
    damaged = files(out)
    parts, where = {
        "coordinates": (1, "its coordinates"),
        "flipped": (1, r"layer 2 \(L2H0…\) of prompts 2..3"),
    }.get(how, (12, r"layer 0 \(L0H0…\) of prompts 0..1; layer 1"))  # a file of twelve chunks
    for call in (lambda: open_run(out), lambda: swept(model, out)):
        with pytest.raises(RunError, match=rf"{parts} of its parts.*{where}.*--repair"):
            call()
    assert files(out) == damaged
    before = model.work.layer_tokens
    same(swept(model, out, repair=True), whole)
    if how in ("flipped", "coordinates"):
        assert model.work.layer_tokens - before < 0.5 * whole.attrs["layer_tokens"]
    assert files(out) == sound
    open_run(out)


@pytest.mark.slow
def test_the_second_writer_is_told_and_a_dead_one_does_not_block(model, tmp_path):
    out = tmp_path / "run.zarr"
    code = (
        "import sys, time; from workbench.runs.zarr_store import Store; writer = Store(sys.argv[1]); "
        "writer.take_lock(); print(1, flush=True); time.sleep(300)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(out)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(RunError, match="Another process is writing"):
            swept(model, out)
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    swept(model, out)
    writer = Store(out)
    writer.take_lock()
    with pytest.raises(RunError, match="Another process is writing"):
        swept(model, out, repair=True)
    swept(model, out)  # nothing is to be written, so that no lock is needed
    writer.close()


@pytest.mark.slow
def test_a_full_disk_loses_nothing(model, tmp_path, small_blocks, monkeypatch):
    out = tmp_path / "run.zarr"
    whole = swept(model)
    import zarr.storage._local as local

    put, count = local._put, [0]

    def full(path, value, exclusive=False):
        count[0] += "/c/" in path.as_posix()
        if count[0] > 22:
            raise OSError(errno.ENOSPC, "No space left on device")
        return put(path, value, exclusive)

    with monkeypatch.context() as patch:
        patch.setattr(local, "_put", full)
        with pytest.raises(RunError, match=r"the disk is full.*make room and make the same call again"):
            swept(model, out)
    stored = open_run(out)
    assert 0 < np.isfinite(stored.deflection.values).sum() < stored.deflection.size
    same(swept(model, out), whole)
