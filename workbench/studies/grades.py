"""Risk grades of prompts, and whether a value grows with them.

A grade is what the name of a category or family declares: a number after `grade`, `level`, `risk`, `severity` or `eps`,
the strength of an adversarial picture (`visualadv_32`), or one of the words low, medium, high. Where none is declared,
grades are the ladder that every set with pairs has: safe prompts without an unsafe twin, safe twins, unsafe prompts.
"""

import re

import numpy as np
import xarray as xr

from workbench.runs.reading import prompt_coord
from workbench.studies.measuring import PERMUTATIONS, is_unsafe

LADDER = ("safe, no twin", "safe twin", "unsafe")
_DECLARED = re.compile(r"(?:grade|level|risk|severity|eps|visualadv|bap)[ _=:-]*(\d+(?:\.\d+)?)$", re.IGNORECASE)
_UNBOUND = re.compile(r"(?:visualadv|bap)[ _=:-]*unconstrained$", re.IGNORECASE)
_WORDS = {"low": 1.0, "medium": 2.0, "high": 3.0}


def declared_grade(name: str) -> float:
    """The grade that the name of a category or family declares; NaN where it declares none.

    Examples:
        >>> from workbench.studies.grades import declared_grade
        >>> declared_grade("visualadv_32"), declared_grade("risk: 2"), declared_grade("high"), declared_grade("fraud")
        (32.0, 2.0, 3.0, nan)
    """
    if _UNBOUND.search(name):
        return float("inf")
    found = _DECLARED.search(name)
    return float(found.group(1)) if found else _WORDS.get(name.casefold(), float("nan"))


def risk_grades(run: xr.Dataset) -> tuple[np.ndarray, dict[float, str]]:
    """The risk grade of every prompt, [prompt], NaN for one without; and the names of the grades, lowest first."""
    unsafe = is_unsafe(run)
    for field in ("category", "family"):
        names = prompt_coord(run, field)
        grades = np.array(
            [declared_grade(str(name)) if bad else np.nan for name, bad in zip(names, unsafe, strict=True)]
        )
        levels = sorted(set(grades[~np.isnan(grades)]))
        if len(levels) > 1:
            return grades, {level: str(names[grades == level][0]) for level in levels}
    pairs = prompt_coord(run, "pair_id")
    twin = ~unsafe & np.isin(pairs, sorted(set(pairs[unsafe]) - {""}))
    ladder = np.where(unsafe, 2.0, np.where(twin, 1.0, 0.0))
    return ladder, {level: LADDER[int(level)] for level in sorted(set(ladder))}


def trend(values: np.ndarray, grades: np.ndarray, units: np.ndarray, *, seed: int) -> tuple[float, float]:
    """Spearman's correlation of values with grades, and its one-sided p-value; NaN where nothing varies.

    Grades are shuffled within units (pairs, repeated questions) that hold several, and among the prompts of all others,
    which is what chance could do to them.

    Args:
        values: [prompt].
        grades: [prompt].
        units: Names, [prompt]; empty for a prompt on its own.
        seed: Of the shuffles.
    """
    from scipy.stats import rankdata

    ranks, steps = rankdata(values), rankdata(grades)
    if len(values) < 3 or np.ptp(ranks) == 0 or np.ptp(steps) == 0:
        return float("nan"), float("nan")
    ranks -= ranks.mean()
    scale = float(np.sqrt((ranks**2).sum()) * steps.std() * len(steps) ** 0.5)
    found = float(ranks @ steps) / scale
    members = [np.flatnonzero(units == name) for name in sorted(set(units) - {""})]
    mixed = [of for of in members if np.ptp(steps[of])]
    others = np.setdiff1d(np.arange(len(steps)), np.concatenate([np.empty(0, dtype=int), *mixed]))
    rng, drawn, above = np.random.default_rng(seed), steps.copy(), 0
    for _ in range(PERMUTATIONS):
        drawn[others] = rng.permutation(steps[others])
        for of in mixed:
            drawn[of] = rng.permutation(steps[of])
        above += float(ranks @ drawn) / scale >= found - 1e-12
    return found, (above + 1) / (PERMUTATIONS + 1)
