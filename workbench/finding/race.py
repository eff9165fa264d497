"""The race engine: which k heads win under a rule, from as few masked passes as that takes.

Successive elimination: all heads are scored on a few prompts drawn at random, in equal parts from both classes; heads
that k others surely beat, or that surely break the safe bound, are dropped; the rest go on to the next prompts, and the
k that are left are scored on all of them. Where prompts declare the split `selection`, the race is run on those, and
the others only see its winners. Heads are compared prompt by prompt (what a prompt does to two heads alike says nothing
about their difference), by Student's intervals for means over the prompts of this very set, which are drawn without
replacement, so that the intervals shrink to nothing at its end. With probability `level` none of the k best is dropped
in any round (Bonferroni over what could go wrong: one of the k best beaten by one of the others, or a safe mean outside
its interval).

Source of the scheme: Even-Dar, Mannor and Mansour, "Action elimination and stopping conditions for the multi-armed
bandit and reinforcement learning problems", JMLR 7, 2006. With `screen` heads kept by a sketch of the same prompts
(`workbench.sweeps.engines.first_order`), the level holds among those, the other heads entering the safe bound by their
calibrated estimates; the run's attributes say so.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

from workbench.axes import head_name
from workbench.checking import Finite, check_each
from workbench.criteria.ranking import best_cells, rule_values
from workbench.criteria.rules import SAFE_PERCENTILE
from workbench.criteria.values import safe_levels
from workbench.errors import PromptError, WorkbenchError
from workbench.finding.screening import check_options, screened
from workbench.prompts.prompt import PromptSet
from workbench.runs.job import by_layer
from workbench.runs.memory import BASE, unit_of
from workbench.sweeps.engines.exact import exact_step
from workbench.sweeps.engines.first_order import first_order_step
from workbench.sweeps.engines.registry import Engine
from workbench.sweeps.tasks import Sweep, Task, layer_tasks, selection_of

BLOCK = 16
RIVALS = 4  # times k heads, the first by value, that all others are compared with
DEFAULTS: Mapping[str, Any] = {
    "k": 5,  # how many heads to find
    "rule": "selectivity",
    "by": "deflection",
    "level": 0.95,
    "screen": 0,  # heads a projection that a sketch lets into the race; 0 lets all in
    "directions": 8,
    "estimates": [],  # set by `screen`
}


def settle(options: dict[str, Any]) -> dict[str, Any]:
    """The options, checked; with a screen, what it estimates. A WorkbenchError for one that has no meaning."""
    check_options(options, {"k": 1, "screen": 0, "directions": 1})
    check_each(options, {"level": Finite(0.5, 1 - 1e-9)})
    if options["screen"] and options["screen"] < options["k"]:
        raise WorkbenchError(f"screen must let at least k = {options['k']} heads in; got {options['screen']}.")
    return {**options, "estimates": [options["by"]]} if options["screen"] else options


def order(prompts: PromptSet, seed: int) -> list[int]:
    """A random order in which every stretch holds both classes in their overall proportion; raced prompts first."""
    draws, raced = np.random.default_rng(seed), selection_of(prompts)
    place: dict[int, float] = {}
    for label in ("safe", "unsafe"):
        members = [i for i, prompt in enumerate(prompts) if prompt.label == label and raced[i]]
        if len(members) < 3:
            raise PromptError(f"A race needs at least 3 {label} prompts to choose heads on; got {len(members)}.")
        for at, i in enumerate(draws.permutation(members)):
            place[int(i)] = (at + 0.5) / len(members)
    return [*sorted(place, key=lambda i: (place[i], i)), *np.flatnonzero(~raced).tolist()]


@dataclass(frozen=True)
class Standing:
    """What is known of the rule's value after some prompts; each `[projection, layer, head]`, NaN if not computed.

    `safe_low` and `safe_high` bound the mean over safe prompts, which decides who may take part under selectivity;
    `width` is how many standard errors an interval reaches to either side.
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    safe_low: np.ndarray
    safe_high: np.ndarray
    used: np.ndarray
    width: np.ndarray


