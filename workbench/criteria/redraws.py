"""How often a head is among the first k when the prompts are drawn again.

`score` computes, for per-prompt criteria, the statistics that rules read under 200 redraws of the prompts (with
replacement, within each class, units such as pairs kept whole), and `top_heads` counts with them. What this speaks of
is the choice of prompts; nothing is masked or trained again.
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from workbench.criteria.registry import Criterion, Rule
from workbench.criteria.rules import percentile_ranks
from workbench.criteria.statistics import weighted_sums
from workbench.errors import WorkbenchError

REDRAWS = 200
MOST_SORTED = 2**24  # values of prompts that AUROCs are computed of, when they are asked for: minutes beyond that


@dataclass(frozen=True)
class Drawn:
    """Statistics of the heads of one criterion and projection under each redraw.

    Attributes:
        heads: (layer, head) of each.
        seen: Their unsafe and safe values as strengths on the prompts as they are, [2, head]; a table that says
            otherwise was changed since.
        statistics: By the columns that rules read, [redraw, head].
        areas: From positions of heads to their AUROCs, [redraw, head], which take longer and are not kept: the run is
            read again. NaN where it holds other values by then, or cannot be read.
    """

    heads: pd.MultiIndex
    seen: np.ndarray
    statistics: Mapping[str, np.ndarray]
    areas: Callable[[np.ndarray], np.ndarray] | None


class OnDemand(dict[str, np.ndarray]):
    """Statistics by name, some of which are computed when a rule reads them: those in `ways`."""

    def __init__(self, known: Mapping[str, np.ndarray]) -> None:
        super().__init__(known)
        self.ways: dict[str, Callable[[], np.ndarray]] = {}

    def __missing__(self, name: str) -> np.ndarray:
        self[name] = found = self.ways[name]()
        if np.isnan(found).all():
            raise KeyError(name)
        return found


class Redraws(str):
    """What a table of scores keeps of redraws: a line that says what was drawn, with the statistics in memory.

    As a string it is compared, copied and written as the table's other attributes are; what is read back from a file
    has the line alone, and heads chosen from that have no stability.
    """

    drawn: Mapping[tuple[str, str], Drawn]

    @classmethod
    def of(cls, drawn: Mapping[tuple[str, str], Drawn], seed: int) -> "Redraws":
        """With a line that only the same numbers share, so that tables of different runs do not pass for one."""
        arrays = [of_one.statistics["unsafe"] for of_one in drawn.values()]
        mark = zlib.crc32(b"".join(array.tobytes() for array in arrays))
        made = cls(f"{len(arrays[0])} redraws of the prompts, seed {seed}, {mark:08x}")
        made.drawn = drawn
        return made

    def __deepcopy__(self, memo: Any) -> "Redraws":
        return self  # pandas copies attributes with every table derived from one

    def __reduce__(self) -> Any:
        return str, (str(self),)  # the statistics know the run, which does not travel with a table


def redrawn(
    rows: pd.DataFrame,
    raw: np.ndarray,
    unsafe: np.ndarray,
    weights: np.ndarray,
    criterion: Criterion,
    again: Callable[[], np.ndarray] | None,
) -> dict[tuple[str, str], Drawn]:
    """What redraws make of the heads of one criterion, by (criterion, projection).

    Args:
        rows: The computed heads as `score` gives them.
        raw: [prompt, head] of these rows, in the criterion's unit.
        unsafe: [prompt].
        weights: [redraw, prompt], from `bootstrap_weights`.
        criterion: Theirs.
        again: Gives `raw` once more, for AUROCs; None where there are too many values for those.
    """
    sides, counts = (unsafe, ~unsafe), (int(unsafe.sum()), int((~unsafe).sum()))
    strength = criterion.strength(raw)
    found = {
        name: criterion.strength(weighted_sums(weights, side, raw) / count)
        for name, side, count in zip(("unsafe", "safe"), sides, counts, strict=True)
    }
    centred = strength - strength.mean(0)
    means = [weighted_sums(weights, side, centred) / n for side, n in zip(sides, counts, strict=True)]
    squares = [weighted_sums(weights, side, centred**2) for side in sides]
    spread = sum(square - n * mean**2 for square, n, mean in zip(squares, counts, means, strict=True))
    with np.errstate(invalid="ignore", divide="ignore"):
        found["effect_size"] = (means[0] - means[1]) / np.sqrt(np.maximum(spread, 0) / (sum(counts) - 2))
    drawn = {}
    for projection, at in rows.groupby("projection", sort=False).indices.items():
        mine = rows.iloc[at]
        seen = criterion.strength(mine[["unsafe", "safe"]].to_numpy().T)
        drawn[criterion.name, str(projection)] = Drawn(
            heads=pd.MultiIndex.from_frame(mine[["layer", "head"]]),
            seen=seen,
            statistics={name: values[:, at].astype(np.float32) for name, values in found.items()},
            areas=None if again is None else partial(_areas_again, again, criterion, unsafe, weights, at, seen),
        )
    return drawn


def joined(parts: list[dict[tuple[str, str], Drawn]]) -> dict[tuple[str, str], Drawn]:
    """What redraws make of the heads of several pieces of a run, as one."""
    whole = {}
    for key in {key: None for part in parts for key in part}:
        of = [part[key] for part in parts if key in part]
        ways = [drawn.areas for drawn in of if drawn.areas is not None]
        starts = np.cumsum([0, *(len(drawn.heads) for drawn in of)])
        whole[key] = Drawn(
            heads=of[0].heads.append([drawn.heads for drawn in of[1:]]),
            seen=np.concatenate([drawn.seen for drawn in of], axis=1),
            statistics={
                name: np.concatenate([drawn.statistics[name] for drawn in of], axis=1) for name in of[0].statistics
            },
            areas=partial(_areas_of, ways, starts) if len(ways) == len(of) else None,
        )
    return whole


def _areas_of(ways: list[Callable[[np.ndarray], np.ndarray]], starts: np.ndarray, at: np.ndarray) -> np.ndarray:
    """AUROCs of the heads `at`, each from the piece that holds it."""
    piece = np.searchsorted(starts, at, side="right") - 1
    found = {k: way(at[piece == k] - starts[k]) for k, way in enumerate(ways) if (piece == k).any()}
    out = np.empty((len(next(iter(found.values()))), len(at)))
    for k, areas in found.items():
        out[:, piece == k] = areas
    return out


def _areas_again(
    again: Callable[[], np.ndarray],
    criterion: Criterion,
    unsafe: np.ndarray,
    weights: np.ndarray,
    columns: np.ndarray,
    seen: np.ndarray,
    at: np.ndarray,
) -> np.ndarray:
    """`_areas` of values that are read again; NaN where these are not those that were scored."""
    try:
        raw = again()
        now = criterion.strength(np.stack([raw[side].mean(0) for side in (unsafe, ~unsafe)]))[:, columns]
    except (WorkbenchError, OSError, ValueError, IndexError):  # a store that is gone or is another run by now
        now = np.empty(0)
    if not np.array_equal(now, seen, equal_nan=True):
        return np.full((len(weights), len(at)), np.nan)
    return _areas(criterion.strength(raw[:, columns[at]]), unsafe, weights)


def _areas(strength: np.ndarray, unsafe: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUROC of each head under each redraw, ties counting half, [redraw, head]."""
    out = np.empty((len(weights), strength.shape[1]))
    for cell, values in enumerate(strength.T):
        order = np.argsort(values, kind="stable")
        ordered, attack = values[order], unsafe[order]
        below = np.zeros((len(weights), len(order) + 1))
        np.cumsum(weights[:, order] * ~attack, axis=1, out=below[:, 1:])
        least, most = (np.searchsorted(ordered, ordered[attack], side=side) for side in ("left", "right"))
        out[:, cell] = (weights[:, order[attack]] * (below[:, least] + below[:, most])).sum(1) / 2
    return out / (int(unsafe.sum()) * int((~unsafe).sum()))


