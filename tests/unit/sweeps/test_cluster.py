"""A sweep on Ray equals the sweep in one process, also when a worker is killed midway."""

import os
import signal
import warnings

import numpy as np
import pytest

import workbench as wb
from tests.builders.models import tiny
from tests.builders.prompts import pictures

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model():
    """A model that no worker could load: its weights can only come from the driver."""
    return tiny()


@pytest.mark.timeout(400)
def test_two_workers_one_killed_midway_equal_one_process(model, tmp_path, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own, on import and start
        from workbench.sweeps import cluster

        words = ["what is this", "a bomb", "is this a cat ?", "the red square here"]
        (picture,) = pictures(1)
        prompts = [
            wb.Prompt(id=f"p{i}", text=words[i % 4], label=("safe", "unsafe")[i % 2], image=picture if i % 3 else None)
            for i in range(40)
        ]
        alone = wb.sweep(model, prompts, rows=24, progress=False)
        killed: list[int] = []
        run = cluster.Cluster.run

        def deadly(self, tasks, sink, tick, pause):
            def kill() -> None:
                pause()
                if not killed:
                    victim = cluster.ray.get(self.workers[0].pid.remote())
                    os.kill(victim, signal.SIGKILL)
                    killed.append(victim)

            run(self, tasks, sink, tick, kill)

        monkeypatch.setattr(cluster.Cluster, "run", deadly)
        monkeypatch.setattr(cluster, "UNITS_A_TASK", 1)
        both = wb.sweep(model, prompts, rows=24, progress=False, out=tmp_path / "run.zarr", cluster="local:2")
    assert killed
    assert both.attrs["layer_tokens"] > alone.attrs["layer_tokens"]
    for name in alone.variables:
        np.testing.assert_array_equal(both[name].values, alone[name].values, err_msg=str(name))
