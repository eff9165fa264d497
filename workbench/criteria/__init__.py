"""Criteria and rules: what a head is worth, from one stored run and without the model.

`score` fills a table with every head under every criterion, `top_heads` picks from it by a rule. A new criterion is one
call of `register_criterion` (an example is in `workbench.criteria.registry`).
"""

from workbench.criteria import attention, deflection, direction, divergence, probes, subspace
from workbench.criteria.registry import Criterion, criteria_table, get_criterion, list_criteria, register_criterion
from workbench.criteria.rules import RULES, pairs_table, top_heads
from workbench.criteria.score import SCORE_COLUMNS, score
from workbench.criteria.stored_run import prompt_values

for _file in (deflection, divergence, subspace, probes, direction, attention):
    for _criterion in _file.CRITERIA:
        register_criterion(_criterion)

__all__ = [
    "RULES",
    "SCORE_COLUMNS",
    "Criterion",
    "criteria_table",
    "get_criterion",
    "list_criteria",
    "pairs_table",
    "prompt_values",
    "register_criterion",
    "score",
    "top_heads",
]
