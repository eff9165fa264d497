"""Rules: from a table of scores to the heads that are worth a look.

| rule | the value that ranks, largest first | source |
|---|---|---|
| `sensitivity` | unsafe; for a probe its held-out accuracy | Ships, SAHs |
| `selectivity` | unsafe − safe, among heads whose safe value is under the 80th percentile of all heads | Oh Defense, Eq. 6 and released code |
| `auroc` | chance that an unsafe prompt is the stronger one | this project |
| `effect_size` | Cohen's d | this project |
| `ratio` | unsafe / safe | this project |
| `random` | heads drawn at random | control |
| `layer_matched`, `magnitude_matched` | heads drawn to resemble those that selectivity picks | controls, see `controls` |

All read strengths: where a criterion says that smaller, or further from 1, is the stronger (see its `direction`), its values
are turned first, and so is the `value` that `top_heads` returns.
"""  # noqa: E501

from collections.abc import Callable

import numpy as np
import pandas as pd

from workbench.criteria.controls import CONTROLS, control_heads
from workbench.criteria.registry import RULES_OF_KIND, TRAINED, Criterion, get_criterion, list_criteria
from workbench.criteria.score import SCORE_COLUMNS
from workbench.criteria.values import percentile_ranks
from workbench.errors import CriterionError

SAFE_PERCENTILE = 80.0
TOP_COLUMNS = ("criterion", "rule", "projection", "layer", "head", "value")
RULES = tuple(dict.fromkeys(rule for rules in RULES_OF_KIND.values() for rule in rules))


