"""Comparison: every detector and guard on the same prompts, and what masking the heads of each does to behaviour."""

from workbench.comparison.arena import arena
from workbench.comparison.breakdown import compare
from workbench.comparison.entrants import grid
from workbench.comparison.faithfulness import faithfulness, rankings
from workbench.comparison.masked_behaviour import attack_success
from workbench.comparison.suppression import suppress, suppress_and_reselect
from workbench.comparison.transplant import transplant, transplanted

__all__ = [
    "arena",
    "attack_success",
    "compare",
    "faithfulness",
    "grid",
    "rankings",
    "suppress",
    "suppress_and_reselect",
    "transplant",
    "transplanted",
]