def values_under(statistics: Mapping[str, np.ndarray], rule: Rule, percentile: float) -> np.ndarray | None:
    """What the rule ranks by, [redraw, head], NaN where it leaves a head out; None for one that reads other columns."""
    try:
        return np.where(rule.keeps(statistics, percentile), rule.value(statistics), np.nan)
    except KeyError:
        return None


def share_among_first(statistics: Mapping[str, np.ndarray], rule: Rule, k: int, percentile: float) -> np.ndarray:
    """In what share of redraws each head is among the first k that the rule keeps, 0-1, [head]; NaN if it cannot say.

    Ties go to the earlier head.

    Args:
        statistics: [redraw, head], by the columns that rules read.
        rule: A rule that ranks; one that reads other columns gives NaN.
        k: How many heads are first.
        percentile: Of the bound on safe values, which is drawn again with the prompts.
    """
    values = values_under(statistics, rule, percentile)
    if values is None:
        return np.full(statistics["unsafe"].shape[1], np.nan)
    values = np.where(np.isnan(values), -np.inf, values)
    first = np.zeros(values.shape, dtype=bool)
    np.put_along_axis(first, np.argsort(-values, axis=1, kind="stable")[:, :k], True, axis=1)
    return (first & (values > -np.inf)).mean(0)


def redrawn_of(
    scores: pd.DataFrame, rows: pd.DataFrame
) -> tuple[Mapping[str, np.ndarray], pd.Index] | tuple[None, None]:
    """Statistics, [redraw, head], of scored rows of one criterion and projection, and which row each head is.

    None where the table has no redraws, was changed since it was scored, or is of a run of some heads only, whose bound
    under other prompts nobody knows.
    """
    kept = scores.attrs.get("redraws")
    first = rows.iloc[0]
    drawn = getattr(kept, "drawn", {}).get((first["criterion"], first["projection"]))
    heads = pd.MultiIndex.from_frame(rows[["layer", "head"]])
    if drawn is None or not heads.isin(drawn.heads).all() or heads.has_duplicates:
        return None, None
    if "safe_rank" in scores and scores.loc[rows.index, "safe_rank"].notna().any():
        return None, None
    at = drawn.heads.get_indexer(heads)
    if not np.array_equal(drawn.seen[:, at], rows[["unsafe", "safe"]].to_numpy().T, equal_nan=True):
        return None, None
    order = np.argsort(at)  # as the table of all heads is sorted, for ties
    statistics = OnDemand({name: values[:, at[order]] for name, values in drawn.statistics.items()})
    statistics["safe_rank"] = np.stack([percentile_ranks(of_one) for of_one in statistics["safe"]])
    if drawn.areas is not None:
        statistics.ways["auroc"] = partial(drawn.areas, at[order])
    return statistics, rows.index[order]


def stability(scores: pd.DataFrame, rows: pd.DataFrame, rule: Rule, *, k: int, percentile: float) -> pd.Series:
    """`share_among_first` for scored rows of one criterion and projection, among the heads of these rows."""
    statistics, index = redrawn_of(scores, rows)
    if statistics is None or rule.is_control:
        return pd.Series(np.nan, index=rows.index)
    return pd.Series(share_among_first(statistics, rule, k, percentile), index=index).reindex(rows.index)
