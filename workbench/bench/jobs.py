"""The benchmark's jobs: each returns a row an engine, side by side on the same model and prompts."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr

from workbench.axes import LABELS
from workbench.bench import peers
from workbench.bench.rates import matmul_rate
from workbench.bench.synthetic import Shape, build, questions
from workbench.bench.timing import Row, in_turn, rows
from workbench.criteria.ranking import best_cells, rule_values
from workbench.criteria.rules import SAFE_PERCENTILE
from workbench.finding.find import find_heads
from workbench.models.encode import Encoded
from workbench.models.hooked import HookedLVLM
from workbench.models.masks import Mask
from workbench.prompts.prompt import PromptSet
from workbench.runs.effects import angle_degrees
from workbench.runs.job import Job
from workbench.runs.memory import BASE
from workbench.sweeps.engines.first_order import first_order_step
from workbench.sweeps.operations import Counts
from workbench.sweeps.plan import plan
from workbench.sweeps.sweep import sweep

PROJECTIONS = ("query", "value")


def cells_of(model: HookedLVLM) -> list[peers.Cell]:
    """Every (projection, layer, head), in the order of a run's axes."""
    return [(p, layer, head) for p in PROJECTIONS for layer in model.masked_layers for head in range(model.n_heads)]


def deflections(states: torch.Tensor) -> np.ndarray:
    """Degrees, `[prompt, cell]`, from final states `[prompt, 1 + cell, d_model]`."""
    wide = states.to(torch.float64)
    return angle_degrees(wide[:, :1].expand_as(wide[:, 1:]), wide[:, 1:]).cpu().numpy()


