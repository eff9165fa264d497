"""`score`: every head under every criterion, as one tidy table."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr

from workbench.criteria import statistics
from workbench.criteria.registry import PER_DATA_SET, PER_PROMPT, Criterion, get_criterion, list_criteria
from workbench.criteria.values import prompt_values, prompts_of, safe_ranks
from workbench.errors import CriterionError
from workbench.runs.reading import (
    RunLike,
    as_run,
    check_run,
    one_readout,
    prompt_coord,
    selection_part,
    unsafe_mask,
)

SCORE_COLUMNS = (
    "criterion",
    "projection",
    "layer",
    "head",
    "unsafe",
    "safe",
    "difference",
    "auroc",
    "effect_size",
    "ci_low",
    "ci_high",
    "p_value",
    "q_value",
)
STATISTICS = SCORE_COLUMNS[4:]


def score(
    run: RunLike,
    criteria: Sequence[str] | str = ("deflection", "ships", "probe"),
    *,
    bootstrap: int = 1000,
    permutations: int | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Score every head of a run under each criterion.

    Heads are scored on the prompts of the split `selection`; on all of them where the prompts declare no split or all the
    same one. `.attrs` of the table says which, and how many.

    Args:
        run: As `wb.sweep` returns it, or the path of a stored one.
        criteria: Names (see `criteria_table`), one name, or `"all"` for every criterion whose variables the run holds.
        bootstrap: Resamples behind `ci_low` and `ci_high`; 0 leaves them NaN.
        permutations: Shuffles behind `p_value`; 0 leaves it NaN. Default: 20 a head, at least 2000, which is
            what lets a single head pass a false-discovery rate of 5 %.
        seed: Of the resamples, the shuffles and the folds of probes.

    Returns:
        One row a (criterion, projection, layer, head). What a criterion does not have, and a head that was not swept,
        is NaN.

        | column | per prompt | per data set | per head, trained |
        |---|---|---|---|
        | `unsafe`, `safe` | mean over the prompts of the class, in the criterion's unit and sign | its value on the class | `unsafe`: held-out accuracy over both classes; `safe`: NaN |
        | `difference` | unsafe − safe | unsafe − safe | NaN |
        | `auroc` | chance that an unsafe prompt is the stronger one | NaN | of the held-out decision values |
        | `effect_size` | Cohen's d of the strengths | NaN | NaN |
        | `ci_low`, `ci_high` | 95 % bootstrap interval of the difference, pairs kept together | NaN | exact 95 % interval of the accuracy (NaN for few-shot, whose draws overlap) |
        | `p_value` | one-sided permutation test, unsafe stronger than safe | NaN | NaN: shuffling after training is not valid |
        | `q_value` | Benjamini-Hochberg over the heads of the criterion and projection | NaN | NaN |

        Where an engine scored some heads only (sketch, race), a column `safe_rank` is added: the percentile, 0-100, at
        which the head's safe value lies among those of all heads, as far as they are known (by estimates, or on fewer
        prompts). It is what the bound of the rule selectivity goes by.

        Stronger means larger, or what the criterion's `direction` says (a refusal change that is more negative).

    Raises:
        CriterionError: For an unknown name or a value that is missing for some prompts.
        RunError: For a run that cannot be read, or has fewer than three prompts of a class.

    Examples:
        >>> import workbench as wb
        >>> prompts = wb.load_prompts("planted", n=24)
        >>> run = wb.sweep(wb.load_model("planted"), prompts, progress=False)
        >>> scores = wb.score(run, criteria=("deflection", "ships"))
        >>> len(scores)  # criteria x projections x layers x heads
        64
        >>> best = scores.sort_values("difference").iloc[-1]
        >>> best["layer"].item(), best["head"].item()
        (3, 1)
    """  # noqa: E501
    run = as_run(run)
    chosen = _chosen(run, criteria)
    run = one_readout(run)
    part, split = selection_part(run)
    unsafe = unsafe_mask(part)
    tables = []
    for criterion in chosen:
        if criterion.kind == PER_PROMPT:
            tables.append(_score_prompts(part, criterion, bootstrap, permutations, seed))
        elif criterion.kind == PER_DATA_SET:
            tables.append(_score_sets(part, criterion, unsafe))
        else:
            tables.append(_score_trained(part, criterion, unsafe, seed))
    scores = pd.concat(tables, ignore_index=True)
    scores = scores[[*SCORE_COLUMNS, *(name for name in ("safe_rank",) if name in scores)]]
    scores.attrs = {
        "split": split,
        "n_unsafe": int(unsafe.sum()),
        "n_safe": int((~unsafe).sum()),
        "seed": seed,
        "bootstrap": bootstrap,
        "model": str(run.attrs.get("model", "")),
    }
    return scores


