"""From statistics of heads to the heads that are worth a look: the rules, applied to score tables and to arrays."""

from typing import Annotated

import numpy as np
import pandas as pd

from workbench.checking import Finite, Seed, checked, plainly
from workbench.criteria.arguments import HowMany
from workbench.criteria.controls import control_heads
from workbench.criteria.redraws import stability
from workbench.criteria.registry import TRAINED, Criterion, get_criterion, get_rule, list_criteria, list_rules
from workbench.criteria.rules import SAFE_PERCENTILE, percentile_ranks
from workbench.criteria.score import SCORE_COLUMNS
from workbench.criteria.values import safe_levels
from workbench.errors import CriterionError

TOP_COLUMNS = ("criterion", "rule", "projection", "layer", "head", "value", "stability")


@checked
def top_heads(
    scores: pd.DataFrame,
    *,
    criterion: str,
    rule: str,
    projection: str | None = None,
    k: HowMany = 5,
    seed: Seed = 0,
    percentile: Annotated[float, Finite(0, 100)] = SAFE_PERCENTILE,
) -> pd.DataFrame:
    """The k heads that a rule puts first under a criterion.

    Args:
        scores: From `wb.score`.
        criterion: A criterion that is in the table.
        rule: A rule (see `rules_table`); which have a meaning depends on the criterion's kind (see `pairs_table`).
        projection: `"query"`, `"value"`, or `"none"` for criteria without masks. Default: the criterion's only one, or
            else query, as in the papers.
        k: How many heads.
        seed: Of the controls.
        percentile: Of safe values, the bound of `selectivity` (and so of the controls matched to it).

    Returns:
        `k` rows, best first: criterion, rule, projection, layer, head, value, stability. A control's `value` is what
        selectivity would rank it by (accuracy, for a probe). Ties go to the lower layer, then the lower head.
        `stability` is the share of redraws of the prompts, 0-1, in which the head is among the first k: up to 200
        (see `bootstrap` of `wb.score`), with replacement within each class, pairs and repeated content kept together,
        the bound on safe values drawn again too. NaN where it cannot be said: for criteria that are no value a prompt
        (`head_stability` trains and computes those anew), for controls, without redraws, for runs of some heads only,
        and for a table that was read from a file or changed since it was scored.

    Raises:
        CriterionError: If the pair has no meaning, the table lacks the criterion or projection, or the rule keeps fewer
            than `k` heads (saying why).

    Examples:
        >>> import workbench as wb
        >>> prompts = wb.load_prompts("planted", n=24)
        >>> run = wb.sweep(wb.load_model("planted"), prompts, progress=False)
        >>> best = wb.top_heads(wb.score(run), criterion="deflection", rule="selectivity", k=1)
        >>> best[["rule", "projection", "layer", "head"]]
                  rule projection  layer  head
        0  selectivity      query      3     1
    """
    record, how = get_criterion(criterion), get_rule(rule)
    if rule not in record.rules:
        others = ", ".join(c.name for c in list_criteria() if rule in c.rules)
        raise CriterionError(
            f"Rule {rule!r} has no meaning for criterion {criterion!r}, which is {record.kind}. "
            f"Rules for {criterion}: {', '.join(record.rules)}. Criteria with {rule}: {others}."
        )
    rows, projection = scored_rows(scores, record, projection)
    rows["stability"] = stability(scores, rows, how, k=k, percentile=percentile)
    if how.is_control:
        anchors = ranked(rows, record, anchor_rule(record), percentile=percentile)
        picked = control_heads(rows, record, rule, k=k, seed=seed, pick=anchors.head)
    else:
        picked = ranked(rows, record, rule, percentile=percentile).head(k)
        if len(picked) < k:
            raise CriterionError(
                f"{rule} over {criterion} ({projection}) keeps {len(picked)} of {len(rows)} heads, and {k} were "
                f"asked for. {how.why_few(rows, record.unit, percentile)}"
            )
    picked = picked.assign(criterion=criterion, rule=rule, projection=projection)
    return picked[list(TOP_COLUMNS)].reset_index(drop=True)


def check_scores(scores: pd.DataFrame) -> None:
    """Refuse a table that `score` did not make."""
    if missing := [name for name in SCORE_COLUMNS if name not in scores.columns]:
        raise CriterionError(f"A table of scores comes from wb.score; this one has no column {', '.join(missing)}.")


