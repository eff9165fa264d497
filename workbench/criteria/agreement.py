"""Do criteria agree on heads, and does a head keep its rank when the prompts are drawn again?"""

from itertools import combinations
from typing import Annotated, NamedTuple

import numpy as np
import pandas as pd

from workbench.checking import Seed, Whole, checked
from workbench.criteria.arguments import HowMany
from workbench.criteria.ranking import anchor_rule, check_scores, ranked, scored_rows
from workbench.criteria.redraws import redrawn_of, values_under
from workbench.criteria.registry import Rule, get_criterion, get_rule, list_criteria
from workbench.criteria.rules import SAFE_PERCENTILE
from workbench.criteria.score import has_any, in_order, score
from workbench.criteria.statistics import bootstrap_counts, percentile_interval
from workbench.criteria.values import pieces_of
from workbench.errors import CriterionError
from workbench.runs.pairs import unit_names
from workbench.runs.reading import SomeRun, as_run, check_run, selection_part, unsafe_mask

CLOSEST = 1 - 1e-12  # a correlation that Fisher's scale still has room for
PERSISTENCE = 0.9  # of rank-biased overlap: the first ten ranks carry 86 % of the weight


@checked
def rank_agreement(scores: pd.DataFrame, *, rule: str | None = None, k: HowMany = 5) -> pd.DataFrame:
    """How alike the heads are that different criteria, and masks of different projections, put first.

    Args:
        scores: From `wb.score`, with at least two rankings (criterion × projection).
        rule: Ranks the heads. Default: selectivity, and sensitivity for criteria that have no safe value. Criteria for
            which the rule has no meaning, or keeps no head, are left out, and so are those that are not registered:
            nothing says which of their values are the stronger.
        k: Depth of the overlap.

    Returns:
        One row a pair of rankings: criterion_a, projection_a, criterion_b, projection_b; `heads`, how many both rank;
        `spearman` and `kendall` over those, −1 to 1; `spearman_low` and `spearman_high`, its 95 % interval by the
        spread under redraws of the prompts, units such as pairs together and the same for both rankings (NaN where
        nothing was drawn again: probes, criteria of a data set, a table from a file); `overlap`, the share of the first
        k that they have in common, and `jaccard`, common over all of either's first k, 0-1; `rbo`, rank-biased overlap
        (extrapolated, p = 0.9), 0-1.
        Where a rule keeps fewer than k heads, its list is that short.

    Raises:
        CriterionError: If fewer than two rankings are left.
    """
    from scipy.stats import kendalltau

    if rule is not None:
        get_rule(rule)
    check_scores(scores)
    rankings = rankings_of(scores, rule)
    if len(rankings) < 2:
        raise CriterionError(
            f"Agreement takes at least two rankings; rule {rule or 'selectivity'} gives {len(rankings)} from this "
            "table. Score more criteria, or choose a rule that has a meaning for them."
        )
    rows = []
    for (a, one), (b, other) in combinations(rankings.items(), 2):
        first, second = one.values, other.values
        common = first.index.intersection(second.index)
        top_a, top_b = set(first.index[:k]), set(second.index[:k])
        x, y = first[common].to_numpy(), second[common].to_numpy()
        varied = len(common) > 1 and np.ptp(x) > 0 and np.ptp(y) > 0
        rows.append(
            {
                "criterion_a": a[0],
                "projection_a": a[1],
                "criterion_b": b[0],
                "projection_b": b[1],
                "heads": len(common),
                **spearman_of(one, other),
                "kendall": float(kendalltau(x, y).statistic) if varied else np.nan,
                "overlap": len(top_a & top_b) / k,
                "jaccard": len(top_a & top_b) / len(top_a | top_b),
                "rbo": rank_biased_overlap(list(first.index), list(second.index)),
            }
        )
    return pd.DataFrame(rows)


