"""The race engine: which k heads win under a rule, from as few masked passes as that takes.

Successive elimination: all heads are scored on a few prompts drawn at random, in equal parts from both classes; heads
whose confidence interval cannot reach the k best are dropped; the rest go on to the next prompts, until k are left or
the prompts are used up. The intervals are Student's, for means over the prompts of this very set (drawn without
replacement, so they shrink to nothing at its end), and hold for all heads and all rounds together with probability
`level` (Bonferroni).

Source of the scheme: Even-Dar, Mannor and Mansour, "Action elimination and stopping conditions for the multi-armed
bandit and reinforcement learning problems", JMLR 7, 2006. With `screen` heads kept by a sketch of the first prompts
(`workbench.sweeps.screen`), the level holds among those, and the run's attributes say so.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from workbench.errors import PromptError, WorkbenchError
from workbench.prompts.prompt import PromptSet
from workbench.sweeps.job import Cells
from workbench.sweeps.memory import BASE, unit_of
from workbench.sweeps.rule import RULES, SAFE_PERCENTILE, SCREEN_PERCENTILE, best_cells, rule_values
from workbench.sweeps.tasks import Sweep, Task, layer_tasks

BLOCK = 16
DEFAULTS: Mapping[str, Any] = {
    "k": 5,  # how many heads to find
    "rule": "selectivity",
    "by": "deflection",
    "level": 0.95,
    "screen": 0,  # heads a projection that a sketch lets into the race; 0 lets all in
    "directions": 4,
    "estimates": [],  # set by `screen`
}


def check_options(options: Mapping[str, Any]) -> None:
    """WorkbenchError for an option that has no meaning."""
    if options["rule"] not in RULES:
        raise WorkbenchError(f"rule must be one of {', '.join(RULES)}; got {options['rule']!r}.")
    if options["by"] not in ("deflection", "kl"):
        raise WorkbenchError(f"by must be deflection or kl; got {options['by']!r}.")
    if not 0.5 <= options["level"] < 1:
        raise WorkbenchError(f"level is a probability, at least 0.5 and less than 1; got {options['level']!r}.")
    if options["screen"] and options["screen"] < options["k"]:
        raise WorkbenchError(f"screen must let at least k = {options['k']} heads in; got {options['screen']}.")


def order(prompts: PromptSet, seed: int) -> list[int]:
    """A random order in which every stretch holds both classes in their overall proportion."""
    draws = np.random.default_rng(seed)
    place: dict[int, float] = {}
    for label in ("safe", "unsafe"):
        members = [i for i, prompt in enumerate(prompts) if prompt.label == label]
        if len(members) < 3:
            raise PromptError(f"A race needs at least 3 {label} prompts; got {len(members)}.")
        for number, i in enumerate(draws.permutation(members)):
            place[int(i)] = (number + 0.5) / len(members)
    return sorted(place, key=lambda i: (place[i], i))


@dataclass(frozen=True)
class Standing:
    """What is known of the rule's value after some prompts; each `[projection, layer, head]`, NaN if not computed.

    `safe_low` and `safe_high` bound the mean over safe prompts, which decides who may take part under selectivity.
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    safe_low: np.ndarray
    safe_high: np.ndarray
    used: np.ndarray


def standing(cells: np.ndarray, unsafe: np.ndarray, rule: str, risk: float) -> Standing:
    """Values and intervals from `[prompt, projection, layer, head]`, in which a dropped head's later cells are NaN.

    Args:
        unsafe: Of all prompts of the set, also those that `cells` does not reach yet.
        risk: Chance that one interval does not hold.
    """
    seen = unsafe[: len(cells)]
    parts = {}
    for name, chosen, total in (("unsafe", seen, unsafe.sum()), ("safe", ~seen, (~unsafe).sum())):
        values = cells[chosen].astype(np.float64)
        count = (~np.isnan(values)).sum(0)
        few = count < 2
        mean = np.where(few, np.nan, np.nansum(values, 0) / np.maximum(count, 1))
        spread = np.nansum((values - mean) ** 2, 0) / np.maximum(count - 1, 1)
        error = np.where(few, np.nan, spread / np.maximum(count, 1) * (1 - count / total))
        parts[name] = mean, error, count
    (high, high_error, n_high), (low, low_error, n_low) = parts["unsafe"], parts["safe"]
    width = stats.t.ppf(1 - risk / 2, np.maximum(np.minimum(n_high, n_low) - 1, 1))
    safe_width = width * np.sqrt(low_error)
    value, error = (high, high_error) if rule == "sensitivity" else (high - low, high_error + low_error)
    reach = width * np.sqrt(error)
    return Standing(value, value - reach, value + reach, low - safe_width, low + safe_width, n_high + n_low)


