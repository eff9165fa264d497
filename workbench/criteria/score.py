"""`score`: every head under every criterion, as one tidy table."""

import logging
from functools import partial

import numpy as np
import pandas as pd
import xarray as xr

from workbench.checking import Seed, checked
from workbench.criteria import statistics
from workbench.criteria.arguments import Names, Resamples
from workbench.criteria.redraws import MOST_SORTED, REDRAWS, Drawn, Redraws, joined, redrawn
from workbench.criteria.registry import PER_DATA_SET, PER_PROMPT, Criterion, get_criterion, list_criteria
from workbench.criteria.values import pieces_of, prompt_values, prompts_of, safe_ranks, value_pieces
from workbench.errors import CriterionError
from workbench.runs.pairs import told_repeats, unit_names
from workbench.runs.reading import (
    SomeRun,
    as_run,
    caveats_of,
    check_run,
    one_readout,
    prompt_coord,
    selection_part,
    unsafe_mask,
)

STATISTICS = ("unsafe", "safe", "difference", "auroc", "effect_size", "ci_low", "ci_high", "p_value", "q_value")
log = logging.getLogger(__name__)

SCORE_COLUMNS = ("criterion", "projection", "layer", "head", *STATISTICS)


@checked
def score(
    run: SomeRun,
    criteria: Names = ("deflection", "ships", "probe"),
    *,
    bootstrap: Resamples = 1000,
    permutations: Resamples | None = None,
    seed: Seed = 0,
) -> pd.DataFrame:
    """Score every head of a run under each criterion.

    Heads are scored on the prompts of the split `selection`; on all of them where the prompts declare no split or all the
    same one. `.attrs` of the table says which, and how many, and under `caveats` what was said of the set when it was
    swept: parts that share pictures or texts, a label with few different texts.

    Args:
        run: As `wb.sweep` returns it, or the path of a stored one.
        criteria: Names (see `criteria_table`), one name, or `"all"` for every criterion whose variables the run holds.
        bootstrap: Resamples behind `ci_low` and `ci_high`; 0 leaves them NaN. Also, up to 200, redraws of the prompts
            behind the `stability` of `top_heads` (they are kept in `.attrs["redraws"]`, in memory only).
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

        Where an engine scored some heads only (find), a column `safe_rank` is added: the percentile, 0-100, at
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
    chosen = _chosen(run, tuple(criteria))
    run = one_readout(run)
    part, split = selection_part(run)
    if repeated := told_repeats(part):
        log.info("%s.", repeated)
    unsafe = unsafe_mask(part)
    tables: list[pd.DataFrame] = []
    drawn: dict[tuple[str, str], Drawn] = {}
    chances = Chances(bootstrap, permutations, seed)
    for criterion in chosen:
        if criterion.kind == PER_PROMPT:
            tables.append(_score_prompts(part, criterion, chances, drawn))
        elif criterion.kind == PER_DATA_SET:
            tables.append(_score_sets(part, criterion, unsafe))
        else:
            tables.append(_score_trained(part, criterion, unsafe, seed))
    scores = pd.concat(tables, ignore_index=True)
    scores = scores.reindex(columns=[*SCORE_COLUMNS, *scores.columns.difference(SCORE_COLUMNS)])
    scores["difference"] = scores["unsafe"] - scores["safe"]
    by_ranking = scores.groupby(["criterion", "projection"], sort=False)["p_value"]
    scores["q_value"] = by_ranking.transform(lambda p: statistics.false_discovery(p.to_numpy()))
    scores.attrs = {
        "split": split,
        "n_unsafe": int(unsafe.sum()),
        "n_safe": int((~unsafe).sum()),
        "seed": seed,
        "bootstrap": bootstrap,
        "model": str(run.attrs.get("model", "")),
        "caveats": caveats_of(run),
    }
    if drawn:
        scores.attrs["redraws"] = Redraws.of(drawn, seed)
    return scores


def _chosen(run: xr.Dataset, names: tuple[str, ...]) -> list[Criterion]:
    check_run(run)
    if names == ("all",):
        return [c for c in list_criteria() if all(name in run.data_vars for name in c.needs)]
    if not names:
        raise CriterionError(f"No criterion was named. Those that exist: {', '.join(c.name for c in list_criteria())}.")
    chosen = [get_criterion(name) for name in names]
    for criterion in chosen:
        check_run(run, criterion.needs, wanted_by=f"Criterion {criterion.name!r}")
    return chosen


class Chances:
    """What is drawn once for all heads: how often each prompt is, also in the redraws, and shuffled labels.

    Args:
        bootstrap, permutations, seed: As in `score`.
    """

    def __init__(self, bootstrap: int, permutations: int | None, seed: int) -> None:
        self._asked = bootstrap, permutations, seed
        self._of: tuple[str, ...] | None = None

    def draw(self, prompts: xr.Dataset, n_heads: int) -> None:
        """Draw for these prompts, where those that were drawn for last are others."""
        (bootstrap, permutations, seed), names = self._asked, tuple(map(str, prompts["prompt"].values))
        if names == self._of:
            return
        self.unsafe, pairs, self._of = unsafe_mask(prompts), unit_names(prompts), names
        self.bootstrap = statistics.bootstrap_counts(self.unsafe, pairs, resamples=bootstrap, seed=seed)
        redraws = min(bootstrap, REDRAWS)
        self.redraws = statistics.bootstrap_counts(self.unsafe, pairs, resamples=redraws, seed=seed)
        self.shuffles = statistics.shuffled_labels(
            self.unsafe,
            pairs,
            contents=prompt_coord(prompts, "content"),
            permutations=max(2000, 20 * n_heads) if permutations is None else permutations,
            seed=seed,
        )


def _score_prompts(
    run: xr.Dataset, criterion: Criterion, chances: Chances, drawn: dict[tuple[str, str], Drawn]
) -> pd.DataFrame:
    """The criterion's rows; `drawn` gets what redraws of the prompts make of them, by (criterion, projection)."""
    tables: list[pd.DataFrame] = []
    found: list[dict[tuple[str, str], Drawn]] = []
    n_values = 0
    for values in value_pieces(run, criterion):
        if not tables:  # the same for all heads, as their prompts are
            chances.draw(prompts_of(run, values), run.sizes["layer"] * run.sizes["head"])
        flat = values.values.reshape(len(chances.unsafe), -1)
        computed = ~np.isnan(flat[0])
        raw = flat[:, computed]
        table = _table(criterion, values, computed, _columns(raw, criterion, chances) if raw.size else {})
        tables.append(table)
        if len(chances.redraws) and raw.size:
            n_values += raw.size
            again = partial(_again, run, criterion, values["layer"].values, values["head"].values, computed)
            few = again if n_values <= MOST_SORTED else None
            found.append(redrawn(table[computed], raw, chances.unsafe, chances.redraws, criterion, few))
    drawn |= joined(found)
    scores = in_order(tables)
    if (ranks := safe_ranks(run, criterion)) is not None:
        scores["safe_rank"] = np.where(scores["unsafe"].isna(), np.nan, ranks.ravel())
    return scores


