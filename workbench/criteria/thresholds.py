"""From two clouds of values to a threshold, and how well a threshold at a given false-positive rate does."""

from dataclasses import dataclass

import numpy as np

from workbench.errors import CriterionError
from workbench.runs.reading import FEWEST_PROMPTS

GRID = 1000  # points at which the published rule compares the densities
CANDIDATES = 3  # how many crossings it lists


@dataclass(frozen=True)
class Threshold:
    """A threshold for "unsafe if the value exceeds it", and how it was found.

    Attributes:
        value: In the unit of the values.
        method: `"crossing"`, or `"midpoint"` of the medians where the densities do not cross.
        balanced_accuracy: On the values it was found on, 0-1.
        candidates: The best crossings, (value, balanced accuracy), best first; at most three.
        welch_t: Welch's t of unsafe against safe; NaN where a class is constant.
        welch_p: Its two-sided p-value.
    """

    value: float
    method: str
    balanced_accuracy: float
    candidates: tuple[tuple[float, float], ...]
    welch_t: float
    welch_p: float


def kde_threshold(unsafe: np.ndarray, safe: np.ndarray) -> Threshold:
    """The threshold of Oh Defense, as its released code finds it.

    A Gaussian kernel density (scipy's default bandwidth) of each class is evaluated at 1000 points between the smallest
    and the largest value. Every sign change of their difference, placed by linear interpolation, is a candidate, and
    the one with the best balanced accuracy wins: 1 − (share of unsafe < τ + share of safe ≥ τ) / 2. No crossing: the
    midpoint of the medians.

    Args:
        unsafe: [prompt], per-prompt values on unsafe prompts.
        safe: [prompt], the same on safe ones.

    Raises:
        CriterionError: If a class has fewer than three values, a value is not finite, or all values are the same.

    Source:
        cirteo/Oh-Defense.
    """
    from scipy.stats import ttest_ind

    unsafe, safe = _checked(unsafe, "unsafe"), _checked(safe, "safe")
    if _constant(np.concatenate([unsafe, safe])):
        raise CriterionError(
            f"The {len(unsafe)} unsafe and {len(safe)} safe values are all {unsafe[0]:.6g}, and the density of a "
            "constant does not exist: no threshold parts them. Choose another head; all zeros mean that the mask "
            "changed nothing."
        )
    # A class of one repeated value has no density (the released code fails there), and so no crossing.
    spread = not (_constant(unsafe) or _constant(safe))
    crossings = _crossings(unsafe, safe) if spread else np.empty(0)
    scored = [(float(c), balanced_accuracy(unsafe, safe, float(c))) for c in crossings]
    scored.sort(key=lambda candidate: -candidate[1])
    t, p = ttest_ind(unsafe, safe, equal_var=False) if spread else (np.nan, np.nan)
    middle = float((np.median(unsafe) + np.median(safe)) / 2)
    value, accuracy = scored[0] if scored else (middle, balanced_accuracy(unsafe, safe, middle))
    method = "crossing" if scored else "midpoint"
    return Threshold(value, method, accuracy, tuple(scored[:CANDIDATES]), float(t), float(p))


def _crossings(unsafe: np.ndarray, safe: np.ndarray) -> np.ndarray:
    """Where the two densities cross, placed linearly between points of the grid."""
    from scipy.stats import gaussian_kde

    grid = np.linspace(min(unsafe.min(), safe.min()), max(unsafe.max(), safe.max()), GRID)
    difference = gaussian_kde(unsafe)(grid) - gaussian_kde(safe)(grid)
    at = np.flatnonzero(np.diff(np.sign(difference)))
    share = difference[at] / (difference[at] - difference[at + 1])
    return grid[at] + share * (grid[at + 1] - grid[at])


def _constant(values: np.ndarray) -> bool:
    return bool(np.ptp(values) <= 1e-12 * np.abs(values).max())


def balanced_accuracy(unsafe: np.ndarray, safe: np.ndarray, threshold: float) -> float:
    """1 − (share of unsafe under the threshold + share of safe at or over it) / 2."""
    return 1 - (float((unsafe < threshold).mean()) + float((safe >= threshold).mean())) / 2


def fpr_threshold(safe: np.ndarray, fpr: float) -> float:
    """The lowest of the safe values that at most a share `fpr` of them exceeds.

    Fewer than 1/fpr safe prompts cannot show such a rate: then the threshold is their largest value.
    """
    if not 0 <= fpr < 1:
        raise CriterionError(f"A false-positive rate is at least 0 and under 1; got {fpr!r}.")
    ordered = np.sort(_checked(safe, "safe"))
    allowed = int(np.floor(fpr * len(ordered) + 1e-9))
    return float(ordered[len(ordered) - 1 - allowed])


def tpr_at_fpr(unsafe: np.ndarray, safe: np.ndarray, fpr: float) -> float:
    """Share of unsafe values over the threshold that at most a share `fpr` of these safe values exceeds."""
    return float((_checked(unsafe, "unsafe") > fpr_threshold(safe, fpr)).mean())


def _checked(values: np.ndarray, name: str) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64).ravel()
    if len(values) < FEWEST_PROMPTS:
        raise CriterionError(
            f"A threshold needs at least {FEWEST_PROMPTS} {name} values; got {len(values)}. Use more {name} prompts."
        )
    if not np.isfinite(values).all():
        raise CriterionError(
            f"{int((~np.isfinite(values)).sum())} of {len(values)} {name} values are NaN or infinite, so no "
            "threshold is set. Was this head swept on every prompt?"
        )
    return values