def by_class(cells: np.ndarray, unsafe: np.ndarray) -> list[tuple[np.ndarray, int]]:
    """Cells of the unsafe prompts seen and how many there are in all; then the same of the safe ones."""
    seen = unsafe[: len(cells)]
    return [(cells[seen].astype(float), int(unsafe.sum())), (cells[~seen].astype(float), int((~unsafe).sum()))]


def mean_and_error(values: np.ndarray, total: int) -> tuple[np.ndarray, np.ndarray]:
    """Means over the first axis of values drawn without replacement from `total`, and their squared errors."""
    n = (~np.isnan(values)).sum(0)
    mean = np.where(n < 2, np.nan, np.nansum(values, 0) / np.maximum(n, 1))
    spread = np.nansum((values - mean) ** 2, 0) / np.maximum(n - 1, 1)
    return mean, np.where(n < 2, np.nan, spread / np.maximum(n, 1) * (1 - n / total))


def standing(cells: np.ndarray, unsafe: np.ndarray, rule: str, risk: float) -> Standing:
    """Values and intervals from `[prompt, projection, layer, head]`, in which a dropped head's later cells are NaN.

    Args:
        unsafe: Of all prompts of the set, also those that `cells` does not reach yet.
        risk: Chance that one interval does not hold, on one side.
    """
    parts = by_class(cells, unsafe)
    on_unsafe, on_safe = ((~np.isnan(values)).sum(0) for values, _ in parts)
    width = stats.t.isf(risk, np.maximum(np.minimum(on_unsafe, on_safe) - 1, 1))
    (value, error), (safe, safe_error) = (mean_and_error(*part) for part in parts)
    safe_reach = width * np.sqrt(safe_error)
    if rule == "selectivity":
        value, error = value - safe, error + safe_error
    reach = width * np.sqrt(error)
    return Standing(
        value, value - reach, value + reach, safe - safe_reach, safe + safe_reach, on_unsafe + on_safe, width
    )


def survivors(alive: np.ndarray, now: Standing, cells: np.ndarray, unsafe: np.ndarray, rule: str, k: int) -> np.ndarray:
    """Heads `[projection, layer, head]` that may still be among the k best; `cells` as for `standing`."""
    if np.isnan(now.value[alive]).any():
        return alive  # too few prompts of a class so far
    sure, possible = alive.copy(), alive.copy()
    if rule == "selectivity":
        least = np.nanpercentile(now.safe_low, SAFE_PERCENTILE, axis=(1, 2), keepdims=True)
        most = np.nanpercentile(now.safe_high, SAFE_PERCENTILE, axis=(1, 2), keepdims=True)
        sure &= now.safe_high < least
        possible &= now.safe_low < most
    kept = np.zeros_like(alive)
    for index in range(len(alive)):
        if alive[index].sum() <= k:
            kept[index] = alive[index]
            continue
        rivals = np.argwhere(sure[index])
        rivals = rivals[np.argsort(-now.value[index][sure[index]], kind="stable")][: RIVALS * k]
        beaten = np.zeros(alive[index].shape, dtype=int)
        for layer, head in rivals:
            gap = now.value[index, layer, head] - now.value[index]
            apart = [
                mean_and_error(values[:, index] - values[:, index, layer, head][:, None, None], total)[1]
                for values, total in by_class(cells, unsafe)[: 2 if rule == "selectivity" else 1]
            ]
            beaten += gap > now.width[index] * np.sqrt(sum(apart))
        kept[index] = possible[index] & (beaten < k)
    return kept


