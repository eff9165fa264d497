"""The fault campaign. Every case is a test: `make faults` runs all, the whole suite a seeded few of each kind."""

import os
import random
import resource
from collections import Counter

import psutil
import pytest

LONG = os.environ.get("FAULTS") == "long"
FEW = {"killed": 6, "bit": 9, "call": 40, "hostile_set": 40}  # of the kinds that are many; all of the others
tried: Counter[str] = Counter()
survived: Counter[str] = Counter()


def kind_of(item_name: str) -> str:
    return item_name.partition("[")[0].removeprefix("test_")


def pytest_collection_modifyitems(config, items):
    """Without FAULTS=long, some of the cases of each kind, the same each time."""
    if LONG:
        return
    ours = [item for item in items if item.path.parent.name == "faults"]
    dropped = []
    for word, most in FEW.items():
        of_kind = [item for item in ours if word in kind_of(item.name)]
        dropped += random.Random(0).sample(of_kind, max(0, len(of_kind) - most))
    config.hook.pytest_deselected(items=dropped)
    gone = set(map(id, dropped))
    items[:] = [item for item in items if id(item) not in gone]


def pytest_runtest_logreport(report):
    ours = "tests/faults/" in report.nodeid
    if ours and (report.when == "call" or (report.when == "setup" and report.failed)):
        kind = kind_of(report.nodeid.rpartition("::")[2])
        tried[kind] += 1
        survived[kind] += report.passed


def pytest_terminal_summary(terminalreporter):
    for kind, count in tried.items():
        terminalreporter.write_line(f"faults, {kind}: {count} tried, {survived[kind]} survived")


@pytest.fixture(scope="session")
def model():
    from tests.builders.models import tiny

    return tiny()


@pytest.fixture(autouse=True)
def _small_blocks(request):
    """Blocks of two prompts for the cases about stores, where a run begun and one gone on with must be cut alike."""
    from tests.faults import harness

    if request.module.__name__.rpartition(".")[2] in ("test_bits", "test_disk", "test_kills"):
        harness.small_blocks()
    yield
    harness.sweeping.plan = harness.PLAN


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """In a folder of its own, and with no more memory to take than an honest file could need."""
    monkeypatch.chdir(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 4 * 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)
