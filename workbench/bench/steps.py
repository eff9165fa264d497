"""Steps within a deadline: each row is written as soon as it is known, and a step that fails or is late ends alone.

A machine that is lent for minutes may be taken back at any moment; what was measured before must stand.
"""

import json
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console

from workbench.bench.timing import Row


class Late(BaseException):
    """A step was still at work when its time was up; no error that what it runs might answer to."""


@dataclass(frozen=True)
class Clock:
    """When a step has to be done, on `time.monotonic`."""

    due: float

    def left(self) -> float:
        """Seconds until then."""
        return self.due - time.monotonic()

    def fits(self, seconds: float) -> bool:
        """Whether something that should take so long is safe to begin: a quarter more than foreseen must fit."""
        return 1.25 * seconds < self.left()


@dataclass(frozen=True)
class Step:
    """A part of a benchmark.

    Attributes:
        name: Of the step.
        seconds: Its part of the time, against those of the other steps; what it leaves goes to those after it.
        rows: What measures it: rows, one after the other, from the clock it has to heed.
    """

    name: str
    seconds: float
    rows: Callable[[Clock], Iterator[Row]]


@dataclass
class Ledger:
    """Rows as they come: a line each on the console, and a JSON file that is whole at every moment."""

    console: Console
    file: Path | None = None
    about: dict[str, Any] = field(default_factory=dict)
    found: list[Row] = field(default_factory=list)

    def stored(self) -> list[Row]:
        """Rows that an earlier run left in the file."""
        if self.file is None or not self.file.exists():
            return []
        return [Row(**row) for row in json.loads(self.file.read_text())["rows"]]

    def add(self, row: Row) -> None:
        """Print a row, and write all rows so far."""
        self.found.append(row)
        said = ", ".join(f"{name} = {value}" for name, value in row.more.items() if name != "traceback")
        agreement = "" if row.agreement is None else f"agreement = {row.agreement:.3g} {row.agreement_unit}, "
        line = f"{row.job}: {row.engine}: {row.seconds:.3f} s, {agreement}{said}"
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)
        if self.file is not None:
            part = self.file.with_suffix(".part")
            part.write_text(json.dumps({**self.about, "rows": [row.json() for row in self.found]}, indent=1))
            part.replace(self.file)


def run_steps(steps: Sequence[Step], minutes: float, ledger: Ledger) -> None:
    """Run steps in order, `minutes` in all from the start of this process on.

    Args:
        steps: In order; each has its part of the time and what those before it left.
        minutes: For all of them. A step still at work when its time is up is cut off there; its rows stand.
        ledger: Takes the rows, those of failures and cut steps too.
    """
    end = time.monotonic() + 60 * minutes - (time.time() - psutil.Process().create_time())
    begun = time.monotonic()
    share = max(0.0, end - begun) / sum(step.seconds for step in steps)
    due = begun
    for step in steps:
        due += share * step.seconds
        clock, started = Clock(due), time.monotonic()
        try:
            with cut_off(clock):
                for row in step.rows(clock):
                    ledger.add(row)
        except Late:
            ledger.add(_failure(step, started, {"late": f"cut off after {due - started:.0f} s"}))
        except Exception as error:  # noqa: BLE001 - whatever a step raises, the next one goes on
            said = traceback.format_exc().splitlines()[-12:]
            ledger.add(_failure(step, started, {"error": f"{type(error).__name__}: {error}"[:500], "traceback": said}))
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _failure(step: Step, started: float, more: dict[str, Any]) -> Row:
    seconds = round(time.monotonic() - started, 3)
    return Row(step.name, "", "not finished", seconds, 0.0, more=more)


@contextmanager
def cut_off(clock: Clock) -> Iterator[None]:
    """Raise `Late` within the block once the clock has run down; for the main thread."""

    def ring(number: int, frame: object) -> None:
        raise Late

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(0.001, clock.left()))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
