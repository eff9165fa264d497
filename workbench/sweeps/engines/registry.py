"""The engines by name, and what an engine is: which tasks it makes, in which phases, and what it takes besides.

An engine is a generator of phases. Between two phases it may read what is stored, and choose by it; since it reads
nothing else, an interrupted sweep makes the same choices again.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import Any, Protocol

from workbench.errors import MaskError, WorkbenchError
from workbench.models.encode import Encoded
from workbench.models.hooked import HookedLVLM
from workbench.prompts.prompt import PromptSet
from workbench.registry import Registry
from workbench.runs.job import Job
from workbench.runs.memory import BASE, unit_of
from workbench.sweeps.plan import BLOCK
from workbench.sweeps.tasks import Arrays, Step, Sweep, Task, layer_tasks


@dataclass(frozen=True)
class Engine:
    """One way to carry out a sweep.

    Attributes:
        name: What `engine=` calls it.
        says: What it does, in a line.
        phases: From the sweep to lists of tasks; each list is done before the next is asked for.
        defaults: The options it takes, with their defaults.
        block: Most prompts in a block.
        groups: Whether it can mask head sets.
        readout: Whether it can read out at other layers than the last.
        order: In which order it takes (and stores) the prompts; the returned run has the order they were given in.
        settle: Checks the options and returns them complete; a WorkbenchError for those that have no meaning.
        report: From a finished run's attributes to what a user should hear of it, besides the work it took.
    """

    name: str
    says: str
    phases: Callable[[Sweep], Iterator[list[Task]]]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    block: int = BLOCK
    groups: bool = False
    readout: bool = False
    order: Callable[[PromptSet, int, Mapping[str, Any]], list[int]] | None = None
    settle: Callable[[dict[str, Any]], dict[str, Any]] = lambda options: options
    report: Callable[[Mapping[str, Any]], str] = lambda attrs: ""

    def options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All options of the engine; a WorkbenchError for one it does not take."""
        if unknown := sorted(set(given) - set(self.defaults)):
            raise WorkbenchError(
                f"Engine {self.name!r} takes no option {', '.join(unknown)}; it takes "
                f"{', '.join(f'{k} (default {v!r})' for k, v in self.defaults.items()) or 'none'}."
            )
        return self.settle({**self.defaults, **given})

    def check(self, job: Job) -> None:
        """MaskError for a job that the engine cannot do."""
        if job.groups is not None and not self.groups:
            raise MaskError(f"Engine {self.name!r} masks single heads; head sets (groups=…) need engine='exact'.")
        if job.readout and not (self.readout and job.groups is None):
            what = f"Engine {self.name!r} reads" if not self.readout else "A sweep of head sets (groups=…) reads"
            raise MaskError(
                f"{what} the final state only; got readout={job.readout}. "
                "Leave readout out, or sweep single heads with engine='exact', 'prefix' or 'naive'."
            )


# Each module has its record as ENGINE; the canonical one comes first.
_HOMES = (
    "workbench.sweeps.engines.exact",
    "workbench.sweeps.engines.naive",
    "workbench.sweeps.engines.shared_prefix",
    "workbench.finding.engine",
)


@cache
def engines() -> Registry[Engine]:
    """Every engine; their modules are imported when they are first asked for."""
    return Registry("engine", (import_module(home).ENGINE for home in _HOMES), error=WorkbenchError)


class Block(Protocol):
    """The cells of one block of prompts, as an engine computes them; made from what a `Step` is given."""

    def base_arrays(self) -> Arrays:
        """Variables of the unmasked pass, `prompt` first."""

    def layer_arrays(self, layer: int) -> Arrays:
        """Variables of one layer's masked cells, `[prompt, projection, head]`, then `readout`, then `d_model`."""


def block_step(
    block: Callable[[HookedLVLM, Sequence[Encoded], Job, int], Block],
    model: HookedLVLM,
    encoded: Sequence[Encoded],
    job: Job,
    rows: int,
    units: Sequence[int],
) -> Iterator[tuple[int, Arrays]]:
    """The units of one block of prompts; with its first argument given, a `Step`."""
    made = block(model, encoded, job, rows)
    for unit in units:
        yield unit, made.base_arrays() if unit == BASE else made.layer_arrays(unit - 1)


def one_phase(step: Step) -> Callable[[Sweep], Iterator[list[Task]]]:
    """The phases of an engine that computes every layer of every block with one step."""

    def phases(sweep: Sweep) -> Iterator[list[Task]]:
        units = (BASE, *map(unit_of, sweep.job.layers(sweep.model)))
        yield layer_tasks(step, sweep.bounds, units, sweep.job.cells, sweep.sink)

    return phases
