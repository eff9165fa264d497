"""Statistics of all heads at once: AUROC, effect size, bootstrap intervals, permutation tests, false discoveries.

Arrays are [prompt, cell]: a cell is one head under one projection. Everything random takes a seed.
"""

import numpy as np

from workbench.runs.pairs import strata

CONFIDENCE = 0.95
NUMBERS_AT_ONCE = 2**24  # of float64 in a resampling block: 128 MB


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
    """How often each prompt is drawn, [resample, prompt].

    Stratified: every resample holds as many prompts of each class as the data. The prompts of a pair are drawn
    together. `pairs` holds empty strings where a prompt has no twin.
    """
    rng = np.random.default_rng(seed)
    weights = np.zeros((resamples, len(unsafe)))
    for stratum in strata(pairs, unsafe.tolist()):
        drawn = rng.multinomial(len(stratum), np.full(len(stratum), 1 / len(stratum)), size=resamples)
        for column, members in enumerate(stratum):
            weights[:, members] = drawn[:, [column]]
    return weights


def class_means(values: np.ndarray, unsafe: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over the unsafe and over the safe prompts under each resample: two arrays [resample, cell]."""
    means = []
    for side in (unsafe, ~unsafe):
        part = weights[:, side]
        means.append((part @ values[side]) / part.sum(1, keepdims=True))
    return means[0], means[1]


def bootstrap_difference(
    values: np.ndarray, unsafe: np.ndarray, pairs: np.ndarray, *, resamples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval (95 %) of the difference of means, unsafe − safe: low and high, [cell] each."""
    weights = bootstrap_weights(unsafe, pairs, resamples=resamples, seed=seed)
    low, high = np.empty(values.shape[1]), np.empty(values.shape[1])
    for cells in _blocks(values.shape[1], resamples):
        of_unsafe, of_safe = class_means(values[:, cells], unsafe, weights)
        low[cells], high[cells] = percentile_interval(of_unsafe - of_safe)
    return low, high


def percentile_interval(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The middle 95 % of bootstrap samples along the first axis; NaN without samples."""
    if not len(samples):
        return np.full(samples.shape[1:], np.nan), np.full(samples.shape[1:], np.nan)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(samples, [tail, 1 - tail], axis=0)
    return low, high


def permutation_p(
    values: np.ndarray, unsafe: np.ndarray, pairs: np.ndarray, *, permutations: int, seed: int
) -> np.ndarray:
    """One-sided permutation test of each cell: is the mean on unsafe prompts above that on safe ones?

    Labels are shuffled over all prompts; where a pair holds one unsafe and one safe prompt, they are swapped within the
    pair instead. All cells see the same shuffles, so that their dependence is kept.

    Returns:
        (1 + b) / (1 + permutations), b the shuffles with at least the observed difference: exactly valid, never 0;
        [cell].
    """
    shuffles = _shuffled_labels(unsafe, pairs, permutations, np.random.default_rng(seed))
    # With fixed class sizes the sum over the unsafe prompts orders shuffles as the difference of means does.
    scale = np.abs(values).sum(0)
    observed = values[unsafe].sum(0)
    p = np.empty(values.shape[1])
    for cells in _blocks(values.shape[1], permutations):
        sums = shuffles @ values[:, cells]
        reached = sums >= observed[cells] - 1e-12 * scale[cells]  # rounding must not decide a tie
        p[cells] = (1 + reached.sum(0)) / (1 + permutations)
    return p


def _shuffled_labels(unsafe: np.ndarray, pairs: np.ndarray, permutations: int, rng: np.random.Generator) -> np.ndarray:
    """Shuffled labels as 0 and 1, [permutation, prompt]."""
    labels = np.zeros((permutations, len(unsafe)))
    members: dict[str, list[int]] = {}
    for index, pair in enumerate(pairs):
        if pair:
            members.setdefault(pair, []).append(index)
    twins = np.array([m for m in members.values() if len(m) == 2 and unsafe[m[0]] != unsafe[m[1]]], dtype=int).reshape(
        -1, 2
    )
    first = rng.integers(0, 2, size=(permutations, len(twins)))
    labels[:, twins[:, 0]] = first
    labels[:, twins[:, 1]] = 1 - first
    others = np.setdiff1d(np.arange(len(unsafe)), twins)
    labels[:, others] = rng.permuted(np.tile(unsafe[others].astype(float), (permutations, 1)), axis=1)
    return labels


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
    """Bootstrap interval (95 %) of one AUROC, stratified by class with pairs kept together; `values` is [prompt]."""
    weights = bootstrap_weights(unsafe, pairs, resamples=resamples, seed=seed)
    above = (values[unsafe][:, None] > values[~unsafe]) + 0.5 * (values[unsafe][:, None] == values[~unsafe])
    w, v = weights[:, unsafe], weights[:, ~unsafe]
    areas = np.einsum("ru,us,rs->r", w, above, v, optimize=True) / (w.sum(1) * v.sum(1))
    low, high = percentile_interval(areas)
    return float(low), float(high)


def _blocks(cells: int, rows: int) -> list[slice]:
    """Slices of cells, such that a block of rows × cells stays small."""
    width = max(1, NUMBERS_AT_ONCE // max(rows, 1))
    return [slice(start, start + width) for start in range(0, cells, width)]