def phases(this: Sweep) -> Iterator[list[Task]]:
    """Rounds of one block of prompts each, with the heads that are still alive."""
    options, sink = this.options, this.sink
    rule, k, by = options["rule"], options["k"], options["by"]
    raced, alive, estimate = int(this.selection.sum()), this.job.chosen(this.model), None
    unsafe, rounds_to_come = this.unsafe[:raced], [start for start, _ in this.bounds if start < raced]
    if options["screen"]:
        yield layer_tasks(first_order_step, this.bounds[: len(rounds_to_come)], (BASE,), None, sink)
        estimate = np.where(alive, sink.read(f"{by}_estimate")[:raced], np.nan)
        alive = np.zeros_like(alive)
        for cell in screened(estimate, unsafe, rule, options["screen"]):
            alive[cell] = True
    entered = int(alive.sum((1, 2)).max())
    # Either side of every safe mean, and each of the k best against each other head; in every round and projection.
    events = entered * (k + (2 if rule == "selectivity" else 0)) * len(rounds_to_come) * len(alive)
    risk, rounds = (1 - options["level"]) / max(1, events), 0
    for start, stop in this.bounds:
        cells = by_layer((index, layer, head) for index, layer, head in np.argwhere(alive).tolist())
        yield layer_tasks(exact_step, [(start, stop)], (BASE, *map(unit_of, cells)), cells, sink)
        if start >= raced or (rounds and (alive.sum((1, 2)) <= k).all()):
            continue  # the heads that are left, on the rest of the prompts
        exact = sink.read(by)[: min(stop, raced)]
        now = standing(exact, unsafe, rule, risk)
        if estimate is not None:
            seen = np.full_like(estimate, np.nan)  # and not what an interrupted race stored of later rounds
            seen[:stop] = exact
            known = safe_levels(seen, unsafe, estimate)
            low, high = (np.where(np.isnan(bound), known, bound) for bound in (now.safe_low, now.safe_high))
            now = replace(now, safe_low=low, safe_high=high)
        alive, rounds = survivors(alive, now, exact, unsafe, rule, k), rounds + 1
    exact = sink.read(by)[:raced]
    _report(
        this, standing(exact, unsafe, rule, risk), rule_values(exact, unsafe, rule, estimate=estimate), alive, rounds
    )


def _report(this: Sweep, now: Standing, values: np.ndarray, alive: np.ndarray, rounds: int) -> None:
    k, dims = this.options["k"], ("projection", "layer", "head")
    for name, array in (("value", now.value), ("low", now.low), ("high", now.high)):
        this.sink.put(f"rule_{name}", dims, array.astype(np.float32))
    this.sink.put("prompts_used", dims, np.where(now.used > 0, now.used, np.nan).astype(np.float32))
    ranked = [best_cells(value, k) for value in values]
    top = {name: [list(cell) for cell in cells] for name, cells in zip(this.job.projections, ranked, strict=True)}
    this.sink.note(
        race_top=json.dumps(top),
        race_left=alive.sum((1, 2)).tolist(),
        race_decided=bool((alive.sum((1, 2)) <= k).all()),
        race_rounds=rounds,
        race_prompts=int(this.selection.sum()),
        race_level_holds_among="the screened heads" if this.options["screen"] else "all heads",
    )


def report(attrs: Mapping[str, Any]) -> str:
    """What a race says when it ends: who won, and how sure that is."""
    winners = [
        f"{name}: {' '.join(head_name(*cell) for cell in cells) or 'none'}"
        for name, cells in json.loads(attrs["race_top"]).items()
    ]
    among = f"among {attrs['race_level_holds_among']}"
    state = "decided" if attrs["race_decided"] else f"not decided ({max(attrs['race_left'])} heads are left)"
    return (
        f"The race, {among}, is {state} after {attrs['race_rounds']} of its rounds on {attrs['race_prompts']} prompts. "
        f"First by rule, {'; '.join(winners)}."
    )


ENGINE = Engine(
    "race",
    "which heads win under a rule, from as few masked passes as that takes",
    phases,
    DEFAULTS,
    block=BLOCK,
    order=order,
    settle=settle,
    report=report,
)
