"""What a measurement is, and how one is taken: engines in turn, several times, medians."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from workbench.sweeps.peak import peak_bytes, reset_peak


@dataclass
class Row:
    """One engine on one job.

    Attributes:
        seconds: Median wall time of the whole job; scaled up from a part of it where `scaled` is above 1.
        cpu_seconds: The same in processor time of this process, which other programs disturb less.
        agreement: Largest difference to the reference, in the unit that `agreement_unit` says.
        ratio: Median over the repeats of this engine's time over that of `against`.
        more: What the job reports besides.
    """

    job: str
    model: str
    engine: str
    seconds: float
    cpu_seconds: float
    agreement: float | None = None
    agreement_unit: str = "degrees"
    against: str = ""
    ratio: float | None = None
    scaled: float = 1.0
    peak_bytes: int = 0
    more: dict[str, Any] = field(default_factory=dict)

    def json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Timing:
    """Wall and processor seconds of each repeat."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    peak_bytes: int = 0


def in_turn(
    calls: Mapping[str, Callable[[], Any]], repeats: int, device: torch.device
) -> tuple[dict[str, Timing], dict[str, Any]]:
    """Call each in turn, `repeats` times over, so that a busy moment hits all alike; the timings and last results."""
    timings = {name: Timing() for name in calls}
    results: dict[str, Any] = {}
    for _ in range(repeats):
        for name, call in calls.items():
            reset_peak(device)
            settle(device)
            wall, cpu = time.perf_counter(), time.process_time()
            results[name] = call()
            settle(device)
            timings[name].wall.append(time.perf_counter() - wall)
            timings[name].cpu.append(time.process_time() - cpu)
            timings[name].peak_bytes = peak_bytes(device)
    return timings, results


def settle(device: torch.device) -> None:
    """Wait for what a GPU still has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ratio(timings: Mapping[str, Timing], slow: str, fast: str, scale: float = 1.0) -> float:
    """Median over the repeats of how many times longer `slow` took than `fast`, in processor time.

    On a GPU processor time says nothing, and wall time is taken.
    """
    kind = "wall" if torch.cuda.is_available() else "cpu"
    # An engine that was run once is held against the other's first repeat.
    pairs = zip(getattr(timings[slow], kind), getattr(timings[fast], kind), strict=False)
    return statistics.median(scale * a / b for a, b in pairs)


def rows(
    job: str, model: str, timings: Mapping[str, Timing], against: str, scaled: Mapping[str, float] | None = None
) -> dict[str, Row]:
    """A row an engine."""
    found = {}
    for name, timing in timings.items():
        scale = (scaled or {}).get(name, 1.0)
        found[name] = Row(
            job, model, name, round(scale * statistics.median(timing.wall), 4),
            round(scale * statistics.median(timing.cpu), 4), against=against,
            ratio=round(ratio(timings, name, against, scale), 3), scaled=round(scale, 3), peak_bytes=timing.peak_bytes,
        )  # fmt: skip
    return found
