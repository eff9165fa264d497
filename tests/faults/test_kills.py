"""Sweeps of every engine, killed at any change of files: the same call goes on, and the run is the same to the bit."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.builders.prompts import text_prompts
from tests.faults.harness import same, swept
from workbench.runs.opening import open_run
from workbench.sweeps.engines.registry import engines

FIRST, KILLS = 10, 44  # the first changes one by one, then some of all others; for each engine
ROOT = Path(__file__).parents[2]


class Dying:
    """The process that dies, over and over."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.dying"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def sweep(self, engine: str, out: Path, number: int = 0) -> int:
        self.process.stdin.write(f"{engine} {out} {number}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def dying():
    found = Dying()
    yield found
    found.process.stdin.close()
    found.process.stdout.close()
    assert found.process.wait(60) == 0


@pytest.fixture(scope="module")
def whole(dying, tmp_path_factory):
    """By engine: the run of a sweep that nobody killed, and how many changes of files it took."""
    known = {}

    def of(engine):
        if engine not in known:
            out = tmp_path_factory.mktemp("whole") / f"{engine}.zarr"
            changes = dying.sweep(engine, out)
            known[engine] = (open_run(out), changes)
        return known[engine]

    return of


@pytest.mark.parametrize("number", range(KILLS))
@pytest.mark.parametrize("engine", engines())
def test_killed(engine, number, dying, whole, tmp_path):
    run, changes = whole(engine)
    assert changes > FIRST + 10
    later = np.random.default_rng(number).integers(FIRST, changes)
    point = number + 1 if number < FIRST else int(later) + 1
    out = tmp_path / "run.zarr"
    assert dying.sweep(engine, out, point) == -signal.SIGKILL, f"not killed at change {point} of {changes}"
    again = swept(engine, out)
    assert again["prompt"].values.tolist() == [prompt.id for prompt in text_prompts()]
    same(again, run)
    same(open_run(out), run)
    assert not list(out.rglob("*.partial"))
