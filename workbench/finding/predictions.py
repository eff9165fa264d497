"""What every head's mean over all prompts may be, drawn from what its exact cells and its estimates say.

Cells that were computed stand; the others are predicted (the prediction view of sampling; Valliant, Dorfman and Royall,
"Finite population sampling and inference", 2000). On the models that were measured, exact cells are estimates times a
factor that hardly differs between the heads of a layer, nor for one head between the classes, and scatter about that in
proportion to their size:

    cell = factor of the head * line of its estimate + size * residual

The line turns with the layer: changes that are large by the estimate are smaller in truth, since masks saturate. A
head's factor is taken from its own cells and from the heads around (small-area estimation; J. Rao and I. Molina, "Small
area estimation", 2015, chapter 5), as far as these are alike; a class has one of its own as far as classes were seen to
differ. Rare cells far above the others decide what comes first, so residuals keep the skew that they were seen to have.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from workbench.finding.bounds import LENT, around

LEAST_SIZE = 0.2  # of the mean size of a head's estimates: what residuals are measured in is not less
LEAST_OF_ALL = 1e-3  # of the mean size of all estimates; the same
CLIPPED = 2.0  # standard deviations as far as a residual moves its head's factor (P. Huber, 1964)
NORMAL_MEAN_DEVIATION = 1.25  # standard deviations a mean absolute deviation, where residuals are normal
NO_SKEW, MOST_SKEW = 0.05, 3.0  # of draws
SLOPES = (0.0, 1.5)  # of a line, for estimates of mean size; what is beyond is noise
BEYOND = 2.0  # times as far above what is predicted as any cell seen: as far as one not seen may be
ROUNDING = 1e-12
SMALLEST = 1e-300  # instead of 0 in a denominator
PARTS = 6  # of the prompts, each with some of every class
UPPER = 1.64  # standard errors
ROUNDS = 3  # of finding factors and how much cells scatter about them, in turn


@dataclass(frozen=True)
class Predictions:
    """Of each class, the mean over all its prompts, `[class, projection, layer, head]`.

    Attributes:
        middle: The best guess; NaN for heads without estimates.
        common, own: Standard errors from the head's factor: of what classes share, and of each class besides.
        apart: Standard error from residuals of what was not computed, of this `skew`.
        loudest: What the mean is above `middle` if all cells that stand out, and were not computed, were `BEYOND` times
            as far above what is predicted as the farthest cell of the layers around.
    """

    middle: np.ndarray
    common: np.ndarray
    own: np.ndarray
    apart: np.ndarray
    skew: np.ndarray
    loudest: np.ndarray

    def draws(self, random: np.random.Generator, n: int) -> np.ndarray:
        """Means as they may be, `[class, draw, projection, layer, head]`."""
        shape = (n, *self.middle.shape[1:])

        def normal() -> np.ndarray:
            return random.standard_normal(shape, dtype=np.float32)

        found, shared = np.empty((len(self.middle), *shape)), normal()
        for side, values in enumerate(found):
            noise = self.apart[side].astype(np.float32) * _skewed(normal(), self.skew[side])
            noise += self.common[side].astype(np.float32) * shared
            if self.own[side].any():
                noise += self.own[side].astype(np.float32) * normal()
            np.add(self.middle[side], noise, out=values)
        return found


def predicted(
    cells: np.ndarray, estimate: np.ndarray, sure: np.ndarray, strong: np.ndarray, sides: Sequence[np.ndarray]
) -> Predictions:
    """Predict the means of each class; arrays `[prompt, projection, layer, head]`.

    Args:
        cells: Exact values, NaN where not computed.
        estimate: Of all cells.
        sure: Cells that were computed for what their estimate says. They count as they are, and say nothing of others.
        strong: Cells that stand out by their estimate, computed or not.
        sides: Of each class, which prompts it has.
    """
    known, classes = ~np.isnan(cells), [side[:, None, None, None] for side in sides]
    asked, estimate = np.isfinite(estimate).all(0), np.nan_to_num(estimate)
    seen = known & ~sure & np.any(classes, axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        line, size = _line(np.where(seen, cells, 0), estimate, seen)
        y, x = np.where(seen, cells / size, 0), np.where(seen, line / size, 0)
        factor, scatter = _factors(y, x, seen)
        off = np.where(seen, y - factor * x, 0)
        # A head's own cells that stand out say how far it may go; those of others, chosen as they are, say too much.
        every = np.where(known, (cells - factor * line) / size, 0)
        first, second, third = _moments(off, seen, every, known)
        variance = np.maximum(second - first**2, 0)
        # Of residuals that are all alike, up to rounding, there is none.
        skew = np.where(variance > ROUNDING * second, (third - 3 * first * second + 2 * first**3) / variance**1.5, 0.0)
        shrunk, error = _shrunk(factor, variance / (x**2).sum(0))
        freedom = LENT + np.maximum(seen.sum(0) - 1.0, 0)
        error = error * np.sqrt(freedom / (freedom - 2))  # as wide as Student's
        # What each class's own factor is above the head's, and how surely that is seen.
        near = np.clip(off, -CLIPPED * scatter, CLIPPED * scatter)
        weights = [(x**2 * side).sum(0) for side in classes]
        apart = [(near * x * side).sum(0) / weight for side, weight in zip(classes, weights, strict=True)]
        blur = [variance / weight for weight in weights]
        shift = [_mean_around(own) for own in apart]
        apart = [own - mean for own, mean in zip(apart, shift, strict=True)]
        differ, unsure = (np.broadcast_to(of, factor.shape) for of in _between_classes(near * x, x**2 * seen, sides))
        farthest = around(every.max((0, -1), keepdims=True), np.maximum)[0]
    parts = []
    for side, mean, own, noise in zip(classes, shift, apart, blur, strict=True):
        missing, n = side & ~known, side.sum()
        reach = np.where(missing, line, 0).sum(0)
        of_one, of_square, of_cube = (np.where(missing, size**power, 0).sum(0) for power in (1, 2, 3))
        told = np.isfinite(noise) & (differ > 0)
        trust = np.divide(differ, differ + noise, out=np.zeros_like(differ), where=told)
        rest = (shrunk + mean + trust * np.where(told, own, 0)) * reach + first * of_one
        left = np.where(told, trust * np.where(told, noise, 0), differ)
        unseen = np.where(missing & strong, size, 0).sum(0)
        parts.append(
            (
                np.where(asked, (np.where(known & side, cells, 0).sum(0) + rest) / n, np.nan),
                error * np.abs(reach) / n,
                np.sqrt(left + unsure) * np.abs(reach) / n,
                np.sqrt(variance * of_square) / n,
                np.divide(skew * of_cube, of_square**1.5, out=np.zeros_like(skew), where=of_square > 0),
                BEYOND * farthest * unseen / n,
            )
        )
    return Predictions(*map(np.stack, zip(*parts, strict=True)))


def _line(y: np.ndarray, estimate: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the estimates of a layer say of its cells but for a factor a head, and the size of each cell's residual."""
    mean, of_head = estimate.mean(0), np.abs(estimate).mean(0)
    floor = np.maximum(LEAST_SIZE * of_head, LEAST_OF_ALL * of_head.mean())
    floor = np.where(floor > 0, floor, 1.0)
    weight = seen / np.maximum(np.abs(estimate), floor) ** 2
    ratio = (weight * y * estimate).sum(0) / np.maximum((weight * estimate**2).sum(0), SMALLEST)
    of_y, of_e = ((weight * of).sum(0) / weight.sum(0) for of in (y, estimate))
    y, away = (np.where(seen, of - middle, 0) for of, middle in ((y, of_y), (estimate, of_e)))
    along, square = around(np.stack([ratio * (weight * y * away).sum(0), ratio**2 * (weight * away**2).sum(0)]))
    slope = np.clip(np.nan_to_num(along / square, nan=1.0), *SLOPES)
    line = mean + slope * (estimate - mean)
    return line, np.maximum(np.abs(line), floor)


