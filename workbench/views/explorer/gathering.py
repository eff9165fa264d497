"""From what a caller gives to what is shown: runs with labels, score tables and prompts, and the page's record."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from workbench.criteria import score
from workbench.criteria.agreement import rankings_of, spearman_of
from workbench.criteria.registry import get_criterion, list_rules
from workbench.errors import ArgumentError, PromptError
from workbench.plain import plain
from workbench.prompts.prompt import Prompt, as_prompts
from workbench.runs.origin import prompts_of
from workbench.views import charts, theme
from workbench.views.explorer.packing import Packed, colours
from workbench.views.explorer.stored import Stored

DEFAULT = ("deflection", "ships", "probe")  # as `score` has it
FIRST_RULE = "selectivity"


def as_prompt_source(value: Any) -> Any:
    return value if isinstance(value, str | Path) else as_prompts(value)


def gathered(
    runs: Sequence[xr.Dataset],
    *,
    prompts: Sequence[Prompt] | str | Path | None,
    scores: pd.DataFrame | Sequence[pd.DataFrame] | None,
) -> list[Stored]:
    """Every run with what is shown of it; a run that was read at several layers is one for each of them.

    Raises:
        ArgumentError: For score tables that are not one a run.
        PromptError: For prompts that are those of none of the runs.
    """
    parts = [part for run in runs for part in _readouts(run)]
    tables: list[Any] = [scores] if isinstance(scores, pd.DataFrame) else list(scores or [None] * len(parts))
    if len(tables) != len(parts):
        raise ArgumentError(
            f"scores holds {len(tables)} tables for {len(parts)} runs (each layer that a run was read at counts as "
            "one). Give one table a run, in their order, or leave scores out."
        )
    known: list[Mapping[str, Prompt]] = []
    refused: list[PromptError] = []
    for run, _ in parts:
        try:
            known.append({prompt.id: prompt for prompt in prompts_of(run, prompts)})
        except PromptError as error:  # what is stored can be explored without them
            known.append({})
            refused.append(error)
        except ImportError:  # a viewer has not what draws the prompts of an embedded world again
            known.append({})
    if prompts is not None and len(refused) == len(parts):
        raise refused[0]
    labels = _labels(parts)
    return [
        Stored(run, _scored(run) if table is None else table, label, of_run)
        for (run, _), table, label, of_run in zip(parts, tables, labels, known, strict=True)
    ]


def _scored(run: xr.Dataset) -> pd.DataFrame:
    """The criteria scored by default, as far as the run has what they need (groups of heads have no probes)."""
    there = [name for name in DEFAULT if set(get_criterion(name).needs) <= set(run.data_vars)]
    return score(run, there or DEFAULT)


def _readouts(run: xr.Dataset) -> list[tuple[xr.Dataset, str]]:
    if "readout" not in run.dims:
        return [(run, "")]
    return [(run.sel(readout=label, drop=True), str(label)) for label in run["readout"].values]


def _labels(parts: Sequence[tuple[xr.Dataset, str]]) -> list[str]:
    """By the model and the layer that was read; numbered where that does not tell runs apart."""
    words = []
    for run, readout in parts:
        name = str(run.attrs.get("model") or "an unnamed model")
        name = name.rstrip("/").rsplit("/", 1)[-1]
        words.append(f"{name}, read at {readout}" if readout and readout != "final" else name)
    return [word if words.count(word) == 1 else f"{word} ({number})" for number, word in enumerate(words, 1)]


def manifest_of(runs: Sequence[Stored], packed: Packed, *, texts: int) -> dict[str, Any]:
    """Everything the browser is told beside the arrays."""
    there = [run.about(texts=texts) for run in runs]
    scored = set().union(*(run.scores.columns for run in runs))
    names = " and ".join(plain(run.label) for run in runs)
    return {
        "title": f"Attention heads of {names}",
        "runs": there,
        "rules": [{"name": rule.name, "says": rule.says} for rule in _rules()],
        "columns": [[column, word] for column, word in theme.COLUMN_WORDS.items() if column in scored],
        "colours": colours(),
        "diverging": theme.DIVERGING,
        "agreement": agreement(runs),
        "packed": packed.record,
        "first": first_choice(runs),
        "asks": False,
    }


def _rules() -> list[Any]:
    return sorted((rule for rule in list_rules() if not rule.is_control), key=lambda rule: rule.name != FIRST_RULE)


def first_choice(runs: Sequence[Stored]) -> dict[str, Any]:
    """What is chosen when the explorer opens: the first head by the first rule, and an unsafe prompt."""
    run = runs[0].run
    criterion = str(runs[0].scores["criterion"].iloc[0])
    projection = str(run["projection"].values[0])
    shown = charts.projection_of(runs[0].scores, criterion, projection, strict=False)
    best, _ = charts.rule_heads(runs[0].scores, criterion=criterion, projection=shown, rule=FIRST_RULE, k=1)
    unsafe = run["prompt"].values[run["label"].values == "unsafe"]
    prompt = unsafe[0] if len(unsafe) else run["prompt"].values[0]
    return {
        "head": list(best[0]) if best else [int(run["layer"][0]), int(run["head"][0])],
        "locked": None,
        "heads": [],
        "prompt": str(prompt),
        "criterion": criterion,
        "rule": FIRST_RULE,
        "projection": projection,
        "column": "unsafe",
        "run": 0,
    }


def agreement(runs: Sequence[Stored]) -> list[dict[str, Any]]:
    """Spearman's rank correlation between every two rankings by the mean on unsafe prompts, over the heads both have.

    Returns:
        One record a pair: `a`, `b` (in words), `heads`, `spearman` (−1 to 1; None without spread), and the ends of its
        95 % interval, `low` and `high`, from redraws of the prompts (None where nothing was drawn again).
    """
    rankings = {}
    for run in runs:
        for (criterion, projection), ranking in rankings_of(run.scores, "sensitivity").items():
            words = theme.short_title(criterion) + (f", {projection}" if projection != "none" else "")
            rankings[plain(f"{run.label}: {words}" if len(runs) > 1 else words)] = run, ranking
    found = []
    for (a, (left, one)), (b, (right, other)) in combinations(rankings.items(), 2):
        if left.shape == right.shape:
            said = {name: value if np.isfinite(value) else None for name, value in spearman_of(one, other).items()}
            numbers = dict(zip(("spearman", "low", "high"), said.values(), strict=True))
            found.append({"a": a, "b": b, "heads": len(one.values.index.intersection(other.values.index)), **numbers})
    return found
