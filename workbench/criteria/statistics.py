"""Statistics of all heads at once: AUROC, effect size, bootstrap intervals, permutation tests, false discoveries.

Arrays are [prompt, cell]: a cell is one head under one projection. Everything random takes a seed. What is drawn is
kept in few bits and widened some rows at a time: 20,480 shuffles of 28,000 prompts take 72 MB.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from workbench.prompts.ties import strata, units

CONFIDENCE = 0.95
NUMBERS_AT_ONCE = 2**24  # of float64 in a resampling block: 128 MB
BYTE = 8  # shuffles in a byte


def auroc(values: np.ndarray, unsafe: np.ndarray) -> np.ndarray:
    """Chance that an unsafe prompt's value exceeds a safe one's, ties counting half; [cell], 0-1.

    Args:
        values: [prompt, cell]; NaN in a cell gives NaN.
        unsafe: [prompt].
    """
    from scipy.stats import rankdata

    ranks = rankdata(values, axis=0)
    n, m = int(unsafe.sum()), int((~unsafe).sum())
    area = (ranks[unsafe].sum(0) - n * (n + 1) / 2) / (n * m)
    return np.where(np.isnan(values).any(0), np.nan, area)


def effect_size(values: np.ndarray, unsafe: np.ndarray) -> np.ndarray:
    """Cohen's d, [cell]: difference of the means (unsafe − safe) over the pooled standard deviation.

    Not corrected for small samples (Hedges' g is smaller by about 3/(4n)). Infinite where both classes are constant and
    differ; NaN where they are constant and equal.
    """
    a, b = values[unsafe], values[~unsafe]
    pooled = ((len(a) - 1) * a.var(0, ddof=1) + (len(b) - 1) * b.var(0, ddof=1)) / (len(a) + len(b) - 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (a.mean(0) - b.mean(0)) / np.sqrt(pooled)


def bootstrap_weights(unsafe: np.ndarray, pairs: np.ndarray, *, resamples: int, seed: int) -> np.ndarray:
    """How often each prompt is drawn, [resample, prompt], float64; see `bootstrap_counts`."""
    return bootstrap_counts(unsafe, pairs, resamples=resamples, seed=seed).astype(np.float64)


def bootstrap_counts(unsafe: np.ndarray, pairs: np.ndarray, *, resamples: int, seed: int) -> np.ndarray:
    """How often each prompt is drawn, [resample, prompt], in the narrowest whole numbers.

    Stratified: every resample holds as many prompts of each class as the data. The prompts of a unit, such as a pair,
    are drawn together. `pairs` names the unit of each prompt, an empty string where it is alone.
    """
    rng = np.random.default_rng(seed)
    groups = [np.array(stratum) for stratum in strata(pairs, unsafe.tolist())]  # unit, prompt of the unit
    counts = np.zeros((resamples, len(unsafe)), dtype=np.min_scalar_type(max(map(len, groups), default=0)))
    for units_of in groups:
        n = len(units_of)
        for some in _blocks(resamples, n):
            counts[some, units_of] = rng.multinomial(n, np.full(n, 1 / n), size=len(counts[some]))[:, :, None]
    return counts


def bootstrap_difference(values: np.ndarray, unsafe: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval (95 %) of the difference of means, unsafe − safe: low and high, [cell] each.

    `weights` are from `bootstrap_counts` or `bootstrap_weights`; the same ones for all cells keep their dependence.
    """
    low, high = np.empty(values.shape[1]), np.empty(values.shape[1])
    for cells in _blocks(values.shape[1], len(weights)):
        means = [weighted_sums(weights, side, values[:, cells]) / side.sum() for side in (unsafe, ~unsafe)]
        low[cells], high[cells] = percentile_interval(means[0] - means[1])
    return low, high


def weighted_sums(weights: np.ndarray, side: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Sum of the values of the prompts of one side, each as often as it is drawn, [resample, cell]."""
    found, of = np.empty((len(weights), values.shape[1])), values[side]
    for some in _blocks(len(weights), len(side)):
        found[some] = weights[some][:, side].astype(np.float64) @ of
    return found


def percentile_interval(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The middle 95 % of bootstrap samples along the first axis; NaN without samples."""
    if not len(samples):
        return np.full(samples.shape[1:], np.nan), np.full(samples.shape[1:], np.nan)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(samples, [tail, 1 - tail], axis=0)
    return low, high


@dataclass(frozen=True, eq=False)
class Shuffles:
    """Labels shuffled over all prompts, 1 for unsafe.

    Attributes:
        bits: [permutation / 8, prompt]: eight shuffles in a byte.
        count: How many shuffles.
    """

    bits: np.ndarray
    count: int

    def __len__(self) -> int:
        return self.count

    def labels(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """The shuffles `start:stop`, [permutation, prompt]."""
        stop = self.count if stop is None else min(stop, self.count)
        whole = np.unpackbits(self.bits[start // BYTE : -(-stop // BYTE)], axis=0)
        return whole[start % BYTE :][: stop - start]


def permutation_p(values: np.ndarray, unsafe: np.ndarray, shuffles: Shuffles) -> np.ndarray:
    """One-sided permutation test of each cell: is the mean on unsafe prompts above that on safe ones?

    Args:
        values: [prompt, cell].
        unsafe: [prompt].
        shuffles: From `shuffled_labels`; the same ones for all cells keep their dependence.

    Returns:
        (1 + b) / (1 + permutations), b the shuffles with at least the observed difference: exactly valid, never 0;
        [cell]. NaN without permutations.
    """
    if not len(shuffles):
        return np.full(values.shape[1], np.nan)
    # With fixed class sizes the sum over the unsafe prompts orders shuffles as the difference of means does.
    scale = np.abs(values).sum(0)
    least = values[unsafe].sum(0) - 1e-12 * scale  # rounding must not decide a tie
    reached = np.zeros(values.shape[1], dtype=int)
    for some in _blocks(len(shuffles), max(values.shape)):
        reached += (shuffles.labels(some.start, some.stop).astype(np.float64) @ values >= least).sum(0)
    return (1 + reached) / (1 + len(shuffles))


def shuffled_labels(
    unsafe: np.ndarray, pairs: np.ndarray, *, permutations: int, seed: int, contents: np.ndarray | None = None
) -> Shuffles:
    """Labels shuffled over all prompts, a bit each.

    Those of a unit stay together: a unit of one label is shuffled among units of its size; in a unit of both labels,
    such as a pair, they are shuffled within it.

    Args:
        unsafe: [prompt].
        pairs: [prompt], the unit of each prompt; empty where it is alone.
        permutations: How many shuffles.
        seed: Of the shuffles.
        contents: [prompt], equal for prompts that ask the same, whose labels then move together within a unit.
    """
    rng = np.random.default_rng(seed)
    bits = np.tile(np.where(unsafe, 255, 0).astype(np.uint8), (-(-permutations // BYTE), 1))
    twins, movable = _exchangeable(unsafe, pairs, contents)
    for rows, some in _bytes_of(permutations, len(twins)):  # what is drawn is wider than what is kept
        first = rng.integers(0, 2, size=(rows, len(twins)))
        bits[some, twins[:, 0]] = np.packbits(first, axis=0)
        bits[some, twins[:, 1]] = np.packbits(1 - first, axis=0)
    for blocks in movable:  # [block, prompt of the block]
        own = unsafe[blocks[:, 0]].astype(np.uint8)
        for rows, some in _bytes_of(permutations, len(own)):
            drawn = np.packbits(rng.permuted(np.tile(own, (rows, 1)), axis=1), axis=0)
            bits[some, blocks] = drawn[:, :, None]
    return Shuffles(bits, permutations)


def _exchangeable(
    unsafe: np.ndarray, pairs: np.ndarray, contents: np.ndarray | None
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Pairs of one unsafe and one safe prompt, [twins, 2]; and sets of blocks that may change labels, [block, prompt].

    A prompt whose own question is labelled both ways keeps its label in every shuffle: it tells nothing.
    """
    twins: list[list[int]] = []
    within: list[np.ndarray] = []
    by_size: dict[int, list[list[int]]] = {}
    for members in units(pairs):
        if len({bool(unsafe[i]) for i in members}) == 1:
            by_size.setdefault(len(members), []).append(members)
        elif len(members) == 2 and (contents is None or not contents[members[0]] or len(set(contents[members])) == 2):
            twins.append(members)
        else:
            blocks: dict[int, list[list[int]]] = {}
            for same in units([""] * len(members) if contents is None else contents[members]):
                block = [members[k] for k in same]
                if len({bool(unsafe[i]) for i in block}) == 1:
                    blocks.setdefault(len(block), []).append(block)
            within += [np.array(alike) for alike in blocks.values() if len(alike) > 1]
    across = [np.array(by_size[size]) for size in sorted(by_size)]
    return np.array(twins, dtype=int).reshape(-1, 2), across + within


def false_discovery(p: np.ndarray) -> np.ndarray:
    """Benjamini-Hochberg q-values over all cells with a p-value; NaN where there is none."""
    from scipy.stats import false_discovery_control

    q = np.full(p.shape, np.nan)
    tested = ~np.isnan(p)
    if tested.any():
        q[tested] = false_discovery_control(p[tested], method="bh")
    return q


def rate_interval(hits: np.ndarray | int, of: np.ndarray | int) -> tuple[np.ndarray, np.ndarray]:
    """Exact binomial interval (Clopper-Pearson, 95 %) of rates hits/of: low and high; NaN where nothing counts.

    Exact rather than bootstrapped: a bootstrap of 30 hits out of 30 would claim no uncertainty at all.
    """
    from scipy.special import betaincinv

    hits, of = np.asarray(hits, dtype=float), np.asarray(of, dtype=float)
    tail = (1 - CONFIDENCE) / 2
    with np.errstate(invalid="ignore"):
        low = np.where(hits > 0, betaincinv(np.maximum(hits, 1), of - hits + 1, tail), 0.0)
        high = np.where(hits < of, betaincinv(hits + 1, np.maximum(of - hits, 1), 1 - tail), 1.0)
    return np.where(of > 0, low, np.nan), np.where(of > 0, high, np.nan)


def auroc_interval(
    values: np.ndarray, unsafe: np.ndarray, pairs: np.ndarray, *, resamples: int, seed: int
) -> tuple[float, float]:
    """Bootstrap interval (95 %) of one AUROC, stratified by class with units kept together; `values` is [prompt]."""
    weights = bootstrap_weights(unsafe, pairs, resamples=resamples, seed=seed)
    low, high = percentile_interval(resampled_auroc(values, unsafe, weights))
    return float(low), float(high)


def resampled_auroc(values: np.ndarray, unsafe: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUROC with each prompt counted as often as a resample draws it, [resample]; NaN where it draws none of a label.

    Counts are whole and ties count half, so the sums are exact, in whatever order.

    Args:
        values: [prompt].
        unsafe: [prompt].
        weights: [resample, prompt].
    """
    if not len(weights):
        return np.empty(0)
    order = np.argsort(values, kind="stable")
    levels = np.flatnonzero(np.diff(values[order], prepend=np.nan) != 0)  # where a new value begins
    attack, benign = (np.add.reduceat(weights[:, order] * of[order], levels, axis=1) for of in (unsafe, ~unsafe))
    above = attack * (np.cumsum(benign, axis=1) - benign / 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(above.sum(1) / (attack.sum(1) * benign.sum(1)))


def _blocks(cells: int, rows: int) -> list[slice]:
    """Slices of `cells`, such that a block of rows × cells stays small."""
    width = max(1, NUMBERS_AT_ONCE // max(rows, 1))
    return [slice(start, start + width) for start in range(0, cells, width)]


def _bytes_of(permutations: int, columns: int) -> Iterator[tuple[int, slice]]:
    """Some permutations after the other: how many, and the slice of bytes that hold them."""
    for block in _blocks(-(-permutations // BYTE), BYTE * columns):
        yield min(BYTE * block.stop, permutations) - BYTE * block.start, block