class Ranking(NamedTuple):
    """The heads in the order of one criterion, projection and rule.

    Attributes:
        values: What the rule ranks by, best first, indexed by (layer, head).
        drawn: The same, a column a head: in the first row on the prompts as they are, in each further row on a redraw
            of them. NaN where the rule leaves a head out.
    """

    values: pd.Series
    drawn: pd.DataFrame


def spearman_of(one: Ranking, other: Ranking) -> dict[str, float]:
    """Spearman's correlation of two rankings over the heads that both keep, with its interval under redraws.

    The interval is the middle 95 % of the redraws' values, each as far from the value here as it lies from their median
    on Fisher's scale (the inverse hyperbolic tangent).

    Returns:
        `spearman`, `spearman_low`, `spearman_high`, −1 to 1; NaN without spread, and the ends where a ranking was not
        drawn again.
    """
    heads = one.drawn.columns.intersection(other.drawn.columns)
    together = min(len(one.drawn), len(other.drawn))
    x, y = (ranking.drawn[heads].to_numpy()[:together] for ranking in (one, other))
    both = ~np.isnan(x) & ~np.isnan(y)
    x, y = (pd.DataFrame(np.where(both, values, np.nan)).rank(axis=1).to_numpy() for values in (x, y))
    with np.errstate(invalid="ignore", divide="ignore"):
        n = both.sum(1, keepdims=True)
        x, y = (np.where(both, ranks - np.nansum(ranks, 1, keepdims=True) / n, 0) for ranks in (x, y))
        found = (x * y).sum(1) / np.sqrt((x**2).sum(1) * (y**2).sum(1))
    # A redraw adds noise of its own, which lowers the correlation of noisy ranks: what the redraws tell is the spread.
    fisher = np.arctanh(found.clip(-CLOSEST, CLOSEST))
    redrawn = fisher[1:][np.isfinite(fisher[1:])]
    spread = percentile_interval(redrawn - np.median(redrawn)) if len(redrawn) else (np.nan, np.nan)
    low, high = np.tanh(fisher[0] + np.array(spread))
    return dict(zip(("spearman", "spearman_low", "spearman_high"), map(float, (found[0], low, high)), strict=True))


def rank_biased_overlap(first: list, second: list, *, p: float = PERSISTENCE) -> float:
    """Rank-biased overlap of two rankings, extrapolated from their common depth, 0-1; 1 for equal lists.

    Source:
        Webber, Moffat and Zobel, "A similarity measure for indefinite rankings" (2010), equation 30.
    """
    depth = min(len(first), len(second))
    if depth == 0:
        return float("nan")
    seen_a: set = set()
    seen_b: set = set()
    total, agreement, common = 0.0, 0.0, 0
    for rank, (a, b) in enumerate(zip(first[:depth], second[:depth], strict=True), 1):
        common += 1 if a == b else (a in seen_b) + (b in seen_a)
        seen_a.add(a)
        seen_b.add(b)
        agreement = common / rank
        total += agreement * p**rank
    return agreement * p**depth + (1 - p) / p * total


