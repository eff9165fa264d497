"""`find_heads` held against maps of all cells: searches replayed on a map, live ones, and what they take."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd

from workbench.bench import jobs
from workbench.bench.replay import Stored, draw_part, judged, replay
from workbench.bench.timing import Row, in_turn, rows
from workbench.finding.find import find_heads
from workbench.finding.prices import directions_for, work_of
from workbench.finding.search import Findings
from workbench.models.hooked import HookedLVLM
from workbench.prompts.prompt import PromptSet
from workbench.prompts.ties import tie_names

# Rules with the budget that they are given.
ASKED = {"sensitivity": 0.25, "selectivity": 0.5}
DRAWS = 200
LIVE = 5
SETS = 5  # of directions behind the estimates of a replay: of each a search has one


def stored(
    model: HookedLVLM,
    prompts: PromptSet,
    exact: np.ndarray,
    each: int,
    through: Callable[[np.ndarray], np.ndarray] = np.asarray,
) -> list[Stored]:
    """A map of deflections, with estimates as searches of `each` prompts a class take them.

    Args:
        through: Makes estimates of the map's heads from those of the model's, where they are not the same.
    """
    directions = directions_for(model.n_layers, np.isfinite(exact).all(0), each)
    about = (
        np.array([p.label == "unsafe" for p in prompts]),
        tie_names([p.pair_id for p in prompts], [p.content_key() for p in prompts]).tolist(),
        np.array([model.encode(prompt).n_tokens for prompt in prompts]),
        directions,
    )
    sets = (jobs.estimated(model, prompts, directions, seed).astype(float) for seed in range(SETS))
    return [Stored(exact.astype(float), through(estimate), *about) for estimate in sets]


def replayed(
    name: str, known: Sequence[Stored], each: int, *, draws: int = DRAWS, budgets: Sequence[float] = ()
) -> Iterator[Row]:
    """Rates over draws of `each` prompts a class, rule by rule; of selectivity also at other budgets, over fewer."""
    asked = [*((*of, draws) for of in ASKED.items()), *(("selectivity", of, max(1, draws // 4)) for of in budgets)]
    for rule, budget, times in asked:
        found = replay(*known, each=each, draws=times, rule=rule, budget=budget)
        yield _row("find", name, rule, budget, found)


def _row(job: str, name: str, rule: str, budget: float, found: pd.DataFrame) -> Row:
    """Rates over draws; `right` where the statuses of both projections are."""
    row = Row(job, name, rule, 0.0, 0.0, float(found.groupby("draw")["right"].all().mean()), "of the draws right")
    means = found.groupby("projection")[["certain", "possible", "covered"]].mean()
    row.more = {"draws": int(found["draw"].nunique()), "budget": budget, "work": round(float(found["work"].mean()), 4)}
    for number, projection in enumerate(jobs.PROJECTIONS):
        row.more[projection] = {column: round(float(means[column][number]), 3) for column in means}
    return row


def live(name: str, model: HookedLVLM, prompts: PromptSet, exact: np.ndarray, each: int) -> Iterator[Row]:
    """The search itself, the rules in turn, on prompts that are drawn as a replay draws them."""
    unsafe = np.array([p.label == "unsafe" for p in prompts])
    found: dict[str, list[dict[str, Any]]] = {rule: [] for rule in ASKED}
    for draw, rule in zip(range(LIVE), cycle(ASKED), strict=False):
        part = draw_part(unsafe, each, draw)
        asked = without_splits(prompts, part)
        options: dict[str, Any] = {"rule": rule, "projection": jobs.PROJECTIONS, "budget": ASKED[rule], "seed": draw}
        table = find_heads(model, asked, progress=False, **options)
        of_both = judged(findings(table), exact[part].astype(float), unsafe[part], rule, k=5)
        found[rule] += [{"draw": draw, **row} for row in of_both]
    for rule, judgements in found.items():
        yield _row("find_live", name, rule, ASKED[rule], pd.DataFrame(judgements))


def without_splits(prompts: PromptSet, part: np.ndarray) -> PromptSet:
    """Drawn prompts as a replay has them: without splits, of which a search would keep to `selection` alone."""
    return PromptSet((prompts[i] for i in part), name=prompts.name).with_split("")


def findings(table: pd.DataFrame) -> Findings:
    """What a search found, as a replay has it."""
    run = table.attrs["run"]
    names = ("rule_value", "rule_low", "rule_high", "find_status", "prompts_used")
    value, low, high, status, used = (run[name].values.astype(float) for name in names)
    return Findings(value, low, high, status.astype(int), used, table.attrs["work"])


def beside_peer(name: str, model: HookedLVLM, prompts: PromptSet, *, part: int) -> Iterator[Row]:
    """The search for both projections, rule by rule, timed beside a TransformerLens loop over a part of the cells."""
    _, _, calls, scale = jobs.peers_on_a_part(model, prompts, ["transformer_lens"], part)
    for rule, budget in ASKED.items():
        options: dict[str, Any] = {"rule": rule, "projection": jobs.PROJECTIONS, "budget": budget}
        calls[rule] = partial(find_heads, model, prompts, progress=False, **options)
    timings, results = in_turn(calls, 1, model.device)
    for rule in ASKED:
        both = {engine: timings[engine] for engine in ("transformer_lens", rule)}
        peer = rows("find_time", name, both, rule, scale)["transformer_lens"]
        peer.more = {"prompts": len(prompts), "cells": len(jobs.cells_of(model)), "work": results[rule].attrs["work"]}
        yield peer


def counted(name: str, known: Sequence[Stored], *, draws: int) -> Iterator[Row]:
    """Searches of all prompts, against a forward pass for each head and projection and prompt, in layer-tokens."""
    one = known[0]
    asked, tokens, each = np.isfinite(one.exact).all(0), one.tokens, int(one.unsafe.sum())
    n_layers = asked.shape[1]
    work = work_of(tokens, np.zeros_like(tokens), n_layers, asked, n_read=len(tokens), directions=one.directions)
    naive = (1 + asked.sum()) * n_layers * tokens.sum()
    for rule, budget in ASKED.items():
        row = _row("find_count", name, rule, budget, replay(*known, each=each, draws=draws, rule=rule, budget=budget))
        row.more |= {"prompts": len(tokens), "directions": one.directions}
        row.ratio, row.against = round(float(naive / (row.more["work"] * work.whole)), 2), "find"
        yield row
