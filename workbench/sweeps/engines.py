"""The engines by name: which tasks each makes, in which phases, and what it takes besides.

An engine is a generator of phases. Between two phases it may read what is stored, and choose by it; since it reads
nothing else, an interrupted sweep makes the same choices again.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from workbench.errors import MaskError, WorkbenchError
from workbench.prompts.prompt import PromptSet
from workbench.sweeps import race, sketch
from workbench.sweeps.job import Job
from workbench.sweeps.memory import BASE, unit_of
from workbench.sweeps.plan import BLOCK
from workbench.sweeps.tasks import Sweep, Task, layer_tasks


@dataclass(frozen=True)
class Engine:
    """One way to carry out a sweep.

    Attributes:
        phases: From the sweep to lists of tasks; each list is done before the next is asked for.
        defaults: The options it takes, with their defaults.
        block: Most prompts in a block.
        groups: Whether it can mask head sets.
        order: In which order it takes (and stores) the prompts; the returned run has the order they were given in.
        check_options: Raises a WorkbenchError for options that have no meaning.
        said: From a finished run's attributes to what a user should hear of it, besides the work it took.
    """

    phases: Callable[[Sweep], Iterator[list[Task]]]
    defaults: Mapping[str, Any]
    block: int = BLOCK
    groups: bool = False
    name: str = ""
    order: Callable[[PromptSet, int], list[int]] | None = None
    check_options: Callable[[Mapping[str, Any]], None] = lambda options: None
    said: Callable[[Mapping[str, Any]], str] = lambda attrs: ""

    def options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All options of the engine; a WorkbenchError for one it does not take."""
        if unknown := sorted(set(given) - set(self.defaults)):
            raise WorkbenchError(
                f"Engine {self.name!r} takes no option {', '.join(unknown)}; it takes "
                f"{', '.join(f'{k} (default {v!r})' for k, v in self.defaults.items()) or 'none'}."
            )
        options = {**self.defaults, **given}
        if options.get("screen"):
            options["estimates"] = [options["by"]]
        self.check_options(options)
        return options

    def check(self, job: Job) -> None:
        """MaskError for a job that the engine cannot do."""
        if job.groups is not None and not self.groups:
            raise MaskError(f"Engine {self.name!r} masks single heads; head sets (groups=…) need engine='exact'.")


def _one_phase(step: str) -> Callable[[Sweep], Iterator[list[Task]]]:
    def phases(this: Sweep) -> Iterator[list[Task]]:
        if this.job.groups is not None:
            yield layer_tasks("groups", this.bounds, (BASE,), None, this.sink)
            return
        units = (BASE, *map(unit_of, this.job.layers(this.model)))
        yield layer_tasks(step, this.bounds, units, this.job.cells, this.sink)

    return phases


ENGINES = {
    "exact": Engine(_one_phase("exact"), {}, groups=True, name="exact"),
    "naive": Engine(_one_phase("naive"), {}, name="naive"),
    "sketch": Engine(
        sketch.phases, sketch.DEFAULTS, name="sketch", check_options=sketch.check_options, said=sketch.said
    ),
    "race": Engine(
        race.phases,
        race.DEFAULTS,
        block=race.BLOCK,
        name="race",
        order=race.order,
        check_options=race.check_options,
        said=race.said,
    ),
    # Prompts are shared within a block, so its blocks are larger.
    "prefix": Engine(_one_phase("prefix"), {}, block=8 * BLOCK, name="prefix"),
}
