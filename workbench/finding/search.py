"""The search for the first k heads: which cells to compute next, and what all of them say so far.

It knows nothing of models: it asks for cells, is told what came, and decides. The engine `find` computes them; a replay
(`workbench.bench.replay`) looks them up in a stored map.
"""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

import numpy as np

from workbench.finding.bounds import Fit
from workbench.finding.decisions import DRAWS, sets, with_safe
from workbench.finding.predictions import predicted

GROWTH = 0.35  # prompts of a later round, as a share of those before
STRONG, STRONG_SHARE = 1.3, 0.2  # an estimate stands out by this factor, on at most this share of the prompts
# Prompts of a class on which all heads are scored at first: drawn ones, and those with the largest estimates. With so
# many heads a layer they were measured to be enough; more heads a layer tell as much from fewer prompts each, but from
# one drawn prompt nothing would be known of a head's own scatter.
FEWEST, FOREMOST, ENOUGH_HEADS = (4, 2), (2, 1), 9
RISK_OF_DRAWS = 0.25  # of certain and of excluded heads each; half is left for what was never seen, and so never drawn
DRAWN = 2**16 - 1  # instead of a rank: a cell that does not stand out
ANYTHING = 1e300
EXCLUDED, POSSIBLE, CERTAIN = 0, 1, 2
STATUSES = ("excluded", "possible", "certain")


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        k: How many heads.
        rule: "selectivity" or "sensitivity".
        level: Chance that every status is right.
        budget: Share of the exact map's work that may be spent; the first round is run in any case. Infinite: all.
        seed: Of what is drawn.
    """

    k: int
    rule: str
    level: float
    budget: float
    seed: int


@dataclass(frozen=True)
class Work:
    """Costs in layer-tokens.

    Attributes:
        cell: Of one cell, `[prompt, layer]`.
        block: Of coming back to a prompt for exact cells, `[prompt]`.
        spent: On estimates.
        whole: Of the exact map.
    """

    cell: np.ndarray
    block: np.ndarray
    spent: float
    whole: float

    def of(self, wanted: np.ndarray) -> float:
        """Of computing the cells `wanted[prompt, projection, layer, head]`."""
        rows = wanted.sum((1, 3))
        return float((rows * self.cell[: len(rows)]).sum() + self.block[: len(rows)][rows.any(1)].sum())


@dataclass
class Findings:
    """What is known of each head, `[projection, layer, head]`.

    Attributes:
        value: Of the rule; NaN for heads that it leaves out or that were not asked for.
        low, high: Ends of the interval of each value at the level asked for.
        status: Index into `STATUSES`.
        used: On how many prompts the head was scored exactly.
        spent: Share of the exact map's work.
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    status: np.ndarray
    used: np.ndarray
    spent: float = 0.0


def search(
    ask: Question,
    unsafe: np.ndarray,
    asked: np.ndarray,
    work: Work,
    estimate: np.ndarray,
    read: Callable[[], np.ndarray],
) -> Generator[np.ndarray, None, Findings]:
    """Cells to compute, `[prompt, projection, layer, head]`, one round after the other; returns what they say.

    Args:
        ask: The question.
        unsafe: Of the prompts that the rule reads, in random order, which are unsafe; `[prompt]`.
        asked: Heads that are searched, `[projection, layer, head]`.
        work: What everything costs.
        estimate: Of the strength of every cell; 0 where there is none.
        read: Gives exact strengths as far as they were asked for, NaN elsewhere.
    """
    random = np.random.default_rng(ask.seed)
    sides = _sides(ask.rule, unsafe)
    ranks, places = strong_ranks(estimate, sides), _places(sides)
    limits = strong_limits(ranks)
    # Where work has no limit nothing is gained by asking for less than everything.
    fewest = _at_first(FEWEST, asked.shape[-1]) if np.isfinite(ask.budget) else len(unsafe)
    spent, reached, first = work.spent, 0, max(min(fewest, side.sum()) for side in sides)
    done, open_ = np.zeros(estimate.shape, dtype=bool), asked
    while True:
        upto = first if not reached else max(reached + 1, int((1 + GROWTH) * reached))
        # Of cells that stand out more are computed the longer a head is in question.
        chosen = ranks < next(limits, DRAWN)
        wanted = ((places < upto)[:, None, None, None] | chosen) & open_ & ~done
        while reached and upto > reached + 1 and spent + work.of(wanted) > ask.budget * work.whole:
            upto -= 1
            wanted = ((places < upto)[:, None, None, None] | chosen) & open_ & ~done
        if reached and spent + work.of(wanted) > ask.budget * work.whole:
            break
        spent += work.of(wanted)
        yield wanted
        done |= wanted
        most = max(side.sum() for side in sides)
        risk = (1 - ask.level) / len(asked) * (min(upto, most) - reached) / most
        reached = upto
        found = _judge(ask, sides, ~open_, ranks, risk, random, read(), estimate)
        open_ = found.status != EXCLUDED
        if reached >= most or not (found.status == POSSIBLE).any():
            break
    # The first heads on the prompts that are left, so that their values are exact.
    wanted = np.broadcast_to(_first(found, ask.k), done.shape) & ~done
    if wanted.any() and spent + work.of(wanted) <= ask.budget * work.whole:
        spent += work.of(wanted)
        yield wanted
        found = _judge(ask, sides, ~open_, ranks, 0.0, random, read(), estimate)
    found.spent = spent / work.whole
    return found