@checked
def head_stability(
    run: SomeRun,
    *,
    criterion: str,
    rule: str,
    projection: str | None = None,
    k: HowMany = 5,
    resamples: Annotated[int, Whole(1)] = 200,
    seed: Seed = 0,
) -> pd.DataFrame:
    """How often each head is among the first k when the selection prompts are drawn again.

    Prompts are drawn with replacement within each class, pairs together, and everything is computed anew: probes are
    trained again, with all copies of a prompt in one fold.

    Returns:
        One row a head, best first by its rank on the prompts as they are: layer, head, `rank` (1 = best; NaN where the
        rule does not keep it), `top_k` (share of resamples in which it is among the first k, 0-1), `rank_low` and
        `rank_high` (the middle 95 % of its ranks where the rule kept it), `kept` (share of resamples in which it did).
    """
    run, record = as_run(run), get_criterion(criterion)
    if get_rule(rule).is_control or rule not in record.rules:
        raise CriterionError(
            f"Rule {rule!r} does not rank the heads of {criterion!r}; its rules are {', '.join(record.rules)}."
        )
    check_run(run, record.needs, wanted_by=f"Criterion {criterion!r}")
    part, _ = selection_part(run)
    part = part[list(record.needs)]
    unsafe, pairs = unsafe_mask(part), unit_names(part)
    unit = np.where(pairs == "", np.array([f"alone {i}" for i in range(len(pairs))], dtype=object), pairs)
    counts = bootstrap_counts(unsafe, pairs, resamples=resamples, seed=seed)
    scored: list[list[pd.DataFrame]] = [[] for _ in range(1 + resamples)]  # on the prompts as they are, then drawn
    for some in pieces_of(part, record):
        if not has_any(some, record) and has_any(part, record):
            continue  # layers whose heads are not to be masked
        some = some.load()
        for number, tables in enumerate(scored):
            these = some
            if number:
                drawn = np.repeat(np.arange(len(unsafe)), counts[number - 1])
                these = some.isel(prompt=drawn).assign_coords(
                    prompt=[str(i) for i in range(len(drawn))],
                    pair_id=("prompt", unit[drawn].astype(str)),
                    split=("prompt", np.full(len(drawn), "")),
                )
            tables.append(score(these, criterion, bootstrap=0, permutations=0, seed=seed))
    (heads, baseline), *drawn_again = (_ranks(in_order(t), criterion, rule, projection) for t in scored)
    ranks = np.array([found for _, found in drawn_again])
    kept = ~np.isnan(ranks)
    low, high = np.full(len(baseline), np.nan), np.full(len(baseline), np.nan)
    for cell in np.flatnonzero(kept.any(0)):
        low[cell], high[cell] = percentile_interval(ranks[kept[:, cell], cell])
    table = heads.assign(rank=baseline, top_k=(ranks <= k).mean(0), rank_low=low, rank_high=high, kept=kept.mean(0))
    return table.sort_values(["rank", "layer", "head"], kind="stable").reset_index(drop=True)


def rankings_of(scores: pd.DataFrame, rule: str | None) -> dict[tuple[str, str], Ranking]:
    """Per (criterion, projection): the ranking by a rule, or by each criterion's own; those without a head left out."""
    out = {}
    registered = {criterion.name: criterion for criterion in list_criteria()}
    for (name, projection), _ in scores.groupby(["criterion", "projection"], sort=False):
        if (criterion := registered.get(str(name))) is None:
            continue
        used = rule or anchor_rule(criterion)
        if used in criterion.rules:
            rows, _ = scored_rows(scores, criterion, str(projection))
            best_first = ranked(rows, criterion, used)
            if len(best_first):
                out[(str(name), str(projection))] = _ranking(scores, rows, best_first, get_rule(used))
    return out


def _ranking(scores: pd.DataFrame, rows: pd.DataFrame, best_first: pd.DataFrame, rule: Rule) -> Ranking:
    values = best_first.set_index(["layer", "head"])["value"]
    statistics, index = redrawn_of(scores, rows)
    redrawn = None if statistics is None or rule.is_control else values_under(statistics, rule, SAFE_PERCENTILE)
    if redrawn is None:
        return Ranking(values, values.to_frame().T)
    heads = pd.MultiIndex.from_frame(rows.loc[index, ["layer", "head"]])
    whole = np.concatenate([values.reindex(heads).to_numpy()[None], redrawn])
    return Ranking(values, pd.DataFrame(whole, columns=heads))


def _ranks(scores: pd.DataFrame, criterion: str, rule: str, projection: str | None) -> tuple[pd.DataFrame, np.ndarray]:
    """The heads in table order, and the rank of each; NaN where the rule does not keep it."""
    record = get_criterion(criterion)
    rows, _ = scored_rows(scores, record, projection)
    order = ranked(rows, record, rule).index
    ranks = pd.Series(np.arange(1.0, len(order) + 1), index=order).reindex(rows.index)
    return rows[["layer", "head"]].reset_index(drop=True), ranks.to_numpy()
