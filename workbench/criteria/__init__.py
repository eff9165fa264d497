"""Criteria and rules: what a head is worth, from one stored run and without the model.

`score` fills a table with every head under every criterion, `top_heads` picks from it by a rule, `detection_table`
tests what the picked heads detect on prompts they have not seen. `rank_agreement` and `head_stability` ask how far to
trust a ranking. A new criterion is one call of `register_criterion` (an example is in `workbench.criteria.registry`).
"""

from workbench.criteria import deflection, divergence, image_attention, probes, refusal_write, subspace
from workbench.criteria.agreement import head_stability, rank_agreement, rank_biased_overlap
from workbench.criteria.detection import DETECTION_COLUMNS, detection_table, leave_one_family_out
from workbench.criteria.logistic import fit_logistic
from workbench.criteria.rates import measures_on
from workbench.criteria.registry import Criterion, criteria_table, get_criterion, list_criteria, register_criterion
from workbench.criteria.rules import RULES, pairs_table, top_heads
from workbench.criteria.score import SCORE_COLUMNS, score
from workbench.criteria.thresholds import Threshold, fpr_threshold, kde_threshold, tpr_at_fpr
from workbench.criteria.values import prompt_values
from workbench.runs.splits import in_split, with_splits

for _file in (deflection, divergence, subspace, probes, refusal_write, image_attention):
    for _criterion in _file.CRITERIA:
        register_criterion(_criterion)

__all__ = [
    "DETECTION_COLUMNS",
    "RULES",
    "SCORE_COLUMNS",
    "Criterion",
    "Threshold",
    "criteria_table",
    "detection_table",
    "fit_logistic",
    "fpr_threshold",
    "get_criterion",
    "head_stability",
    "in_split",
    "kde_threshold",
    "leave_one_family_out",
    "list_criteria",
    "measures_on",
    "pairs_table",
    "prompt_values",
    "rank_agreement",
    "rank_biased_overlap",
    "register_criterion",
    "score",
    "top_heads",
    "tpr_at_fpr",
    "with_splits",
]
