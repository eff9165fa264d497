"""What the engines that choose heads while they run have in common: their options, and the heads a screen lets in."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from workbench.checking import Mark, OneOf, Whole, check_each
from workbench.criteria.ranking import best_cells, rule_values

Cell = tuple[int, int, int]  # indices of projection, layer and head
RULES = ("selectivity", "sensitivity")  # differences of means, for which the race has intervals
ESTIMATED = ("deflection", "kl")
# Who is under the bound is itself an estimate while heads are screened, so the screen's bound is a little wider.
SCREEN_PERCENTILE = 84.0
MOST = 10**6  # heads, or backward passes, that an option may ask for


def check_options(options: Mapping[str, Any], least: Mapping[str, int]) -> None:
    """A WorkbenchError for a rule or an estimate that has no meaning, or a count under its least value."""
    marks: dict[str, Mark] = {"rule": OneOf(RULES), "by": OneOf(ESTIMATED)}
    check_each(options, marks | {name: Whole(lowest, MOST) for name, lowest in least.items()})


def screened(estimate: np.ndarray, unsafe: np.ndarray, rule: str, k: int) -> set[Cell]:
    """The k best heads of each projection by estimates `[prompt, projection, layer, head]`."""
    return best_of_each(rule_values(estimate, unsafe, rule, percentile=SCREEN_PERCENTILE), k)


def best_of_each(values: Iterable[np.ndarray], k: int) -> set[Cell]:
    """The k best heads of each projection, from values `[projection, layer, head]`."""
    return {(index, *head) for index, of_one in enumerate(values) for head in best_cells(of_one, k)}
