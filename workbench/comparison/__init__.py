"""Comparison: every way to choose heads, on the same prompts, with what masking them does to behaviour."""

from workbench.comparison.breakdown import Breakdown, compare
from workbench.comparison.masked_behaviour import attack_success
from workbench.comparison.suppression import suppress, suppress_and_reselect

__all__ = ["Breakdown", "attack_success", "compare", "suppress", "suppress_and_reselect"]