def survivors(alive: np.ndarray, now: Standing, rule: str, k: int) -> np.ndarray:
    """Heads `[projection, layer, head]` that may still be among the k best."""
    sure, possible = alive.copy(), alive.copy()
    if rule == "selectivity":
        least = np.nanpercentile(now.safe_low, SAFE_PERCENTILE, axis=(1, 2), keepdims=True)
        most = np.nanpercentile(now.safe_high, SAFE_PERCENTILE, axis=(1, 2), keepdims=True)
        sure &= now.safe_high < least
        possible &= now.safe_low < most
    kept = np.zeros_like(alive)
    for number in range(len(alive)):
        reached = np.sort(now.low[number][sure[number]])[::-1]
        bar = reached[k - 1] if len(reached) >= k else -np.inf
        kept[number] = possible[number] & ~(now.high[number] < bar)
    return kept


def phases(this: Sweep) -> Iterator[list[Task]]:
    """Rounds of one block of prompts each, with the heads that are still alive."""
    options, sink = this.options, this.sink
    rule, k, by = options["rule"], options["k"], options["by"]
    alive = np.zeros(sink.read(by).shape[1:], dtype=bool)
    for layer in this.job.layers(this.model):
        alive[:, layer, list(this.job.heads_of(this.model, layer))] = True
    if options["screen"]:
        first = this.bounds[:2]
        yield layer_tasks("sketch", first, (BASE,), None, sink)
        stop = first[-1][1]
        estimate = sink.read(f"{by}_estimate")[:stop]
        guess = rule_values(estimate, this.unsafe[:stop], rule, percentile=SCREEN_PERCENTILE)
        for number, value in enumerate(guess):
            chosen = best_cells(value, options["screen"])
            alive[number] &= np.isin(np.arange(value.size), [a * value.shape[1] + b for a, b in chosen]).reshape(
                value.shape
            )
    risk = (1 - options["level"]) / max(1, 2 * alive.sum() * len(this.bounds))
    rounds, now = 0, None
    for start, stop in this.bounds:
        cells: Cells = {}
        for layer, head in np.argwhere(alive.any(0)).tolist():
            cells[layer] = (*cells.get(layer, ()), head)
        yield layer_tasks("exact", [(start, stop)], (BASE, *map(unit_of, cells)), cells, sink)
        now = standing(sink.read(by)[:stop], this.unsafe, rule, risk)
        alive, rounds = survivors(alive, now, rule, k), rounds + 1
        if (alive.sum((1, 2)) <= k).all():
            break
    assert now is not None
    _report(this, now, alive, rounds)


def _report(this: Sweep, now: Standing, alive: np.ndarray, rounds: int) -> None:
    k, dims = this.options["k"], ("projection", "layer", "head")
    for name, array in (("value", now.value), ("low", now.low), ("high", now.high)):
        this.sink.put(f"rule_{name}", dims, array.astype(np.float32))
    this.sink.put("prompts_used", dims, np.where(now.used > 0, now.used, np.nan).astype(np.float32))
    ranked = [best_cells(np.where(a, v, np.nan), k) for a, v in zip(alive, now.value, strict=True)]
    top = {name: [list(cell) for cell in cells] for name, cells in zip(this.job.projections, ranked, strict=True)}
    this.sink.note(
        race_top=json.dumps(top),
        race_left=alive.sum((1, 2)).tolist(),
        race_decided=bool((alive.sum((1, 2)) <= k).all()),
        race_rounds=rounds,
        race_level_holds_among="the screened heads" if this.options["screen"] else "all heads",
    )