def strong_ranks(estimate: np.ndarray, sides: list[np.ndarray]) -> np.ndarray:
    """Cells whose estimate stands out from that of the head on most prompts of the class, the largest first, from 0 on.

    Masks that upset a prompt altogether do so far beyond what is linear, but are seldom estimated to do little. Of
    heads that are in question these cells are computed for certain; only of the others, `DRAWN`, is there a draw.
    """
    ranks, n = np.full(estimate.shape, DRAWN, dtype=np.uint16), _at_first(FOREMOST, estimate.shape[-1])
    for side in sides:
        size = np.abs(estimate[side])
        bound = np.maximum(STRONG * np.median(size, 0), np.quantile(size, 1 - STRONG_SHARE, axis=0))
        places = (-size).argsort(0, kind="stable").argsort(0)
        ranks[side] = np.where((places < n) | (size > bound), np.minimum(places, DRAWN - 1), DRAWN)
    return ranks


def strong_limits(ranks: np.ndarray) -> Iterator[int]:
    """Below which rank cells are computed: of all heads, and of those in question twice as many each time."""
    limit, most = _at_first(FOREMOST, ranks.shape[-1]), int(ranks[ranks < DRAWN].max(initial=0))
    while limit <= most:
        yield limit
        limit *= 2
    yield DRAWN


def taken_for_sure(cells: np.ndarray, ranks: np.ndarray, sides: list[np.ndarray]) -> np.ndarray:
    """The cells that were computed for what their estimate says: of each head those below the limit it came to."""
    sure = np.zeros(cells.shape, dtype=bool)
    for limit in strong_limits(ranks):
        for side in sides:
            chosen = ranks[side] < limit
            sure[side] |= chosen & ~(chosen & np.isnan(cells[side])).any(0)
    return sure


def _places(sides: list[np.ndarray]) -> np.ndarray:
    """How many prompts of its class come before each in the random order."""
    places = np.zeros(len(sides[0]), dtype=int)
    for side in sides:
        places[side] = np.arange(side.sum())
    return places


def pays(ask: Question, unsafe: np.ndarray, asked: np.ndarray, work: Work) -> bool:
    """Whether the least a search does, estimates and all heads on the fewest prompts, is less than the exact map."""
    places = _places(_sides(ask.rule, unsafe))
    every = work.of(np.broadcast_to(asked, (len(unsafe), *asked.shape)))
    least = work.spent + work.of((places < scored_at_first(asked.shape[-1]))[:, None, None, None] & asked)
    return bool(least < every)


def scored_at_first(n_heads: int) -> int:
    """On how many prompts of a class all heads are scored, where a layer has `n_heads`."""
    return _at_first(FEWEST, n_heads) + _at_first(FOREMOST, n_heads)


def _at_first(prompts: tuple[int, int], n_heads: int) -> int:
    most, least = prompts
    return int(np.clip(-(-most * ENOUGH_HEADS // n_heads), least, most))


def _sides(rule: str, unsafe: np.ndarray) -> list[np.ndarray]:
    return [unsafe] if rule == "sensitivity" else [unsafe, ~unsafe]


def _first(found: Findings, k: int) -> np.ndarray:
    """Certain heads, and the first k by value of those that are not excluded."""
    values = np.where(found.status == EXCLUDED, -np.inf, np.nan_to_num(found.value, nan=-np.inf))
    flat = values.reshape(len(values), -1)
    chosen = np.zeros(flat.shape, dtype=bool)
    np.put_along_axis(chosen, np.argsort(-flat, axis=1, kind="stable")[:, :k], True, axis=1)
    return (chosen & np.isfinite(flat)).reshape(values.shape) | (found.status == CERTAIN)


def _judge(
    ask: Question,
    sides: list[np.ndarray],
    excluded: np.ndarray,
    ranks: np.ndarray,
    risk: float,
    random: np.random.Generator,
    cells: np.ndarray,
    estimate: np.ndarray,
) -> Findings:
    """What the cells say, where the heads in `excluded` are out already and this look may go wrong by `risk`."""
    sure = taken_for_sure(cells, ranks, sides)
    fits = [Fit.of(cells[side], estimate[side], sure[side]) for side in sides]
    known = fits[0].means() if len(fits) == 1 else fits[0].means().minus(fits[1].means())
    half = known.reach((1 - ask.level) / 2)
    guess = predicted(cells, estimate, sure, ranks < DRAWN, sides)
    drawn = guess.draws(random, DRAWS)
    values, left_out = drawn[0], np.zeros(excluded.shape, dtype=bool)
    if len(fits) > 1:
        values = np.where(with_safe(drawn[1]), values - drawn[1], -np.inf)
        left_out = ~with_safe(fits[1].mean[None])[0]
    # Heads of which nothing was drawn yet are not excluded by what their neighbours say.
    more = np.where(np.isnan(sum(fit.mean for fit in fits)), ANYTHING, guess.loudest[0])
    status = np.full(excluded.shape, EXCLUDED)
    for number, out in enumerate(excluded):
        certain, gone = sets(values[:, number][:, ~out], ask.k, RISK_OF_DRAWS * risk, more[number][~out])
        status[number][~out] = np.where(gone, EXCLUDED, np.where(certain, CERTAIN, POSSIBLE))
    used = sum((~np.isnan(cells[side])).sum(0) for side in sides)
    no_value = left_out & (status == EXCLUDED)
    value = np.where(no_value, np.nan, known.mean)
    return Findings(value, value - half, value + half, status, np.where(used > 0, used, np.nan).astype(float))
