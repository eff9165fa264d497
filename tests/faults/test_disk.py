"""The disk is full, or read-only; two writers; two threads. Nothing is lost, and nothing is mixed."""

import os
import resource
import signal
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import workbench as wb
from tests.builders.models import tiny
from tests.builders.prompts import text_prompts
from tests.faults.harness import same, small_blocks, swept
from workbench.errors import WorkbenchError
from workbench.runs.opening import open_run
from workbench.sweeps.engines.registry import engines

NOBODY = 65534


def in_a_child(act: Callable[[], object]) -> str:
    """The name of the error that `act` ends with in a process of its own, with its message; empty for none."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        said = ""
        try:
            act()
        except WorkbenchError as error:
            said = f"WorkbenchError: {error}"
        except BaseException:  # noqa: BLE001  the parent is told
            said = traceback.format_exc()
        os.write(writing, said.encode()[:60000])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(child, 0)
    return said


@pytest.fixture(scope="module")
def whole():
    """By engine, computed in memory: a forked child must not meet threads of a store of this process."""
    small_blocks()
    known = {}
    return lambda engine: known.setdefault(engine, swept(engine)) if engine not in known else known[engine]


@pytest.mark.parametrize("room", [0, 1, 300, 700, 1500, 3000, 6000])
def test_full_disk(room, whole, tmp_path):
    out = tmp_path / "run.zarr"

    def sweep():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        swept("exact", out)

    said = in_a_child(sweep)
    assert not said or said.startswith("WorkbenchError"), said
    if room < 300:
        assert "full" in said or "writing failed" in said, said
    said = in_a_child(lambda: same(swept("exact", out), whole("exact"), attributes=False))
    assert not said, said


@pytest.mark.parametrize("finished", [True, False])
def test_read_only(finished, tmp_path, whole):
    out = tmp_path / "run.zarr"
    said = in_a_child(lambda: swept("exact", out))
    assert not said, said
    if not finished:
        out = tmp_path / "new" / "run.zarr"
        out.parent.mkdir(mode=0o555)

    def act():
        if os.geteuid() == 0:
            os.seteuid(NOBODY)  # root may write anywhere
        if finished:
            same(open_run(out), whole("exact"), attributes=False)
        same(swept("exact", out), whole("exact"), attributes=False)

    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_uid == os.geteuid() and path.stat().st_mode & 0o005 != 0o005:
            path.chmod(0o755)
    for path in (tmp_path / "run.zarr").rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    said = in_a_child(act)
    if finished:
        assert not said, said
    else:
        assert said.startswith("WorkbenchError"), said


@pytest.mark.parametrize("engine", engines())
def test_two_writers(engine, whole, tmp_path):
    out = tmp_path / "run.zarr"
    children = []
    for _ in range(2):
        if (child := os.fork()) == 0:
            code = 3
            try:
                same(swept(engine, out), whole(engine), attributes=False)
                code = 0
            except WorkbenchError as error:
                code = 1 if "Another process is writing" in str(error) else 2
            except BaseException:  # noqa: BLE001  the parent is told
                traceback.print_exc()
            os._exit(code)
        children.append(child)
    codes = sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
    assert codes in ([0, 0], [0, 1]), codes
    said = in_a_child(lambda: same(open_run(out), whole(engine), attributes=False))
    assert not said, said


@pytest.mark.parametrize("masks", [(wb.Mask(), wb.Mask()), (wb.Mask(), wb.Mask(form="scale", factor=0.5))], ids=str)
@pytest.mark.parametrize("engine", engines())
def test_two_threads(engine, masks):
    alone = [swept(engine, mask=mask) for mask in masks]
    found: list[object] = [None, None]

    def work(number: int) -> None:
        try:
            found[number] = swept(engine, mask=masks[number])
        except WorkbenchError as error:
            found[number] = error

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    for run, one in zip(found, alone, strict=True):
        assert run is not None, "a thread ended without a run or an error of ours"
        if not isinstance(run, WorkbenchError):
            for name in one.data_vars:
                np.testing.assert_array_equal(run[name].values, one[name].values, err_msg=str(name))


def test_two_threads_that_ask_and_mask():
    model, prompt = tiny(), text_prompts()[0]
    plain, masked = model.state(prompt), model.state(prompt, heads=[(0, 1)])
    wrong = []

    def ask(heads, wanted):
        for _ in range(20):
            if not (model.state(prompt, heads=heads) == wanted).all():
                wrong.append(heads)

    threads = [threading.Thread(target=ask, args=pair) for pair in (((), plain), ([(0, 1)], masked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not wrong


def test_where_a_file_stands(tmp_path):
    place = tmp_path / "run.zarr"
    place.write_text("mine")
    for act in (lambda: swept("exact", place), lambda: open_run(place), lambda: swept("exact", place / "run.zarr")):
        with pytest.raises(WorkbenchError):
            act()
    assert place.read_text() == "mine"
    assert [path.name for path in Path(tmp_path).iterdir()] == ["run.zarr"]