def _chosen(run: xr.Dataset, criteria: Sequence[str] | str) -> list[Criterion]:
    check_run(run)
    if isinstance(criteria, str) and criteria == "all":
        return [c for c in list_criteria() if all(name in run.data_vars for name in c.needs)]
    names = [criteria] if isinstance(criteria, str) else list(dict.fromkeys(criteria))
    if not names:
        raise CriterionError(f"No criterion was named. Those that exist: {', '.join(c.name for c in list_criteria())}.")
    chosen = [get_criterion(name) for name in names]
    for criterion in chosen:
        check_run(run, criterion.needs, wanted_by=f"Criterion {criterion.name!r}")
    return chosen


def _score_prompts(
    run: xr.Dataset, criterion: Criterion, bootstrap: int, permutations: int | None, seed: int
) -> pd.DataFrame:
    values = prompt_values(run, criterion)
    prompts = prompts_of(run, values)
    unsafe, pairs = unsafe_mask(prompts), prompt_coord(prompts, "pair_id")
    flat = values.values.reshape(len(unsafe), -1)
    computed = ~np.isnan(flat[0])
    raw = flat[:, computed]
    strength = criterion.strength(raw)
    columns = {name: np.full(flat.shape[1], np.nan) for name in STATISTICS}
    columns["unsafe"][computed] = raw[unsafe].mean(0)
    columns["safe"][computed] = raw[~unsafe].mean(0)
    columns["difference"] = columns["unsafe"] - columns["safe"]
    columns["auroc"][computed] = statistics.auroc(strength, unsafe)
    columns["effect_size"][computed] = statistics.effect_size(strength, unsafe)
    if bootstrap:
        low, high = statistics.bootstrap_difference(raw, unsafe, pairs, resamples=bootstrap, seed=seed)
        columns["ci_low"][computed], columns["ci_high"][computed] = low, high
    heads = values.sizes["layer"] * values.sizes["head"]
    shuffles = max(2000, 20 * heads) if permutations is None else permutations
    if shuffles:
        columns["p_value"][computed] = statistics.permutation_p(
            strength, unsafe, pairs, permutations=shuffles, seed=seed
        )
        by_projection = columns["p_value"].reshape(values.sizes["projection"], heads)
        columns["q_value"] = np.concatenate([statistics.false_discovery(p) for p in by_projection])
    ranks = safe_ranks(run, criterion)
    if ranks is not None:
        columns["safe_rank"] = np.where(computed, ranks.ravel(), np.nan)
    return _table(criterion, values.isel(prompt=0), columns)


def _score_sets(run: xr.Dataset, criterion: Criterion, unsafe: np.ndarray) -> pd.DataFrame:
    on_unsafe = criterion.values(run.isel(prompt=np.flatnonzero(unsafe))).transpose("projection", "layer", "head")
    on_safe = criterion.values(run.isel(prompt=np.flatnonzero(~unsafe))).transpose("projection", "layer", "head")
    columns = {name: np.full(on_safe.size, np.nan) for name in STATISTICS}
    columns["unsafe"], columns["safe"] = on_unsafe.values.ravel(), on_safe.values.ravel()
    columns["difference"] = columns["unsafe"] - columns["safe"]
    if np.isnan(columns["unsafe"]).all():
        raise CriterionError(
            f"Criterion {criterion.name!r} has no value for any head: were the masked states ever computed?"
        )
    return _table(criterion, on_unsafe, columns)


def _score_trained(run: xr.Dataset, criterion: Criterion, unsafe: np.ndarray, seed: int) -> pd.DataFrame:
    decisions = criterion.values(run, seed=seed).transpose("repeat", "prompt", "layer", "head")
    repeats, _, layers, heads = decisions.shape
    flat = decisions.values.reshape(repeats, len(unsafe), layers * heads)
    computed = ~np.isnan(flat).all((0, 1))
    columns = {name: np.full(layers * heads, np.nan) for name in STATISTICS}
    accuracy, area = [], []
    for repeat in flat[:, :, computed]:
        held_out = ~np.isnan(repeat[:, 0])
        accuracy.append(((repeat[held_out] > 0) == unsafe[held_out, None]).mean(0))
        area.append(statistics.auroc(repeat[held_out], unsafe[held_out]))
    columns["unsafe"][computed] = np.mean(accuracy, 0)
    columns["auroc"][computed] = np.mean(area, 0)
    if repeats == 1:
        hits = np.rint(columns["unsafe"][computed] * len(unsafe))
        columns["ci_low"][computed], columns["ci_high"][computed] = statistics.rate_interval(hits, len(unsafe))
    return _table(criterion, decisions.isel(repeat=0, prompt=0).expand_dims(projection=["none"]), columns)


def _table(criterion: Criterion, cells: xr.DataArray, columns: dict[str, np.ndarray]) -> pd.DataFrame:
    """Rows in the order projection, layer, head."""
    index = pd.MultiIndex.from_product(
        [
            cells["projection"].values.astype(object).astype(str),
            cells["layer"].values.astype(int),
            cells["head"].values.astype(int),
        ],
        names=["projection", "layer", "head"],
    )
    table = pd.DataFrame(columns, index=index).reset_index()
    table.insert(0, "criterion", criterion.name)
    return table
