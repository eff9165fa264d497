"""`find_heads` replayed on stored exact cells and estimates: how often its statuses and intervals are right.

Nothing here runs a model: the cells that a search asks for are looked up. So a search can be held against the truth
hundreds of times, each time on another part of the prompts, taken in another order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from workbench.criteria.ranking import best_cells, rule_values
from workbench.finding.order import search_order
from workbench.finding.prices import work_of
from workbench.finding.search import CERTAIN, EXCLUDED, POSSIBLE, Findings, Question, search


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
    stored: Stored,
    *,
    each: int,
    draws: int = 200,
    rule: str = "selectivity",
    k: int = 5,
    level: float = 0.95,
    budget: float = 0.5,
    seed: int = 0,
) -> pd.DataFrame:
    """Search the first k heads on `each` unsafe and `each` safe prompts drawn at random, `draws` times.

    Returns:
        One row a draw and projection: `right` (nothing certain that is not among the first k, none of those excluded),
        `certain`, `possible` (how many heads), `covered` (share of the heads with a value whose interval holds it),
        `work` (share of the exact map's, over all projections).
    """
    rows = []
    for draw in range(draws):
        random = np.random.default_rng([seed, draw])
        classes = (np.flatnonzero(stored.unsafe), np.flatnonzero(~stored.unsafe))
        part = np.sort(np.concatenate([random.choice(of, each, replace=False) for of in classes]))
        found = replayed(stored, part, Question(k, rule, level, budget, draw))
        exact, unsafe = stored.exact[part], stored.unsafe[part]
        truth = rule_values(exact, unsafe, rule)
        plain = exact[unsafe].mean(0) - (exact[~unsafe].mean(0) if rule == "selectivity" else 0)
        for number, values in enumerate(truth):
            first = np.zeros(values.shape, dtype=bool)
            first[tuple(np.transpose(best_cells(values, k)))] = True
            status = found.status[number]
            valued = np.isfinite(found.value[number])
            inside = (found.low[number] <= plain[number] + 1e-9) & (plain[number] <= found.high[number] + 1e-9)
            rows.append(
                {
                    "draw": draw,
                    "projection": number,
                    "right": not (first & (status == EXCLUDED)).any() and not (~first & (status == CERTAIN)).any(),
                    "certain": int((status == CERTAIN).sum()),
                    "possible": int((status == POSSIBLE).sum()),
                    "covered": float(inside[valued].mean()),
                    "work": found.spent,
                }
            )
    return pd.DataFrame(rows)


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