def _again(
    run: xr.Dataset, criterion: Criterion, layers: np.ndarray, heads: np.ndarray, computed: np.ndarray
) -> np.ndarray:
    """The values of the computed cells of some layers and heads, read once more, [prompt, cell]."""
    values = prompt_values(run.sel(layer=layers, head=heads), criterion)
    return values.values.reshape(values.sizes["prompt"], -1)[:, computed]


def _columns(raw: np.ndarray, criterion: Criterion, chances: Chances) -> dict[str, np.ndarray]:
    """The statistics of some computed cells, `raw` [prompt, cell]."""
    strength, unsafe = criterion.strength(raw), chances.unsafe
    low, high = statistics.bootstrap_difference(raw, unsafe, chances.bootstrap)
    return {
        "unsafe": raw[unsafe].mean(0),
        "safe": raw[~unsafe].mean(0),
        "auroc": statistics.auroc(strength, unsafe),
        "effect_size": statistics.effect_size(strength, unsafe),
        "ci_low": low,
        "ci_high": high,
        "p_value": statistics.permutation_p(strength, unsafe, chances.shuffles),
    }


def has_any(run: xr.Dataset, criterion: Criterion) -> bool:
    """Whether the first variable that a criterion needs holds anything, seen from the first prompt."""
    return bool(run[criterion.needs[0]].isel(prompt=0).notnull().any())


