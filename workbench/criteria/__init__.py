"""Criteria and rules: what a head is worth, from one stored run and without the model.

`score` fills a table with every head under every criterion, `top_heads` picks from it by a rule, `detection_table`
tests what the picked heads detect on prompts they have not seen. `rank_agreement` and `head_stability` ask how far to
trust a ranking. A new criterion is one call of `register_criterion` (an example is in `workbench.criteria.registry`),
a new rule one of `register_rule` (`workbench.criteria.rules`).
"""

from workbench.criteria import deflection, divergence, probes, subspace, unmasked
from workbench.criteria.agreement import head_stability, rank_agreement, rank_biased_overlap
from workbench.criteria.detection import DETECTION_COLUMNS, detection_table, leave_one_family_out
from workbench.criteria.logistic import fit_logistic
from workbench.criteria.ranking import pairs_table, top_heads
from workbench.criteria.rates import measures_on
from workbench.criteria.registry import (
    Criterion,
    Rule,
    criteria_table,
    get_criterion,
    get_rule,
    list_criteria,
    list_rules,
    register_criterion,
    register_rule,
    rules_table,
)
from workbench.criteria.score import SCORE_COLUMNS, score
from workbench.criteria.thresholds import Threshold, fpr_threshold, kde_threshold, tpr_at_fpr
from workbench.criteria.values import prompt_values
from workbench.runs.splits import in_split, with_splits

for _file in (deflection, divergence, subspace, probes, unmasked):
    for _criterion in _file.CRITERIA:
        register_criterion(_criterion)

RULES = tuple(rule.name for rule in list_rules())

__all__ = [
    "DETECTION_COLUMNS",
    "RULES",
    "SCORE_COLUMNS",
    "Criterion",
    "Rule",
    "Threshold",
    "criteria_table",
    "detection_table",
    "fit_logistic",
    "fpr_threshold",
    "get_criterion",
    "get_rule",
    "head_stability",
    "in_split",
    "kde_threshold",
    "leave_one_family_out",
    "list_criteria",
    "list_rules",
    "measures_on",
    "pairs_table",
    "prompt_values",
    "rank_agreement",
    "rank_biased_overlap",
    "register_criterion",
    "register_rule",
    "rules_table",
    "score",
    "top_heads",
    "tpr_at_fpr",
    "with_splits",
]
