"""Runs on disk: nothing is lost, nothing is overwritten, damage is found and mended."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
import zarr

import workbench as wb
from tests.builders.models import tiny
from tests.builders.prompts import text_prompts
from workbench.errors import RunError
from workbench.models.tiny import build_tiny
from workbench.runs.opening import open_run
from workbench.runs.zarr_store import Store
from workbench.sweeps.engines.exact import ExactBlock


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of two prompts, so that a run of six has three."""
    from workbench.sweeps import sweep

    plan = sweep.plan
    monkeypatch.setattr(sweep, "plan", lambda model, longest, **kw: replace(plan(model, longest, **kw), block=2))


def swept(model, out=None, **kw):
    return wb.sweep(model, text_prompts(), out=out, progress=False, **kw)


def same(one: xr.Dataset, other: xr.Dataset) -> None:
    assert set(one.variables) == set(other.variables)
    for name in one.variables:
        assert one[name].dims == other[name].dims
        np.testing.assert_array_equal(one[name].values, other[name].values, err_msg=str(name))


def files(path: Path) -> dict[str, bytes]:
    found = {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}
    return {name: data for name, data in found.items() if not name.endswith((".partial", "lock", "zarr.json"))}


def interrupt_after(monkeypatch, n: int, error: BaseException) -> None:
    """Let `n` more units be computed, then raise."""
    whole, count = ExactBlock.layer_arrays, [0]

    def layer_arrays(self, layer):
        count[0] += 1
        if count[0] > n:
            raise error
        return whole(self, layer)

    monkeypatch.setattr(ExactBlock, "layer_arrays", layer_arrays)


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


def test_out_of_memory_halves_the_rows_and_says_so(model, tmp_path, small_blocks, monkeypatch):
    whole = swept(model)
    resume = ExactBlock.layer_arrays
    most = json.loads(whole.attrs["partition"])["rows"]

    def greedy(self, layer):
        if layer == 2 and self.rows > most // 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return resume(self, layer)

    monkeypatch.setattr(ExactBlock, "layer_arrays", greedy)
    run = swept(model, tmp_path / "run.zarr")
    assert json.loads(run.attrs["partition"]) == {"block": 2, "rows": most // 4, "halved": 2}
    np.testing.assert_allclose(run.deflection, whole.deflection, atol=1e-2)
    used = zarr.open_group(tmp_path / "run.zarr")["manifest/rows"][:]
    assert used[0].tolist() == [most, most, most, most // 4, most // 4]
    assert (used[1:] == most // 4).all()


# Little to compute, so that the twenty deaths and resurrections are soon over.
QUICK = {"projections": ("query",), "keep_states": False, "heads": [(0, 1), (3, 0)]}
KILLED = textwrap.dedent("""
    import os, signal, sys
    sys.path.insert(0, sys.argv[2])
    import zarr.storage._local as local
    from workbench.sweeps import sweep
    from tests.builders.models import tiny
    from tests.unit.runs.test_store import QUICK, replace, swept

    plan = sweep.plan
    sweep.plan = lambda model, longest, **kw: replace(plan(model, longest, **kw), block=2)
    model, atomic = tiny(), local._atomic_write
    count, last, out = 0, None, None

    def deadly(path, mode, exclusive=False):
        # The process dies between two bytes of a file, or between two files.
        global count
        count += 1
        if count == last:
            os.kill(os.getpid(), signal.SIGKILL)
        if count == last - 1:
            path.with_suffix(".torn.partial").write_bytes(b"torn")
        return atomic(path, mode, exclusive)

    local._atomic_write = deadly
    for line in sys.stdin:  # each line is one process of its own: "folder writes-until-death"
        out, last = line.split()
        if os.fork() == 0:
            count, last = 0, int(last)
            swept(model, out, **QUICK)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
""")


def test_killed_at_any_moment_the_run_goes_on_bit_for_bit(model, tmp_path, small_blocks):
    whole = tmp_path / "whole.zarr"
    swept(model, whole, **QUICK)
    sound = files(whole)
    writes = sum(1 for p in whole.rglob("*") if p.is_file())
    points = np.random.default_rng(int(time.time())).choice(np.arange(2, writes + 30), size=20, replace=False).tolist()
    repo = str(Path(__file__).parents[3])
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    orders = "".join(f"{tmp_path / f'run{n}.zarr'} {point}\n" for n, point in enumerate(points))
    environment = {**os.environ, "PYTHONPATH": repo}
    done = subprocess.run(
        [sys.executable, str(script), "-", repo],
        input=orders,
        capture_output=True,
        text=True,
        env=environment,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    codes = [int(line) for line in done.stdout.split()]
    assert codes.count(-signal.SIGKILL) >= 15, codes
    for n, point in enumerate(points):
        out = tmp_path / f"run{n}.zarr"
        swept(model, out, **QUICK)
        assert files(out) == sound, f"killed at write {point}"


def test_a_store_killed_before_its_metadata_was_gathered_reads_and_goes_on(model, tmp_path):
    path = tmp_path / "run.zarr"
    whole = swept(model, path)
    root = json.loads((path / "zarr.json").read_text())
    del root["consolidated_metadata"]
    (path / "zarr.json").write_text(json.dumps(root))
    same(open_run(path).load(), whole)
    same(swept(model, path), whole)
