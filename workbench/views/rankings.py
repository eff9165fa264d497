"""What pictures of rankings draw, in numbers: how alike they are, their best heads, a list of heads with its doubts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from workbench.axes import Head, head_pairs
from workbench.criteria.agreement import rank_agreement
from workbench.criteria.statistics import percentile_interval
from workbench.errors import FigureError
from workbench.views import theme

FEW = 8  # rankings whose names and numbers find room in a column of print
# How sure it is that a head is among the first, and what that says.
STATUSES = {
    "certain": "certainly among the first",
    "possible": "possibly among the first",
    "excluded": "not among the first",
}


class Agreement(NamedTuple):
    """Spearman's correlation between every two rankings.

    Attributes:
        cells: [ranking, ranking], −1 to 1; NaN where a ranking is constant.
        names: (criterion, projection masked) of each ranking, in words.
        table: From `rank_agreement`.
    """

    cells: np.ndarray
    names: list[tuple[str, str]]
    table: pd.DataFrame

    @property
    def few(self) -> bool:
        """Whether every cell has room for its number."""
        return len(self.names) <= FEW


def agreement(scores: pd.DataFrame) -> Agreement:
    """How alike every two rankings by the unsafe value are.

    Raises:
        CriterionError: For a table of fewer than two rankings.
    """
    table = rank_agreement(scores, rule="sensitivity")
    sides = [zip(table[f"criterion_{side}"], table[f"projection_{side}"], strict=True) for side in "ab"]
    pairs = list(dict.fromkeys(pair for side in sides for pair in side))
    place = {pair: i for i, pair in enumerate(pairs)}
    cells = np.eye(len(pairs))
    for row in table.itertuples():
        i, j = place[row.criterion_a, row.projection_a], place[row.criterion_b, row.projection_b]
        cells[i, j] = cells[j, i] = row.spearman
    return Agreement(cells, [(theme.short_title(c), p if p != "none" else "") for c, p in pairs], table)


class Strip(NamedTuple):
    """How well heads tell unsafe prompts from safe ones under one ranking.

    Attributes:
        words: The ranking.
        auroc: Of each head, 0–1.
        heads: In the same order.
        named: Places of the heads that are named.
        intervals: (low, high) of each named one's AUROC, over redraws of the prompts; NaN where they were not redrawn.
    """

    words: str
    auroc: np.ndarray
    heads: list[Head]
    named: list[int]
    intervals: list[tuple[float, float]]


def strips(scores: pd.DataFrame, heads: Sequence[Head] | None = None) -> list[Strip]:
    """One strip a ranking that has an AUROC, naming `heads`, or its best."""
    found = []
    for (criterion, projection), part in scores[scores["auroc"].notna()].groupby(
        ["criterion", "projection"], sort=False
    ):
        at = head_pairs(part)
        auroc = part["auroc"].to_numpy(float)
        named = [int(np.argmax(auroc))] if heads is None else [i for i, head in enumerate(at) if head in set(heads)]
        intervals = [_interval(scores, criterion, projection, at[i], auroc[i]) for i in named]
        found.append(Strip(theme.heading(criterion, projection), auroc, at, named, intervals))
    return found


def _interval(scores: pd.DataFrame, criterion: str, projection: str, head: Head, auroc: float) -> tuple[float, float]:
    """Of one head's AUROC, 95 %; NaN without redraws, or where the table was changed since it was scored."""
    drawn = getattr(scores.attrs.get("redraws"), "drawn", {}).get((criterion, projection))
    if drawn is None or drawn.areas is None or head not in drawn.heads:
        return float("nan"), float("nan")
    low, high = percentile_interval(drawn.areas(np.array([drawn.heads.get_loc(head)]))[:, 0])
    return (float(low), float(high)) if low - 1e-9 <= auroc <= high + 1e-9 else (float("nan"), float("nan"))


@dataclass(frozen=True, repr=False)
class HeadList:
    """Heads of one ranking, best first.

    Attributes:
        table: One row a head: layer, head, value, ci_low, ci_high, status, stability (NaN and "" where not known).
        title: The ranking.
        axis: What the value is, with its unit.
        left_out: How many more heads the ranking has.
    """

    table: pd.DataFrame
    title: str
    axis: str
    left_out: int

    @property
    def names(self) -> list[str]:
        """`L3H6 · in 93 % of redraws`, of each head."""
        said = [f" · first in {100 * s:.0f} %" if np.isfinite(s) else "" for s in self.table["stability"]]
        return [name + words for name, words in zip(theme.names(self.table), said, strict=True)]


def head_list(table: pd.DataFrame, k: int = 20) -> HeadList:
    """The first `k` heads of a table of `wb.top_heads` or `wb.find_heads`.

    Raises:
        FigureError: For a table of anything else, of several rankings, or of none.
    """
    if absent := [c for c in ("criterion", "rule", "projection", "layer", "head", "value") if c not in table]:
        raise FigureError(
            f"Heads are drawn from a table of wb.top_heads or wb.find_heads; this one has no {', '.join(absent)}."
        )
    rankings = table[["criterion", "rule", "projection"]].drop_duplicates()
    if len(rankings) != 1:
        raise FigureError(f"Heads of one ranking are drawn together; this table has {len(rankings)}. Choose one.")
    criterion, rule, projection = rankings.iloc[0]
    shown = table.head(k).reindex(columns=["layer", "head", "value", "ci_low", "ci_high", "status", "stability"])
    shown = shown.assign(status=shown["status"].astype(object).fillna("").astype(str)).reset_index(drop=True)
    if unknown := set(shown["status"]) - {"", *STATUSES}:
        raise FigureError(f"A head is {', '.join(STATUSES)}; got {', '.join(sorted(map(repr, unknown)))}.")
    unit = theme.unit(criterion, rule) if rule != "ratio" else "no unit"
    axis = f"{rule.replace('_', ' ')} ({unit})"
    return HeadList(shown, theme.heading(criterion, projection), axis, len(table) - len(shown))
