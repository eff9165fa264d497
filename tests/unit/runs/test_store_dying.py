"""A sweep into a store that runs out of memory, or is killed at any moment."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from tests.builders.models import tiny
from tests.builders.stores import files, same, swept
from workbench.runs.opening import open_run
from workbench.sweeps.engines.exact import ExactBlock

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model():
    return tiny()


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
    from tests.builders.stores import swept
    from dataclasses import replace
    from tests.unit.runs.test_store_dying import QUICK

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
