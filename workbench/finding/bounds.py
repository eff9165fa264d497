"""What exact cells on some prompts, and estimates on all, say of every head's value on all prompts, and how surely.

Some cells are computed for what their estimate says; they count as they are. Of the others, a head's mean over all N
prompts of a class is known from n of them, drawn at random without replacement, and from an estimate on all N: the mean
of the n exact values, moved by a slope times what the estimate says those n prompts differ from all N. Whatever the
estimate is worth, the result is right on average; what it is worth decides how little the exact values scatter about it
(a regression estimator; Cochran, "Sampling Techniques", chapter 7; Angelopoulos et al., "Prediction-powered inference",
Science 382, 2023, and its tuned form, arXiv 2311.01453). Slopes are shared within a layer, since masks of a layer
saturate alike, and each prompt is corrected with the slope of the other prompts, so that none tunes its own correction.

With few prompts a head's own scatter is hardly known. Heads of its layer and the layers around lend theirs, in units of
what the estimates of each head scatter (after G. Smyth, "Linear models and empirical Bayes methods", SAGMB 3, 2004).
Half-widths of intervals are Student's, with the correction for a finite population: 0 where every prompt was scored.
"""

from dataclasses import dataclass

import numpy as np

LEAST_SCATTER = 0.05  # of a head's size, where its estimate is the same for every prompt
LENT = 8.0  # cells that the heads around lend a head
NEIGHBOURS = 2  # layers to either side whose heads are around


@dataclass(frozen=True)
class Means:
    """Of one class, what is known of each head's mean: `[projection, layer, head]`, NaN where nothing is.

    Attributes:
        mean: The corrected mean.
        error: Its standard error; 0 where every prompt was scored.
        freedom: Degrees of freedom of the error.
    """

    mean: np.ndarray
    error: np.ndarray
    freedom: np.ndarray

    def reach(self, risk: np.ndarray | float) -> np.ndarray:
        """How far from the mean the truth may lie on one side, but for a chance of `risk`."""
        from scipy.stats import t

        return np.where(self.error > 0, t.isf(risk, self.freedom), 0.0) * self.error

    def minus(self, other: "Means") -> "Means":
        """The difference of two independent means; its degrees of freedom as Welch and Satterthwaite give them."""
        square = self.error**2 + other.error**2
        with np.errstate(invalid="ignore", divide="ignore"):
            freedom = square**2 / (self.error**4 / self.freedom + other.error**4 / other.freedom)
        return Means(self.mean - other.mean, np.sqrt(square), np.where(square > 0, freedom, 1.0))


@dataclass(frozen=True)
class Fit:
    """Exact cells of a class and a line through them, layer by layer, that reads their estimates.

    Attributes:
        cells: `[prompt, projection, layer, head]`, NaN where not computed.
        sure: Cells that were computed for what their estimate says, whatever the draw of prompts; the same shape.
        line: What the line says of each cell, less its mean over all prompts; the same shape.
        level: How far the estimates of a head scatter, `[projection, layer, head]`: the unit of residuals.
        n, total: On how many drawn prompts a head is known, and of how many, `[projection, layer, head]`: all prompts
            but those of cells that were computed for what their estimate says.
        middle: The corrected mean of the drawn ones; NaN where a head is known on none of them.
        mean: The corrected mean of all.
        variance: Of the exact values about the line, shrunk; `freedom` its degrees of freedom.
    """

    cells: np.ndarray
    sure: np.ndarray
    line: np.ndarray
    level: np.ndarray
    n: np.ndarray
    total: np.ndarray
    middle: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    freedom: np.ndarray

    @classmethod
    def of(cls, cells: np.ndarray, estimate: np.ndarray, sure: np.ndarray) -> "Fit":
        """The fit of one class, all arrays `[prompt, projection, layer, head]` over all its prompts.

        Args:
            cells: Exact values, NaN where not computed.
            estimate: Of all of them.
            sure: Cells that were computed for what their estimate says, whatever the draw of prompts.
        """
        known, drawn = ~np.isnan(cells), ~sure
        counted = known & drawn
        n, total = counted.sum(0), drawn.sum(0)
        level = np.maximum(estimate.std(0), LEAST_SCATTER * np.abs(estimate).mean(0))
        level = np.where(level > 0, level, 1.0)
        with np.errstate(invalid="ignore", divide="ignore"):
            # In units of what the estimate scatters over all prompts, seen or not: heads of a layer are alike in these,
            # and a head whose few strong prompts are not among the n is not taken for a steady one.
            y, e = (
                (np.where(counted, of - np.where(counted, of, 0).sum(0) / n, 0) / level) for of in (cells, estimate)
            )
            line = _slopes(y, e) * (estimate - np.where(drawn, estimate, 0).sum(0) / total)
            moved = np.where(counted, cells - line, 0)
            middle = np.where(n > 0, moved.sum(0) / n, np.nan)
            spread = np.where(counted, moved - middle, 0) / level
            variance, freedom = _shrunk((spread**2).sum(0), np.maximum(n - 1.0, 0.0))
            whole = known.all(0)
            rest = np.where(total > 0, total * middle, 0)
            mean = (np.where(known & sure, cells, 0).sum(0) + rest) / len(cells)
        mean = np.where(whole, cells.mean(0), mean)
        return cls(cells, sure, line, level, n, total, middle, mean, level**2 * variance, freedom)

    def means(self) -> Means:
        """What is known of the mean of each head over all prompts of the class."""
        full = ~np.isnan(self.cells).any(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            error = np.sqrt(self.variance / self.n * (1 - self.n / self.total)) * self.total / len(self.cells)
        return Means(self.mean, np.where(full, 0.0, error), np.where(full, 1.0, self.freedom))

    def completed(self) -> tuple[np.ndarray, np.ndarray]:
        """Cells, those not known filled in from the line; and the scatter of what is filled in, 0 elsewhere."""
        known = ~np.isnan(self.cells)
        filled = np.where(known, self.cells, self.middle + self.line)
        return filled, np.where(known, 0.0, np.sqrt(self.variance))


def around(of_heads: np.ndarray, together: np.ufunc = np.add) -> np.ndarray:
    """Totals of `[what, projection, layer, head]` over the heads of a layer and its neighbours, head axis kept as 1."""
    of_layer = together.reduce(of_heads, axis=-1, keepdims=True)
    found = of_layer.copy()
    for step in range(1, NEIGHBOURS + 1):
        together(found[:, :, step:], of_layer[:, :, :-step], out=found[:, :, step:])
        together(found[:, :, :-step], of_layer[:, :, step:], out=found[:, :, :-step])
    return found


def _slopes(y: np.ndarray, e: np.ndarray) -> np.ndarray:
    """Of each prompt and layer, the regression of y on e over the other prompts: `[prompt, projection, layer, 1]`."""
    both, own = (y * e).sum(-1, keepdims=True), (e * e).sum(-1, keepdims=True)
    both, own = both.sum(0) - both, own.sum(0) - own
    return np.where(own > 0, both / np.where(own > 0, own, 1), 0)


def _shrunk(squares: np.ndarray, freedom: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Variances `[projection, layer, head]` from sums of squares, shrunk towards the mean of the layers around."""
    with np.errstate(invalid="ignore", divide="ignore"):
        pooled = np.divide(*around(np.stack([squares, freedom])))
    pooled = np.where(np.isfinite(pooled), pooled, 0.0)
    return (LENT * pooled + squares) / (LENT + freedom), LENT + freedom
