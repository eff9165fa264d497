"""The find engine: estimates of all heads from backward passes, then exact cells where they decide which come first.

Which cells those are is the matter of `workbench.finding.search`; this computes them. Estimates have a variable of
their own, and the measures of the run hold exact cells only, NaN elsewhere.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from workbench.checking import Finite, OneOf, Whole, check_each
from workbench.criteria.registry import get_criterion, list_criteria
from workbench.errors import PromptError, WorkbenchError
from workbench.finding.order import search_order
from workbench.finding.prices import work_of
from workbench.finding.search import CERTAIN, POSSIBLE, STATUSES, Findings, Question, pays, search
from workbench.models.encode import Encoded
from workbench.models.hooked import HookedLVLM
from workbench.prompts.prompt import PromptSet
from workbench.prompts.ties import unit_names
from workbench.runs.job import Job, by_layer
from workbench.runs.memory import BASE, unit_of, variables_of
from workbench.sweeps.engines.exact import exact_step
from workbench.sweeps.engines.first_order import ESTIMATED, first_order_step
from workbench.sweeps.engines.registry import Engine
from workbench.sweeps.tasks import Arrays, Sweep, Task, layer_tasks, selection_of

RULES = ("selectivity", "sensitivity")  # means and differences of means, of which a sample has intervals
MOST = 10**6
DEFAULTS: Mapping[str, Any] = {
    "k": 5,  # how many heads to find
    "rule": "selectivity",
    "criterion": "deflection",
    "level": 0.95,
    "budget": 0.5,  # share of the exact map's work that may be spent
    "directions": 16,  # backward passes behind an estimate
    "estimates": [],  # set by `criterion`
}


def searchable() -> tuple[str, ...]:
    """The criteria whose derivative is known, and for which heads can be found."""
    return tuple(c.name for c in list_criteria() if len(c.needs) == 1 and c.needs[0] in ESTIMATED)


def settle(options: dict[str, Any]) -> dict[str, Any]:
    """The options, checked; a WorkbenchError for one that has no meaning."""
    criterion = get_criterion(options["criterion"])
    if criterion.name not in searchable():
        raise WorkbenchError(
            f"Heads are found by criteria of one value a prompt whose derivative is known: {', '.join(searchable())}; "
            f"got {criterion.name!r}. Sweep all heads with engine='exact', and score the run by it."
        )
    check_each(
        options,
        {
            "rule": OneOf(RULES),
            "k": Whole(1, MOST),
            "directions": Whole(1, MOST),
            "level": Finite(0.5, 1 - 1e-9),
            "budget": Finite(1e-6, 2.0),
        },
    )
    return {**options, "estimates": list(criterion.needs)}


def order(prompts: PromptSet, seed: int, options: Mapping[str, Any]) -> list[int]:
    """Those that the rule reads first, in random order; see `search_order`."""
    chosen = np.flatnonzero(selection_of(prompts)).tolist()
    unsafe = np.array([prompts[i].label == "unsafe" for i in chosen], dtype=bool)
    for name, side in (("unsafe", unsafe), ("safe", ~unsafe)):
        if not side.any() and (name == "unsafe" or options["rule"] == "selectivity"):
            raise PromptError(f"The rule {options['rule']} reads {name} prompts, and of {len(chosen)} none is.")
    units = unit_names([prompts[i].pair_id for i in chosen], [prompts[i].content_key() for i in chosen])
    first = [chosen[i] for i in search_order(unsafe, units.tolist(), options["rule"], seed)[0]]
    return first + sorted(set(range(len(prompts))) - set(first))


def phases(this: Sweep) -> Iterator[list[Task]]:
    """Estimates on the prompts that the rule reads, then rounds of exact cells."""
    options, sink, model = this.options, this.sink, this.model
    criterion = get_criterion(options["criterion"])
    name = criterion.needs[0]
    if name == "refusal_change" and not model.refusal_tokens:
        raise WorkbenchError(f"The tokenizer of {model.name!r} knows no opening of a refusal; take another criterion.")
    ask = Question(options["k"], options["rule"], options["level"], options["budget"], this.seed)
    first = map(this.encode, np.flatnonzero(this.selection).tolist())  # in the order; one after the other
    spans = np.array([(this.job.mask.start(encoded), encoded.n_tokens) for encoded in first])
    read = this.selection & (this.unsafe if ask.rule == "sensitivity" else True)
    n_read, asked = int(read.sum()), this.job.chosen(model)
    work = work_of(spans[:, 1], spans[:, 0], model.n_layers, asked, n_read=n_read, directions=this.job.directions)
    bounds = [(start, stop) for start, stop in this.bounds if start < n_read]
    estimate = np.where(asked, np.zeros((n_read, 1, 1, 1)), np.nan)
    if pays(ask, this.unsafe[:n_read], asked, work):
        yield layer_tasks(first_order_step, bounds, (BASE,), None, sink)
        known = sink.read(f"{name}_estimate")[:n_read].astype(float)
        estimate = criterion.strength(np.where(asked, known, np.nan))
    else:  # so few heads or prompts that the exact map is the shortest way
        units = (BASE, *map(unit_of, this.job.layers(model)))
        yield layer_tasks(exact_step, bounds, units, this.job.cells, sink)
        ask = replace(ask, budget=np.inf)
    done = np.zeros(estimate.shape, dtype=bool)  # and not what an interrupted search stored of later rounds

    def exact() -> np.ndarray:
        return criterion.strength(np.where(done, sink.read(name)[:n_read], np.nan).astype(float))

    steps = search(ask, this.unsafe[:n_read], asked, work, estimate, exact)
    try:
        while True:
            wanted = next(steps)
            yield list(_tasks(this, name, wanted, bounds))
            done |= wanted
    except StopIteration as end:
        _keep(this, end.value, work.whole)


def _tasks(this: Sweep, name: str, wanted: np.ndarray, bounds: Sequence[tuple[int, int]]) -> Iterator[Task]:
    """What computes these cells `[prompt, projection, layer, head]` where they are not stored; prompt by prompt."""
    sink = this.sink
    missing = wanted & np.isnan(sink.read(name)[: len(wanted)])
    stored = {variable: sink.read(variable) for variable in variables_of(sink.layout, unit_of(0))}
    for start, stop in bounds:
        if cells := by_layer((int(n), int(layer), int(head)) for n, layer, head in np.argwhere(missing[start])):
            known = {
                unit_of(layer): {variable: array[start:stop, :, layer] for variable, array in stored.items()}
                for layer in cells
            }
            units = tuple(map(unit_of, cells))
            yield Task(partial(more_cells, known), start, stop, units, cells, sink.rows(start, units[0]))


def more_cells(
    known: Mapping[int, Mapping[str, np.ndarray]],
    model: HookedLVLM,
    encoded: Sequence[Encoded],
    job: Job,
    rows: int,
    units: Sequence[int],
) -> Iterator[tuple[int, Arrays]]:
    """Cells of one prompt, put among those of the same units that are `known` already; with that given, a `Step`."""
    for unit, arrays in exact_step(model, encoded, job, rows, units):
        yield (
            unit,
            {
                variable: np.where(np.isnan(array), known[unit][variable].reshape(array.shape), array)
                for variable, array in arrays.items()
            },
        )


def _keep(this: Sweep, found: Findings, whole: float) -> None:
    dims = ("projection", "layer", "head")
    for name, array in (
        ("rule_value", found.value),
        ("rule_low", found.low),
        ("rule_high", found.high),
        ("find_status", np.where(this.job.chosen(this.model), found.status, np.nan)),
        ("prompts_used", found.used),
    ):
        this.sink.put(name, dims, array.astype(np.float32))
    counts = {
        name: {STATUSES[code]: int((status == code).sum()) for code in (CERTAIN, POSSIBLE)}
        for name, status in zip(this.job.projections, found.status, strict=True)
    }
    this.sink.note(find_counts=json.dumps(counts), exact_map_layer_tokens=int(whole))


def report(attrs: Mapping[str, Any]) -> str:
    """What a search says when it ends."""
    if "find_counts" not in attrs:
        return ""
    options = json.loads(attrs["engine_options"])
    parts = [
        f"{name}: {count['certain']} of {options['k']} heads certain, {count['possible']} more possible"
        for name, count in json.loads(attrs["find_counts"]).items()
    ]
    share = attrs["layer_tokens"] / attrs["exact_map_layer_tokens"]
    return f"Found for {share:.0%} of the exact map's work, at level {options['level']:g}; {'; '.join(parts)}."


ENGINE = Engine(
    "find",
    "which heads come first, from estimates and as few exact cells as that takes",
    phases,
    DEFAULTS,
    block=1,
    order=order,
    settle=settle,
    report=report,
)
