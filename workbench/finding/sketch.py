"""The sketch engine: all heads from a few backward passes, then the best of them exactly.

The estimates are those of `workbench.sweeps.engines.first_order`.

Estimates have variables of their own and are never put among exact numbers: `deflection`, `kl` and the rest hold only
cells that were computed exactly, and are NaN elsewhere. Those are, for each projection, the `best` heads by the
estimate, the `edge` heads nearest the safe bound, and `sample` heads drawn at random; what the screen missed among the
latter is reported (`screen_*` attributes, and a line when the sweep ends), so that a model on which linearity fails is
seen. With none of the three, the sketch is the screen alone. Heads are chosen on the prompts of the split `selection`
where prompts declare it.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from workbench.checking import plainly
from workbench.criteria.ranking import rule_values
from workbench.criteria.rules import SAFE_PERCENTILE
from workbench.errors import WorkbenchError
from workbench.finding.screening import ESTIMATED, Cell, best_of_each, check_options, screened
from workbench.runs.job import by_layer
from workbench.runs.memory import BASE, unit_of
from workbench.sweeps.engines.exact import exact_step
from workbench.sweeps.engines.first_order import first_order_step
from workbench.sweeps.engines.registry import Engine
from workbench.sweeps.tasks import Sweep, Task, layer_tasks

# Below this share of the first heads found, a user should not rely on the screen.
LEAST_RECALL = 0.8
DEFAULTS: Mapping[str, Any] = {
    # Searching 512 heads of a split Pocket, 8 directions and 12 + 4 exact heads found more of the true first five than
    # 4 directions and 16 + 8 heads did, at less cost: a backward pass is cheaper than exact heads.
    "directions": 8,  # backward passes an estimate
    "best": 12,  # heads a projection that are scored exactly
    "edge": 4,  # heads a projection nearest the safe bound, scored exactly so that it lies where it should
    "sample": 8,  # heads drawn at random that are scored exactly, to see what the screen missed
    "by": "deflection",  # the estimate that chooses
    "rule": "selectivity",
    "estimates": ["deflection", "kl"],
}


def settle(options: dict[str, Any]) -> dict[str, Any]:
    """The options, checked; a WorkbenchError for one that has no meaning."""
    check_options(options, {"directions": 1, "best": 0, "edge": 0, "sample": 0})
    names = options["estimates"]
    if not isinstance(names, list | tuple) or set(map(str, names)) - set(ESTIMATED) or options["by"] not in names:
        raise WorkbenchError(
            f"estimates names deflection, kl or both, and by is one of them; got {plainly(names)} and "
            f"{plainly(options['by'])}."
        )
    return options


def phases(this: Sweep) -> Iterator[list[Task]]:
    """Screen every block, then score the chosen heads exactly."""
    yield layer_tasks(first_order_step, this.bounds, (BASE,), None, this.sink)
    best, drawn = chosen_cells(this)
    if cells := by_layer(best | drawn):
        yield layer_tasks(exact_step, this.bounds, tuple(map(unit_of, cells)), cells, this.sink)
        this.sink.note(**screen_report(this, best, drawn))


def chosen_cells(this: Sweep) -> tuple[set[Cell], set[Cell]]:
    """(the best cells by the estimate and those at the safe bound, cells of heads drawn at random from all)."""
    options = this.options
    chosen, unsafe = this.job.chosen(this.model), this.unsafe[this.selection]
    estimate = np.where(chosen, this.sink.read(f"{options['by']}_estimate"), np.nan)[this.selection]
    best = screened(estimate, unsafe, options["rule"], options["best"])
    if options["rule"] == "selectivity" and 0 < unsafe.sum() < len(unsafe):
        low = estimate[~unsafe].mean(0)
        bound = np.nanpercentile(low, SAFE_PERCENTILE, axis=(1, 2), keepdims=True)
        best |= best_of_each(-np.abs(low - bound), options["edge"])
    every = np.argwhere(chosen.any(0))
    picked = np.random.default_rng(this.seed).permutation(every)[: options["sample"]].tolist()
    return best, {(index, layer, head) for index in range(len(this.job.projections)) for layer, head in picked}


def screen_report(this: Sweep, best: set[Cell], drawn: set[Cell]) -> dict[str, Any]:
    """How the screen did on heads it did not choose: what the attributes `screen_*` of a run say, by projection.

    `screen_spearman` compares estimate and exact value of the rule on the drawn heads. `screen_missed` counts drawn
    heads that were not chosen though their exact value beats that of the fifth best chosen one (or the last, of fewer);
    `screen_recall` is the share of such heads that were chosen, the missed ones scaled up from the sample to all heads.
    Without a sample there is nothing to say, and both are left out.
    """
    from scipy.stats import spearmanr

    options, names = this.options, this.job.projections
    unsafe = this.unsafe[this.selection]
    exact, estimate = (this.sink.read(name)[this.selection] for name in (options["by"], f"{options['by']}_estimate"))
    values = rule_values(exact, unsafe, options["rule"], estimate=estimate)
    plain = [rule_values(cells, unsafe, options["rule"], percentile=np.inf) for cells in (exact, estimate)]
    n_heads = int(this.job.chosen(this.model)[0].sum())
    spearman, missed, recall = {}, {}, {}
    for index, name in enumerate(names):
        chosen, sample = ([cell[1:] for cell in some if cell[0] == index] for some in (best, drawn))
        others = [head for head in sample if head not in chosen]
        known = [np.array([value[index][head] for head in sample]) for value in plain]
        if len(sample) > 2 and all(np.ptp(value) > 0 for value in known):
            spearman[name] = round(float(spearmanr(*known).statistic), 4)
        top = sorted((values[index][head] for head in chosen), reverse=True)[:5]
        if top and sample:
            missed[name] = sum(bool(values[index][head] > top[-1]) for head in others)
            scaled = missed[name] * (n_heads - len(chosen)) / len(others) if others else 0.0
            recall[name] = round(len(top) / (len(top) + scaled), 4)
    return {
        "exact_cells": _named(best | drawn, names),
        "screen_best": _named(best, names),
        "screen_sample": _named(drawn, names),
        "screen_spearman": spearman,
        "screen_missed": missed,
        "screen_recall": recall,
    }


def report(attrs: Mapping[str, Any]) -> str:
    """What a sketch says when it ends: how much is exact, and how the screen did."""
    exact = attrs.get("exact_cells", [])
    if not exact:
        return "All numbers are estimates; nothing was scored exactly."
    line = f"{len(exact)} cells were scored exactly; all others have estimates only."
    if recall := attrs["screen_recall"]:
        heads = len(attrs["screen_sample"]) // len(recall)
        parts = [f"{share:.0%} for {name}" for name, share in recall.items()]
        line += f" Recall of the screen, by {heads} heads drawn at random: {', '.join(parts)}."
        if min(recall.values()) < LEAST_RECALL:
            line += " It misses heads here (masks act too strongly to be linear?): raise best, or use engine='exact'."
    return line


def _named(cells: set[Cell], names: Sequence[str]) -> list[list[Any]]:
    return [[names[index], layer, head] for index, layer, head in sorted(cells)]


ENGINE = Engine(
    "sketch", "estimates for all heads, exact numbers for the best", phases, DEFAULTS, settle=settle, report=report
)