def in_order(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """Tables of pieces of a run as one, in the order projection, layer, head."""
    if len(tables) == 1:
        return tables[0]
    whole = pd.concat(tables, ignore_index=True)
    places = {name: place for place, name in enumerate(dict.fromkeys(tables[0]["projection"]))}
    order = np.lexsort((whole["head"], whole["layer"], whole["projection"].map(places)))
    return whole.iloc[order].reset_index(drop=True)


def _score_sets(run: xr.Dataset, criterion: Criterion, unsafe: np.ndarray) -> pd.DataFrame:
    parts = [criterion.values(run.isel(prompt=np.flatnonzero(side))) for side in (unsafe, ~unsafe)]
    of_unsafe, of_safe = (part.transpose("projection", "layer", "head").values.ravel() for part in parts)
    if np.isnan(of_unsafe).all():
        raise CriterionError(
            f"Criterion {criterion.name!r} has no value for any head: were the masked states ever computed?"
        )
    return _table(criterion, parts[0], np.full(len(of_safe), True), {"unsafe": of_unsafe, "safe": of_safe})


def _score_trained(run: xr.Dataset, criterion: Criterion, unsafe: np.ndarray, seed: int) -> pd.DataFrame:
    tables: list[pd.DataFrame] = []
    nothing = np.array([], dtype=int)
    for part in pieces_of(run, criterion):
        if not has_any(part, criterion) and has_any(run, criterion):  # layers whose heads are not to be masked
            tables.append(_table(criterion, part[["layer", "head"]].assign_coords(projection=["none"]), nothing, {}))
            continue
        decisions = criterion.values(part, seed=seed).transpose("repeat", "prompt", "layer", "head")
        flat = decisions.values.reshape(*decisions.shape[:2], -1)
        computed = ~np.isnan(flat).all((0, 1))
        accuracy, area = [], []
        for repeat in flat[:, :, computed]:
            held_out = ~np.isnan(repeat[:, 0])
            accuracy.append(((repeat[held_out] > 0) == unsafe[held_out, None]).mean(0))
            area.append(statistics.auroc(repeat[held_out], unsafe[held_out]))
        columns = {"unsafe": np.mean(accuracy, 0), "auroc": np.mean(area, 0)}
        if len(flat) == 1:
            hits = np.rint(columns["unsafe"] * len(unsafe))
            columns["ci_low"], columns["ci_high"] = statistics.rate_interval(hits, len(unsafe))
        tables.append(_table(criterion, decisions.expand_dims(projection=["none"]), computed, columns))
    return in_order(tables)


def _table(
    criterion: Criterion, heads: xr.DataArray | xr.Dataset, computed: np.ndarray, columns: dict[str, np.ndarray]
) -> pd.DataFrame:
    """Rows in the order projection, layer, head; `columns` hold the computed ones, and the others are NaN."""
    types = {"projection": object, "layer": int, "head": int}
    index = pd.MultiIndex.from_product([heads[name].values.astype(kind) for name, kind in types.items()], names=types)
    table = pd.DataFrame(columns, index=index[computed], columns=list(columns) or ["unsafe", "safe"], dtype=float)
    table = table.reindex(index).reset_index()
    table.insert(0, "criterion", criterion.name)
    return table
