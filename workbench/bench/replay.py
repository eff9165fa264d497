"""`find_heads` replayed on stored exact cells and estimates: how often its statuses and intervals are right.

Nothing here runs a model: the cells that a search asks for are looked up. So a search can be held against the truth
hundreds of times, each time on another part of the prompts, taken in another order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from workbench.criteria.ranking import best_cells, rule_values
from workbench.finding.order import search_order
from workbench.finding.prices import work_of
from workbench.finding.search import CERTAIN, EXCLUDED, POSSIBLE, Findings, Question, search

ROUNDING = 1e-4  # degrees and such: runs are stored in float32


@dataclass(frozen=True)
class Stored:
    """What a replay looks up.

    Attributes:
        exact: Strengths of a per-prompt criterion, `[prompt, projection, layer, head]`.
        estimate: Estimates of them, the same shape.
        unsafe: `[prompt]`.
        units: Of each prompt, a name that prompts of a pair share; empty for a prompt alone.
        tokens: Of each prompt.
        directions: Behind each estimate.
    """

    exact: np.ndarray
    estimate: np.ndarray
    unsafe: np.ndarray
    units: Sequence[str]
    tokens: np.ndarray
    directions: int


def replay(
    *stored: Stored,
    each: int,
    draws: int = 200,
    rule: str = "selectivity",
    k: int = 5,
    level: float = 0.95,
    budget: float = 0.5,
    seed: int = 0,
) -> pd.DataFrame:
    """Search the first k heads on `each` unsafe and `each` safe prompts drawn at random, `draws` times.

    Args:
        stored: One map, with estimates along several sets of directions: draws take them in turn.
        each: Prompts of a class.
        draws: How many searches.
        rule, k, level, budget: As `find_heads` has them.
        seed: Of the draws.

    Returns:
        One row a draw and projection: `right` (nothing certain that is not among the first k, none of those excluded),
        `certain`, `possible` (how many heads), `covered` (share of the heads with a value whose interval holds it),
        `work` (share of the exact map's, over all projections).
    """
    rows = []
    for draw in range(draws):
        known = stored[draw % len(stored)]
        part = draw_part(known.unsafe, each, draw, seed)
        found = replayed(known, part, Question(k, rule, level, budget, draw))
        for row in judged(found, known.exact[part], known.unsafe[part], rule, k):
            rows.append({"draw": draw, **row})
    return pd.DataFrame(rows)


def draw_part(unsafe: np.ndarray, each: int, draw: int, seed: int = 0) -> np.ndarray:
    """Places of `each` unsafe and `each` safe prompts drawn at random, in order."""
    random = np.random.default_rng([seed, draw])
    classes = (np.flatnonzero(unsafe), np.flatnonzero(~unsafe))
    return np.sort(np.concatenate([random.choice(of, each, replace=False) for of in classes]))


def judged(found: Findings, exact: np.ndarray, unsafe: np.ndarray, rule: str, k: int) -> Iterator[dict[str, Any]]:
    """A search held against exact strengths `[prompt, projection, layer, head]` of the same prompts, by projection."""
    plain = exact[unsafe].mean(0) - (exact[~unsafe].mean(0) if rule == "selectivity" else 0)
    for number, values in enumerate(rule_values(exact, unsafe, rule)):
        first = np.zeros(values.shape, dtype=bool)
        first[tuple(np.transpose(best_cells(values, k)))] = True
        status = found.status[number]
        valued = np.isfinite(found.value[number])
        low, high = found.low[number] - ROUNDING, found.high[number] + ROUNDING
        yield {
            "projection": number,
            "right": not (first & (status == EXCLUDED)).any() and not (~first & (status == CERTAIN)).any(),
            "certain": int((status == CERTAIN).sum()),
            "possible": int((status == POSSIBLE).sum()),
            "covered": float(((low <= plain[number]) & (plain[number] <= high))[valued].mean()),
            "work": found.spent,
        }


def replayed(stored: Stored, part: np.ndarray, ask: Question) -> Findings:
    """One search on a part of the stored prompts."""
    order, n_read = search_order(stored.unsafe[part], [stored.units[i] for i in part], ask.rule, ask.seed)
    part = part[order]
    tokens, asked = stored.tokens[part], np.isfinite(stored.exact).all(0)
    work = work_of(tokens, np.zeros_like(tokens), asked.shape[1], asked, n_read=n_read, directions=stored.directions)
    part = part[:n_read]
    exact, estimate = stored.exact[part], stored.estimate[part]
    cells = np.full_like(exact, np.nan)
    steps = search(ask, stored.unsafe[part], asked, work, estimate, lambda: cells)
    while True:
        try:
            wanted = next(steps)
        except StopIteration as end:
            return end.value
        cells[wanted] = exact[wanted]
