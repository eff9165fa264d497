"""Criteria and rules: what a head is worth, from one stored run and without the model.

`score` fills a table with every head under every criterion, `top_heads` picks from it by a rule, `detection_table`
tests what the picked heads detect on prompts they have not seen. `rank_agreement` and `head_stability` ask how far to
trust a ranking. A new criterion is one call of `register_criterion` (an example is in `workbench.criteria.registry`),
a new rule one of `register_rule` (`workbench.criteria.rules`).
"""

from workbench.criteria import deflection, divergence, pairs, probes, subspace, unmasked
from workbench.criteria.agreement import head_stability, rank_agreement
from workbench.criteria.detection import detection_table, leave_one_family_out
from workbench.criteria.ranking import pairs_table, top_heads
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
from workbench.criteria.values import prompt_values

for _criteria in (deflection, divergence, subspace, probes, unmasked, pairs):
    for _criterion in _criteria.CRITERIA:
        register_criterion(_criterion)

__all__ = [
    "SCORE_COLUMNS",
    "Criterion",
    "Rule",
    "criteria_table",
    "detection_table",
    "get_criterion",
    "get_rule",
    "head_stability",
    "leave_one_family_out",
    "list_criteria",
    "list_rules",
    "pairs_table",
    "prompt_values",
    "rank_agreement",
    "register_criterion",
    "register_rule",
    "rules_table",
    "score",
    "top_heads",
]