def top_heads(
    scores: pd.DataFrame,
    *,
    criterion: str,
    rule: str,
    projection: str | None = None,
    k: int = 5,
    seed: int = 0,
    percentile: float = SAFE_PERCENTILE,
) -> pd.DataFrame:
    """The k heads that a rule puts first under a criterion.

    Args:
        scores: From `wb.score`.
        criterion: A criterion that is in the table.
        rule: One of those in the module's table; which have a meaning depends on the criterion's kind.
        projection: `"query"`, `"value"`, or `"none"` for criteria without masks. Default: the criterion's only one, or
            else query, as in the papers.
        k: How many heads.
        seed: Of the controls.
        percentile: Of safe values, the bound of `selectivity` (and so of the controls matched to it).

    Returns:
        `k` rows, best first: criterion, rule, projection, layer, head, value. A control's `value` is what selectivity
        would rank it by (accuracy, for a probe). Ties go to the lower layer, then the lower head.

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
    record = get_criterion(criterion)
    _check_pair(record, rule)
    if not isinstance(k, int | np.integer) or k < 1:
        raise CriterionError(f"k is the number of heads to pick, 1 or more; got {k!r}.")
    rows, projection = scored_rows(scores, record, projection)
    if rule in CONTROLS:
        picked = control_heads(
            rows, record, rule, k=k, seed=seed, pick=lambda n: _pick_anchors(rows, record, n, percentile)
        )
    else:
        picked = ranked(rows, record, rule, percentile=percentile)
        if len(picked) < k:
            raise CriterionError(
                f"{rule} over {criterion} ({projection}) keeps {len(picked)} of {len(rows)} heads, and {k} were "
                f"asked for. {_why_so_few(rows, record, rule, percentile)}"
            )
        picked = picked.head(k)
    return picked.assign(criterion=criterion, rule=rule, projection=projection)[list(TOP_COLUMNS)].reset_index(
        drop=True
    )


def scored_rows(scores: pd.DataFrame, criterion: Criterion, projection: str | None) -> tuple[pd.DataFrame, str]:
    """The computed heads of one criterion and projection, and the projection.

    `unsafe` and `safe` are strengths, and `safe_rank` is the percentile at which `safe` lies among all heads.
    """
    if missing := [name for name in SCORE_COLUMNS if name not in scores.columns]:
        raise CriterionError(f"A table of scores comes from wb.score; this one has no column {', '.join(missing)}.")
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
            f"Criterion {criterion.name!r} has no projection {projection!r} in this table; it has "
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
    kept = _RULES[rule](rows, percentile)
    kept = kept[kept["value"].notna()]
    return kept.sort_values(["value", "layer", "head"], ascending=[False, True, True], kind="stable")


def anchor_rule(criterion: Criterion) -> str:
    """The rule whose picks the controls imitate: selectivity, or sensitivity for probes, which have no safe value."""
    return "sensitivity" if criterion.kind == TRAINED else "selectivity"


def pairs_table() -> pd.DataFrame:
    """One row a criterion, one column a rule: true where the pair has a meaning."""
    rows = {c.name: {rule: rule in c.rules for rule in RULES} for c in list_criteria()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("criterion")


def _sensitivity(rows: pd.DataFrame, percentile: float) -> pd.DataFrame:
    return rows.assign(value=rows["unsafe"])


def _selectivity(rows: pd.DataFrame, percentile: float) -> pd.DataFrame:
    return rows.assign(value=rows["unsafe"] - rows["safe"])[rows["safe_rank"] < percentile]


def _auroc(rows: pd.DataFrame, percentile: float) -> pd.DataFrame:
    return rows.assign(value=rows["auroc"])


def _effect_size(rows: pd.DataFrame, percentile: float) -> pd.DataFrame:
    return rows.assign(value=rows["effect_size"])


def _ratio(rows: pd.DataFrame, percentile: float) -> pd.DataFrame:
    """Infinite for heads that do nothing on safe prompts; a head that does next to nothing on either may rank high."""
    rows = rows[(rows["unsafe"] > 0) & (rows["safe"] >= 0)]
    with np.errstate(divide="ignore"):
        return rows.assign(value=rows["unsafe"].to_numpy() / rows["safe"].to_numpy())


_RULES: dict[str, Callable[[pd.DataFrame, float], pd.DataFrame]] = {
    "sensitivity": _sensitivity,
    "selectivity": _selectivity,
    "auroc": _auroc,
    "effect_size": _effect_size,
    "ratio": _ratio,
}


def _pick_anchors(rows: pd.DataFrame, criterion: Criterion, k: int, percentile: float) -> pd.DataFrame:
    return ranked(rows, criterion, anchor_rule(criterion), percentile=percentile).head(k)


def _check_pair(criterion: Criterion, rule: str) -> None:
    if rule not in RULES:
        raise CriterionError(f"There is no rule {rule!r}. Those that exist: {', '.join(RULES)}.")
    if rule not in criterion.rules:
        others = ", ".join(c.name for c in list_criteria() if rule in c.rules)
        raise CriterionError(
            f"Rule {rule!r} has no meaning for criterion {criterion.name!r}, which is {criterion.kind}. "
            f"Rules for {criterion.name}: {', '.join(criterion.rules)}. Criteria with {rule}: {others}."
        )


def _why_so_few(rows: pd.DataFrame, criterion: Criterion, rule: str, percentile: float) -> str:
    if rule == "selectivity":
        bound = float(np.percentile(rows["safe"], percentile))
        lowest = int((rows["safe"] <= rows["safe"].min()).sum())
        if bound <= rows["safe"].min():
            return (
                f"The rule keeps heads whose safe value is strictly under its {percentile:g}th percentile, which is "
                f"{bound:.4g} {criterion.unit} here, the smallest value there is: {lowest} of {len(rows)} heads "
                f"share it{' (they do nothing on safe prompts)' if bound == 0 else ''}. Use auroc, effect_size or "
                "sensitivity, or a higher percentile."
            )
        under = f"{bound:.4g} {criterion.unit}"
        if not np.array_equal(percentile_ranks(rows["safe"].to_numpy()), rows["safe_rank"]):
            under = f"the {percentile:g}th percentile of all heads, most of which this run did not score exactly"
        return f"It keeps those with a safe value under {under}. Ask for fewer, or raise percentile."
    if rule == "ratio":
        return "It needs heads that act on unsafe prompts (a value above 0) and are not negative on safe ones."
    return "The others have no value (NaN): both classes are constant, or the head was not swept. Ask for fewer."