def _factors(y: np.ndarray, x: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Factors of all heads by least squares in which far residuals are clipped, and the scatter of the near ones."""
    square, along, n = (x**2).sum(0), (y * x).sum(0), np.maximum(seen.sum(0) - 1.0, 0)
    # Of heads without cells the layer's, and of those whose estimates are all 0 any.
    factor = np.nan_to_num(np.where(square > 0, along / square, np.divide(*around(np.stack([along, square])))))
    for _ in range(ROUNDS):
        off = np.where(seen, y - factor * x, 0)
        sums, counts = around(np.stack([np.abs(off).sum(0), n]))
        scatter = NORMAL_MEAN_DEVIATION * sums / np.maximum(counts, 1)
        near = np.clip(off, -CLIPPED * scatter, CLIPPED * scatter)
        factor = factor + np.where(square > 0, (near * x).sum(0) / square, 0)
    return factor, scatter


def _moments(off: np.ndarray, seen: np.ndarray, every: np.ndarray, known: np.ndarray) -> Iterator[np.ndarray]:
    """Mean, mean square and mean cube of residuals: of a head's own, and of those around that were `seen`."""
    lent_n = np.maximum(around(np.maximum(seen.sum(0) - 1.0, 0)[None])[0], 1)
    for power, (own, of) in enumerate(((off, seen), (every, known), (every, known)), 1):
        lent = around((off**power).sum(0)[None])[0] / lent_n
        yield ((own**power).sum(0) + LENT * lent) / (of.sum(0) + LENT)


def _shrunk(factor: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Factors drawn towards those around as far as these are alike, and their standard errors."""
    seen = np.isfinite(factor) & np.isfinite(noise)
    middle = _mean_around(np.where(seen, factor, np.nan))
    own = np.where(seen, (factor - middle) ** 2 - noise, np.nan)
    alike = np.maximum(_mean_around(own), 0)
    unlike = np.fmax(alike, own)  # a head that is not like the others is not drawn to them
    weight = np.where(seen, unlike / (unlike + noise), 0)
    return np.where(seen, middle + weight * (factor - middle), middle), np.sqrt(np.where(seen, weight * noise, alike))


def _mean_around(values: np.ndarray) -> np.ndarray:
    seen = np.isfinite(values)
    total, count = around(np.stack([np.where(seen, values, 0), seen.astype(float)]))
    return np.divide(total, count, out=np.zeros_like(total), where=count > 0)


def _between_classes(
    along: np.ndarray, square: np.ndarray, sides: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """How far the factors of a class are from the heads': a head's own, and what is common to those around.

    It is what parts of the prompts agree on: how the classes of a head differ in one part, times how they differ in
    another. What is common to all heads around is not counted, nor what prompts scatter, of a pair or alone; and heads
    that scatter alike count as the few that they are.

    Args:
        along, square: Of each cell seen, residual times line and line squared, `[prompt, projection, layer, head]`;
            their sums over prompts have a factor as their ratio.
        sides: Of each class, which prompts it has.

    Returns:
        The variance of a class's own factor about that, as large as the heads around allow; and the variance with
        which what is common is known.
    """
    if len(sides) < 2:
        return np.zeros_like(square[0]), np.zeros_like(square[0])
    n, apart, shared = min(PARTS, *(int(side.sum()) for side in sides)), [], []
    for part in range(n):
        of_class, common = [], []
        for side in sides:
            mine = side & (np.cumsum(side) % n == part)
            weight = square[mine].sum(0)
            own = np.divide(along[mine].sum(0), weight, out=np.full_like(weight, np.nan), where=weight > 0)
            common.append(_mean_around(own))
            of_class.append(own - common[-1])
        apart.append(of_class[0] - of_class[1])
        shared.append(common[0] - common[1])
    total = error = count = np.zeros_like(shared[0])
    for one, other in itertools.combinations(apart, 2):
        both = one * other
        agree, seen = around(np.stack([np.nan_to_num(both), np.isfinite(both)]))
        total, error, count = total + agree, error + agree**2, count + seen
    unsure = np.var(shared, axis=0, ddof=1) / n / 2 if n > 1 else np.zeros_like(total)
    return np.nan_to_num(np.maximum((total + UPPER * np.sqrt(error)) / count, 0) / 2), unsure


def _skewed(normal: np.ndarray, skew: np.ndarray) -> np.ndarray:
    """Draws of mean 0, variance 1 and a skewness, from normal ones (E. Wilson and M. Hilferty, 1931)."""
    skew = np.where(np.abs(skew) > NO_SKEW, np.clip(skew, -MOST_SKEW, MOST_SKEW), NO_SKEW).astype(np.float32)
    return 2 / skew * ((1 + skew / 6 * (normal - skew / 6)) ** 3 - 1)
