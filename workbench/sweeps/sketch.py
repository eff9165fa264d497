"""The sketch engine: all heads from a few backward passes (`workbench.sweeps.screen`), then the best of them exactly.

Estimates have variables of their own and are never put among exact numbers: `deflection`, `kl` and the rest hold only
cells that were computed exactly, and are NaN elsewhere. Those are the `best` heads by the estimate, and `sample` heads
drawn at random; what the screen missed among the latter is reported (`screen_*` attributes), so that a model on which
linearity fails is seen.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from workbench.errors import WorkbenchError
from workbench.sweeps.job import Cells
from workbench.sweeps.memory import BASE, unit_of
from workbench.sweeps.rule import RULES, SAFE_PERCENTILE, SCREEN_PERCENTILE, best_cells, completed, rule_values
from workbench.sweeps.tasks import Sweep, Task, layer_tasks

DEFAULTS: Mapping[str, Any] = {
    "directions": 4,  # backward passes an estimate
    "best": 16,  # heads a projection that are scored exactly
    "edge": 8,  # heads a projection nearest the safe bound, scored exactly so that it lies where it should
    "sample": 8,  # heads drawn at random that are scored exactly, to see what the screen missed
    "by": "deflection",  # the estimate that chooses
    "rule": "selectivity",
    "estimates": ["deflection", "kl"],
}


def check_options(options: Mapping[str, Any]) -> None:
    """WorkbenchError for an option that has no meaning."""
    names = set(options["estimates"])
    if not names or names - {"deflection", "kl"} or options["by"] not in names:
        raise WorkbenchError(
            f"estimates names deflection, kl or both, and by is one of them; got {options['estimates']} "
            f"and {options['by']!r}."
        )
    if options["rule"] not in RULES:
        raise WorkbenchError(f"rule must be one of {', '.join(RULES)}; got {options['rule']!r}.")
    for name in ("directions", "best"):
        if not isinstance(options[name], int) or options[name] < 1:
            raise WorkbenchError(f"{name} must be a whole number, 1 or more; got {options[name]!r}.")


def phases(this: Sweep) -> Iterator[list[Task]]:
    """Screen every block, then score the chosen heads exactly."""
    yield layer_tasks("sketch", this.bounds, (BASE,), None, this.sink)
    best, drawn = chosen_cells(this)
    cells: Cells = {}
    for layer, head in sorted(set(best) | set(drawn)):
        cells[layer] = (*cells.get(layer, ()), head)
    if cells:
        yield layer_tasks("exact", this.bounds, tuple(map(unit_of, cells)), cells, this.sink)
        this.sink.note(**screen_report(this, best, drawn))


def chosen_cells(this: Sweep) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(the best heads by the estimate, heads drawn at random from all)."""
    options = this.options
    estimate = this.sink.read(f"{options['by']}_estimate")
    values = rule_values(estimate, this.unsafe, options["rule"], percentile=SCREEN_PERCENTILE)
    best = {cell for value in values for cell in best_cells(value, options["best"])}
    if options["rule"] == "selectivity" and 0 < this.unsafe.sum() < len(this.unsafe):
        low = estimate[~this.unsafe].mean(0)
        bound = np.nanpercentile(low, SAFE_PERCENTILE, axis=(1, 2), keepdims=True)
        best |= {cell for value in -np.abs(low - bound) for cell in best_cells(value, options["edge"])}
    every = [(layer, head) for layer in this.job.layers(this.model) for head in range(estimate.shape[3])]
    picked = np.random.default_rng(this.seed).permutation(len(every))[: options["sample"]]
    return sorted(best), [every[i] for i in sorted(picked)]


def screen_report(this: Sweep, best: list[tuple[int, int]], drawn: list[tuple[int, int]]) -> dict[str, Any]:
    """How the screen did on heads it did not choose: what the attributes `screen_*` of a run say.

    `screen_spearman` compares estimate and exact value of the rule on the drawn heads, by projection. `screen_missed`
    counts drawn heads that were not chosen though their exact value beats that of the fifth best chosen one (or the
    last, of fewer); `screen_recall` is the share of such heads that were chosen, the missed ones scaled up from the
    sample to all heads.
    """
    from scipy.stats import spearmanr

    options = this.options
    exact, estimate = this.sink.read(options["by"]), this.sink.read(f"{options['by']}_estimate")
    values = rule_values(completed(exact, estimate), this.unsafe, options["rule"])
    plain = [rule_values(cells, this.unsafe, options["rule"], percentile=100) for cells in (exact, estimate)]
    n_cells = sum(len(this.job.heads_of(this.model, layer)) for layer in this.job.layers(this.model))
    others = [cell for cell in drawn if cell not in best]
    at = tuple(np.array(drawn).T)
    spearman, missed, recall = {}, {}, {}
    for number, name in enumerate(this.job.projections):
        known = [value[number][at] for value in plain]
        if len(drawn) > 2 and all(np.ptp(value) > 0 for value in known):
            spearman[name] = round(float(spearmanr(*known).statistic), 4)
        top = sorted((values[number][cell] for cell in best), reverse=True)[:5]
        missed[name] = sum(bool(values[number][cell] > top[-1]) for cell in others)
        scaled = missed[name] * (n_cells - len(best)) / len(others) if others else 0.0
        recall[name] = round(len(top) / (len(top) + scaled), 4)
    return {
        "exact_cells": [list(cell) for cell in sorted(set(best) | set(drawn))],
        "screen_best": [list(cell) for cell in best],
        "screen_sample": [list(cell) for cell in drawn],
        "screen_spearman": spearman,
        "screen_missed": missed,
        "screen_recall": recall,
    }
