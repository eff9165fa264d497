"""`find_heads` held against maps of all cells: searches replayed on a map, live ones, and what they take."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
import torch

from workbench.bench import jobs
from workbench.bench.replay import Stored, draw_part, judged, replay
from workbench.bench.timing import Row, in_turn, rows
from workbench.finding.find import find_heads
from workbench.finding.search import Findings
from workbench.models.encode import Encoded
from workbench.models.hooked import HookedLVLM
from workbench.models.masks import Mask
from workbench.models.walk import base_pass, read_out
from workbench.prompts.prompt import PromptSet
from workbench.prompts.ties import unit_names
from workbench.runs.effects import angle_degrees
from workbench.runs.job import Job
from workbench.sweeps.engines.exact import mask_writes
from workbench.sweeps.plan import batches, plan

# Rules with the budget that they are given.
ASKED = {"sensitivity": 0.25, "selectivity": 0.5}
DRAWS = 200
LIVE = 5
DIRECTIONS = 32  # that `find_heads` takes for these models


def stored(model: HookedLVLM, prompts: PromptSet, exact: np.ndarray) -> Stored:
    """A map of deflections, with estimates of the same model and what a search reads besides."""
    return Stored(
        exact.astype(float),
        jobs.estimated(model, prompts, DIRECTIONS).astype(float),
        np.array([p.label == "unsafe" for p in prompts]),
        unit_names([p.pair_id for p in prompts], [p.content_key() for p in prompts]).tolist(),
        np.array([model.encode(prompt).n_tokens for prompt in prompts]),
        DIRECTIONS,
    )


def replayed(
    name: str, known: Stored, each: int, *, draws: int = DRAWS, budgets: Sequence[float] = ()
) -> Iterator[Row]:
    """Rates over draws of `each` prompts a class, rule by rule; of selectivity also at other budgets, over fewer."""
    asked = [*((*of, draws) for of in ASKED.items()), *(("selectivity", of, max(1, draws // 4)) for of in budgets)]
    for rule, budget, times in asked:
        found = replay(known, each=each, draws=times, rule=rule, budget=budget)
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
        asked = PromptSet((prompts[i] for i in part), name=prompts.name)
        options: dict[str, Any] = {"rule": rule, "projection": jobs.PROJECTIONS, "budget": ASKED[rule], "seed": draw}
        table = find_heads(model, asked, progress=False, **options)
        of_both = judged(findings(table), exact[part].astype(float), unsafe[part], rule, k=5)
        found[rule] += [{"draw": draw, **row} for row in of_both]
    for rule, judgements in found.items():
        yield _row("find_live", name, rule, ASKED[rule], pd.DataFrame(judgements))


def findings(table: pd.DataFrame) -> Findings:
    """What a search found, as a replay has it."""
    run = table.attrs["run"]
    names = ("rule_value", "rule_low", "rule_high", "find_status", "prompts_used")
    value, low, high, status, used = (run[name].values.astype(float) for name in names)
    return Findings(value, low, high, status.astype(int), used, table.attrs["work"])


def beside_peer(name: str, model: HookedLVLM, prompts: PromptSet, *, part: int) -> Row:
    """The search for both projections by sensitivity, timed beside a TransformerLens loop over a part of the cells."""
    _, _, calls, scale = jobs.peers_on_a_part(model, prompts, ["transformer_lens"], part)
    options: dict[str, Any] = {"rule": "sensitivity", "projection": jobs.PROJECTIONS, "budget": ASKED["sensitivity"]}
    calls["find"] = partial(find_heads, model, prompts, progress=False, **options)
    timings, results = in_turn(calls, 1, model.device)
    found = rows("find_time", name, timings, "find", scale)
    peer = found["transformer_lens"]
    peer.more = {"prompts": len(prompts), "cells": len(jobs.cells_of(model)), "work": results["find"].attrs["work"]}
    return peer


@torch.no_grad()
def split_map(model: HookedLVLM, prompts: Sequence[Encoded], wide: HookedLVLM) -> np.ndarray:
    """Deflections of every cell of `wide = split_heads(model, …)`, `[prompt, projection, layer, head]`, degrees.

    The parts of a head attend alike, so that a part's mask writes what the head's would, times the part's share of it:
    the narrow model goes on from there, where attention is a fraction as wide.
    """
    job, into = Job(jobs.PROJECTIONS, Mask(), None, False), wide.n_heads // model.n_heads
    found = np.full((len(prompts), len(jobs.PROJECTIONS), model.n_layers, wide.n_heads), np.nan)
    most = plan(model, max(e.n_tokens for e in prompts)).rows
    for batch in batches(prompts, max(1, most // wide.n_heads)):
        base = base_pass(model, [prompts[i] for i in batch])
        for layer in model.masked_layers:
            start = base.n_pos - 1 if layer == max(model.masked_layers) else 0
            writes, _ = mask_writes(model, base, layer, job, job.cells_of(model, layer), start)
            parts, whole = (of.attentions[layer].o_proj.weight.view(-1, of.n_heads, of.d_head) for of in (wide, model))
            # Of a head's weights, the same share everywhere.
            share = parts.unflatten(1, (-1, into)).norm(dim=(0, -1)) / whole.norm(dim=(0, -1))[:, None]
            spread = writes.unflatten(1, (len(jobs.PROJECTIONS), -1))[:, :, :, None] * share[:, :, None, None]
            for number, some in enumerate(spread.flatten(2, 3).unbind(1)):
                states = read_out(model, base, layer, wide.n_heads, writes=some, start=start)[model.n_layers - 1]
                still = base.state[:, None].double().expand(*states.shape)
                found[batch, number, layer] = angle_degrees(still, states.double()).numpy()
    return found
