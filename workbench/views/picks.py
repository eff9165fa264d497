"""What the two published rules choose from a score table, with the bound that the selectivity rule draws."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from workbench.criteria import get_criterion
from workbench.criteria.ranking import ranked, scored_rows
from workbench.criteria.rules import SAFE_PERCENTILE
from workbench.views import theme

Head = tuple[int, int]


@dataclass(frozen=True)
class Picks:
    """What two rules choose for one criterion and projection.

    Attributes:
        selective: Heads kept by the published selectivity rule, best first.
        sensitive: The head that moves most on unsafe prompts: the decoy, where it is not selective as well.
        bound: 80th percentile over heads of the mean on safe prompts, in the criterion's unit; the rule keeps heads
            below it. NaN where the rule keeps none, or the bound is no single value of that unit.
        refused: Why the selectivity rule keeps no head; empty where it keeps one.
    """

    selective: tuple[Head, ...]
    sensitive: Head | None
    bound: float
    refused: str = ""


def picks(scores: pd.DataFrame, *, criterion: str, projection: str, k: int = 5) -> Picks:
    """The selectivity rule's best `k` heads or fewer, the sensitivity rule's best one, and the bound."""
    sensitive, _ = rule_heads(scores, criterion=criterion, projection=projection, rule="sensitivity", k=1)
    selective, refused = rule_heads(scores, criterion=criterion, projection=projection, rule="selectivity", k=k)
    safe = theme.grid(scores, criterion=criterion, projection=projection, column="safe")
    bound = float("nan")
    # A criterion that ranks by another strength than its value (a change that is more negative) has no such line; nor
    # has a run of some heads only, whose bound is that of all heads and leans on estimates.
    if (
        selective
        and "safe_rank" not in scores
        and np.array_equal(get_criterion(criterion).strength(safe), safe, equal_nan=True)
    ):
        bound = float(np.nanpercentile(safe, SAFE_PERCENTILE))
    return Picks(selective, sensitive[0] if sensitive else None, bound, refused)


def rule_heads(
    scores: pd.DataFrame, *, criterion: str, projection: str, rule: str, k: int
) -> tuple[tuple[Head, ...], str]:
    """The rule's best `k` heads, best first (fewer, if it keeps fewer), and why there is none where there is none."""
    record = theme.record(criterion)
    if record is None or rule not in record.rules:
        return (), f"{rule} has no meaning for {theme.title(criterion)}"
    rows, _ = scored_rows(scores, record, projection)
    kept = ranked(rows, record, rule).head(k)
    if kept.empty:
        return (), f"no head passes {rule} under {theme.title(criterion)}"
    return tuple((int(layer), int(head)) for layer, head in zip(kept["layer"], kept["head"], strict=True)), ""