def alike(model: HookedLVLM, prompts: PromptSet, n: int) -> PromptSet:
    """`n` prompts, half of each label, of the commonest lengths: few that still fill a batch without padding."""
    lengths = [model.encode(prompt).n_tokens for prompt in prompts]
    often = Counter(lengths)
    by_length = sorted(range(len(prompts)), key=lambda i: (-often[lengths[i]], i))
    chosen = [i for label in LABELS for i in [j for j in by_length if prompts[j].label == label][: n // 2]]
    return PromptSet((prompts[i] for i in sorted(chosen)), name=prompts.name)


def swept(model: HookedLVLM, prompts: PromptSet, engine: str, **options: Any) -> xr.Dataset:
    """A sweep without a progress bar and without kept states."""
    return sweep(model, prompts, engine=engine, keep_states=False, progress=False, **options)


def a_part(cells: Sequence[Any], n: int, seed: int = 0) -> list[int]:
    """Indices of `n` cells drawn at random, where all of them would take too long."""
    draws = np.random.default_rng(seed)
    return sorted(draws.permutation(len(cells))[:n].tolist())


def peer_calls(
    model: HookedLVLM, encoded: Sequence[Encoded], cells: Sequence[peers.Cell], names: Sequence[str]
) -> dict[str, Callable[[], np.ndarray]]:
    """Each peer's loop over some cells; set up beforehand, so that only the loop is timed."""
    twin = peers.plain_twin(model)
    loops: dict[str, Any] = {
        "transformer_lens": peers.transformer_lens,
        "nnsight": partial(peers.nnsight, twin=twin),
        "hooks": partial(peers.hooks, twin=twin),
    }
    if "transformer_lens" in names:
        _ = model.bridge

    def call(name: str) -> np.ndarray:
        return deflections(loops[name](model, encoded, cells))

    return {name: partial(call, name) for name in names}


def peers_on_a_part(
    model: HookedLVLM, prompts: PromptSet, names: Sequence[str], part: int | None
) -> tuple[list[Encoded], list[int], dict[str, Any], dict[str, float]]:
    """Encoded prompts, the cells drawn (all without `part`), a call for each peer, and what scales its time to all."""
    encoded, cells = [model.encode(p) for p in prompts], cells_of(model)
    chosen = list(range(len(cells))) if part is None else a_part(cells, part)
    calls: dict[str, Any] = peer_calls(model, encoded, [cells[i] for i in chosen], names)
    return encoded, chosen, calls, dict.fromkeys(names, (len(cells) + 1) / (len(chosen) + 1))


def exact_map(
    model: HookedLVLM, prompts: PromptSet, *, repeats: int, peer_names: Sequence[str], part: int | None, naive: int
) -> list[Row]:
    """All heads, query and value, on every prompt.

    Args:
        part: How many cells the peers run, their time being scaled to all; None runs all of them.
        naive: How many prompts the reference engine runs, one forward a head and prompt; 0 leaves it out.
    """
    encoded, chosen, calls, scale = peers_on_a_part(model, prompts, peer_names, part)
    calls["exact"] = partial(swept, model, prompts, "exact")
    if naive:
        calls["naive"] = partial(swept, model, prompts[:naive], "naive")
    swept(model, prompts[:2], "exact")  # warm
    timings, results = in_turn(calls, repeats, model.device)
    found = rows("exact_map", model.name, timings, "exact", scale | {"naive": len(prompts) / max(1, naive)})
    exact = results["exact"].deflection.values.reshape(len(prompts), -1)
    for name, row in found.items():
        if name == "naive":
            row.agreement = float(np.abs(results[name].deflection.values.reshape(naive, -1) - exact[:naive]).max())
        elif name != "exact":
            row.agreement = float(np.abs(results[name] - exact[:, chosen]).max())
    counts, attrs = Counts(model), results["exact"].attrs
    naive_count, exact_count = counts.naive_map(encoded), counts.exact_map(encoded)
    rate = matmul_rate(model.device, model.dtype)
    share = attrs["layer_tokens"] / attrs["naive_layer_tokens"]
    found["exact"].more = {
        "prompts": len(prompts),
        "cells": len(cells_of(model)),
        "operation_ratio": round(naive_count / exact_count, 3),
        "layer_token_share": round(share, 4),
        "layer_token_bound": round((model.n_layers + 1) / (2 * model.n_layers), 4),
        "matmul_share": round(exact_count / found["exact"].seconds / rate, 3),
        "matmul_rate": rate,
        "used_gib": round(attrs["used_bytes"] / 2**30, 2),
        "planned_gib": round(attrs["planned_bytes"] / 2**30, 2),
    }
    return list(found.values())


def shared_image(model: HookedLVLM, prompts: PromptSet, *, repeats: int) -> list[Row]:
    """Eight questions a picture, with and without shared beginnings."""
    calls = {name: partial(swept, model, prompts, name) for name in ("exact", "prefix")}
    timings, results = in_turn(calls, repeats, model.device)
    found = rows("shared_image", model.name, timings, "prefix")
    exact, shared = results["exact"], results["prefix"]
    found["prefix"].agreement = float(np.abs(exact.deflection - shared.deflection).max())
    encoded = model.encode(prompts[0])
    assert encoded.image_span is not None
    found["prefix"].more = {
        "shared_share": round(encoded.image_span[1] / encoded.n_tokens, 3),
        "kl_agreement": float(np.abs(exact.kl - shared.kl).max()),
        "layer_token_ratio": round(exact.attrs["layer_tokens"] / shared.attrs["layer_tokens"], 3),
        "image_passes": [exact.attrs["vision_passes"], shared.attrs["vision_passes"]],
    }
    return list(found.values())


def find_top5(
    model: HookedLVLM, prompts: PromptSet, *, repeats: int, peer_names: Sequence[str], part: int, k: int = 5
) -> list[Row]:
    """The five heads that selectivity puts first under deflection, for both projections.

    Peers run `part` cells; their time is scaled to all. The truth is the exact engine's, which the other job holds
    against them, on all prompts: so the search is told of no splits, of which it would keep to one.
    """
    prompts = prompts.with_split("")
    _, _, calls, scale = peers_on_a_part(model, prompts, peer_names, part)
    calls["find"] = partial(find_heads, model, prompts, k=k, projection=PROJECTIONS, progress=False)
    timings, results = in_turn(calls, repeats, model.device)
    once, exact = in_turn({"exact": partial(swept, model, prompts, "exact")}, 1, model.device)
    found = rows("find_top5", model.name, {"exact": once["exact"]} | timings, "find", scale)
    unsafe = np.array([p.label == "unsafe" for p in prompts])
    truth, table = exact["exact"].deflection.values, results["find"]
    same, tied, right = 0, 0, {}
    counts: dict[str, dict[str, int]] = {"certain": {}, "possible": {}}
    for number, name in enumerate(PROJECTIONS):
        best = best_cells(rule_values(truth, unsafe, "selectivity")[number], k)
        mine = table[table["projection"] == name]
        cells = [(int(layer), int(head)) for layer, head in mine[["layer", "head"]].values]
        picked, status = cells[:k], dict(zip(cells, mine["status"], strict=True))
        same += len(set(best) & set(picked))
        tied += len(set(picked) & (set(best) | tied_heads(truth[:, number], unsafe, best[-1])))
        certain = {cell for cell in cells if status[cell] == "certain"}
        right[name] = certain <= set(best) and all(status[cell] != "excluded" for cell in best)
        counts["certain"][name] = len(certain)
        counts["possible"][name] = int((mine["status"] == "possible").sum())
    found["find"].agreement, found["find"].agreement_unit = same / (2 * k), "share of the exact top 5"
    found["find"].more = {
        "same_or_tied": tied / (2 * k),
        "heads": model.n_layers * model.n_heads,
        "work": round(table.attrs["work"], 4),
        "right": right,
        **counts,
    }
    return list(found.values())


def estimated(model: HookedLVLM, prompts: PromptSet, directions: int, seed: int = 0) -> np.ndarray:
    """Estimates of the deflection of every cell, `[prompt, projection, layer, head]`, without a single exact one."""
    encoded = [model.encode(prompt) for prompt in prompts]
    job = Job(PROJECTIONS, Mask(), None, False, estimates=("deflection",), directions=directions, seed=seed)
    rows = plan(model, max(e.n_tokens for e in encoded)).rows
    return dict(first_order_step(model, encoded, job, rows, (BASE,)))[BASE]["deflection_estimate"]


def tied_heads(cells: np.ndarray, unsafe: np.ndarray, last: tuple[int, int], draws: int = 1000) -> set[tuple[int, int]]:
    """Heads that these prompts cannot tell from the `last` chosen one, from deflections `[prompt, layer, head]`.

    Their value is inside the 95 % bootstrap interval of its value, or above; and their safe mean is under the upper end
    of the bootstrap interval of the safe bound.
    """
    generator = np.random.default_rng(0)
    high, low = cells[unsafe].astype(float), cells[~unsafe].astype(float)
    values, bounds = [], []
    for _ in range(draws):
        again = (part[generator.integers(len(part), size=len(part))].mean(0) for part in (high, low))
        on_unsafe, on_safe = again
        values.append((on_unsafe - on_safe)[last])
        bounds.append(np.percentile(on_safe, SAFE_PERCENTILE))
    value, safe = high.mean(0) - low.mean(0), low.mean(0)
    tied = np.argwhere((value >= np.quantile(values, 0.025)) & (safe < np.quantile(bounds, 0.975)))
    return {(int(layer), int(head)) for layer, head in tied}


def probes(features: np.ndarray, unsafe: np.ndarray, *, repeats: int, part: int) -> list[Row]:
    """Cross-validated logistic probes on every head, 5 folds, against a scikit-learn loop over `part` of the heads.

    The loop runs to the same optimum (tol=1e-8), and with scikit-learn's default tolerance, which stops short of it.
    """
    from sklearn.linear_model import LogisticRegression

    from workbench.criteria.probes import cross_validated, fold_numbers

    fold = fold_numbers(unsafe, np.full(len(unsafe), "", dtype=object))
    chosen = np.random.default_rng(0).permutation(len(features))[:part]

    def loop(tolerance: float) -> np.ndarray:
        found = np.empty((len(chosen), len(unsafe)))
        for number, head in enumerate(chosen):
            for held_out in np.unique(fold):
                train, test = fold != held_out, fold == held_out
                probe = LogisticRegression(tol=tolerance, max_iter=10_000).fit(features[head][train], unsafe[train])
                found[number, test] = probe.decision_function(features[head][test])
        return found

    calls: dict[str, Callable[[], Any]] = {
        "scikit_learn": partial(loop, 1e-8),
        "scikit_learn, tol=1e-4": partial(loop, 1e-4),
        "batched": partial(cross_validated, features, unsafe, fold),
    }
    cross_validated(features[:2], unsafe, fold)  # warm
    timings, results = in_turn(calls, repeats, torch.device("cpu"))
    name = f"{len(features)} heads x {features.shape[2]}"
    loops = [engine for engine in calls if engine != "batched"]
    found = rows("probes", name, timings, "batched", dict.fromkeys(loops, len(features) / len(chosen)))
    for engine in loops:
        found[engine].agreement = float(np.abs(results["batched"][chosen] - results[engine]).max())
        found[engine].agreement_unit = "log-odds"
    return list(found.values())


def wide_features(n: int, heads: int = 128, width: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """Random features `[head, n, width]` as wide as a large model's heads, with classes that are partly apart."""
    draws, unsafe = np.random.default_rng(0), np.arange(n) % 2 == 0
    shift = draws.uniform(0, 0.3, (heads, 1, 1)) * draws.normal(size=(heads, 1, width))
    return 0.3 * draws.normal(size=(heads, n, width)) + unsafe[:, None] * shift, unsafe


def growth(*, repeats: int, prompts: int = 8) -> list[Row]:
    """How the cost of estimates and of an exact map grows with heads, layers, prompts and tokens, one at a time.

    The exact map's cost is proportional to the number of heads, so along that axis only the estimates are timed.
    """
    found = []
    base = Shape(layers=8, heads=8, d_model=256, d_mlp=512)
    for heads in (8, 32, 128):  # 64, 256 and 1,024 in all, at one width and depth
        found += _grown("heads", 8 * heads, Shape(8, heads, 1024, 2048), prompts, 8, repeats, exact=False)
    for layers in (4, 8, 16):
        found += _grown("layers", layers, Shape(layers, 8, 256, 512), prompts, 8, repeats)
    for n in (prompts // 2, prompts, 2 * prompts):
        found += _grown("prompts", n, base, n, 8, repeats)
    for words in (8, 48, 128):
        found += _grown("tokens", words, base, prompts, words, repeats)
    return found


def _grown(axis: str, size: int, shape: Shape, n: int, words: int, repeats: int, *, exact: bool = True) -> list[Row]:
    model = build(shape, name=f"{axis} {size}")
    prompts = questions(n, words=words, side=shape.side)
    calls: dict[str, Any] = {"estimates": partial(estimated, model, prompts, 4)}
    if exact:
        calls["exact"] = partial(swept, model, prompts, "exact")
    calls["estimates"]()  # warm
    timings, _ = in_turn(calls, repeats, model.device)
    made = rows("growth", model.name, timings, "estimates")
    for row in made.values():
        row.more = {"axis": axis, "size": model.encode(prompts[0]).n_tokens if axis == "tokens" else size}
    return list(made.values())