def scored_rows(scores: pd.DataFrame, criterion: Criterion, projection: str | None) -> tuple[pd.DataFrame, str]:
    """The computed heads of one criterion and projection, and the projection.

    `unsafe` and `safe` are strengths, and `safe_rank` is the percentile at which `safe` lies among all heads.
    """
    check_scores(scores)
    rows = scores[scores["criterion"] == criterion.name]
    if rows.empty:
        there = ", ".join(dict.fromkeys(scores["criterion"].astype(str))) or "nothing"
        raise CriterionError(
            f"This table of scores does not hold criterion {criterion.name!r}; it holds {there}. "
            f"Score it first: wb.score(run, criteria=[{criterion.name!r}])."
        )
    projections = tuple(dict.fromkeys(rows["projection"].astype(str)))
    if projection is None:
        projection = "query" if "query" in projections else projections[0]
    if projection not in projections:
        raise CriterionError(
            f"Criterion {criterion.name!r} has no projection {plainly(projection)} in this table; it has "
            f"{', '.join(projections)}."
        )
    rows = rows[(rows["projection"] == projection) & rows["unsafe"].notna()]
    if rows.empty:
        raise CriterionError(
            f"No head of criterion {criterion.name!r} ({projection}) was computed: every value is NaN."
        )
    unsafe, safe = (criterion.strength(rows[name].to_numpy(float)) for name in ("unsafe", "safe"))
    ranks = percentile_ranks(safe)
    if "safe_rank" in rows:  # a run of some heads only, which knows the ranks among all
        ranks = np.where(rows["safe_rank"].isna(), ranks, rows["safe_rank"])
    return rows.assign(unsafe=unsafe, safe=safe, safe_rank=ranks), projection


def ranked(rows: pd.DataFrame, criterion: Criterion, rule: str, *, percentile: float = SAFE_PERCENTILE) -> pd.DataFrame:
    """Every head that the rule keeps, best first: `rows` (see `scored_rows`) with a column `value`."""
    how = get_rule(rule)
    rows = rows.assign(value=how.value(rows))[how.keeps(rows, percentile)]
    rows = rows[rows["value"].notna()]
    return rows.sort_values(["value", "layer", "head"], ascending=[False, True, True], kind="stable")


def anchor_rule(criterion: Criterion) -> str:
    """The rule whose picks the controls imitate: selectivity, or sensitivity for probes, which have no safe value."""
    return "sensitivity" if criterion.kind == TRAINED else "selectivity"


def pairs_table() -> pd.DataFrame:
    """One row a criterion, one column a rule: true where the pair has a meaning."""
    rows = {c.name: {rule.name: rule.name in c.rules for rule in list_rules()} for c in list_criteria()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("criterion")


def rule_values(
    cells: np.ndarray,
    unsafe: np.ndarray,
    rule: str,
    *,
    percentile: float = SAFE_PERCENTILE,
    estimate: np.ndarray | None = None,
) -> np.ndarray:
    """Value of a rule that reads means only, `[projection, layer, head]`, for engines that choose while they run.

    Minus infinity for heads that the rule leaves out, NaN for heads that were not computed on every prompt. Without
    prompts of both classes every rule is the mean over all.

    Args:
        cells: `[prompt, projection, layer, head]`.
        unsafe: `[prompt]`.
        rule: Its name.
        percentile: Of the bound on safe values; over 100 leaves none out.
        estimate: As `cells`; the bound is then that of all heads, by estimates where nothing else is known.
    """
    if unsafe.all() or not unsafe.any():
        return cells.mean(0, dtype=np.float64)
    how = get_rule(rule)
    levels = safe_levels(cells, unsafe, estimate)
    of = {
        "unsafe": cells[unsafe].mean(0, dtype=np.float64),
        "safe": cells[~unsafe].mean(0, dtype=np.float64),
        "safe_rank": np.stack([percentile_ranks(of_one) for of_one in levels]),
    }
    return np.where(how.keeps(of, percentile) | np.isnan(of["safe"]), how.value(of), -np.inf)


def best_cells(values: np.ndarray, k: int) -> list[tuple[int, int]]:
    """The k (layer, head) with the largest values, best first; ties go to the lower layer, then the lower head."""
    flat = np.where(np.isfinite(values), values, -np.inf).ravel()
    order = np.argsort(-flat, kind="stable")[:k]
    return [(int(i) // values.shape[1], int(i) % values.shape[1]) for i in order if np.isfinite(flat[i])]
