"""What several studies measure: heads chosen on one split, a threshold from another, separation on the third."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
import xarray as xr

from workbench.axes import Head, head_pairs
from workbench.criteria import get_criterion, score, statistics, top_heads
from workbench.criteria.detection import decision_values
from workbench.criteria.ranking import anchor_rule
from workbench.detectors.calibration import densities_cross
from workbench.errors import CriterionError
from workbench.models.hooked import HookedLVLM
from workbench.runs.pairs import tie_names
from workbench.runs.reading import FEWEST_PROMPTS, prompt_coord
from workbench.runs.splits import in_split

BOOTSTRAP, PERMUTATIONS = 1000, 2000
SHOWN = {"auroc": "AUROC", "detection_rate": "unsafe flagged", "false_positive_rate": "safe flagged"}


@dataclass(frozen=True, eq=False)
class Chosen:
    """Heads that a rule chose on the selection prompts of a run, and their values on all prompts.

    Attributes:
        run: With splits.
        heads: Best first.
        values: As strengths, larger = more unsafe: [prompt, head].
        seed: Of resamples and shuffles.
    """

    run: xr.Dataset
    heads: tuple[Head, ...]
    values: np.ndarray
    seed: int

    @classmethod
    def of(
        cls,
        run: xr.Dataset,
        *,
        criterion: str = "deflection",
        rule: str | None = None,
        projection: str = "query",
        k: int = 1,
        seed: int = 0,
        among: np.ndarray | None = None,
        without: Sequence[Head] = (),
    ) -> Self:
        """The first `k` heads, or as many as the rule keeps.

        Args:
            among: Prompts that the choice may see, [prompt]; the selection split by default.
            without: Heads that are not to be chosen.
        """
        record = get_criterion(criterion)
        rule = rule or anchor_rule(record)
        part = run.isel(prompt=np.flatnonzero(in_split(run, "selection") if among is None else among))
        scores = score(part.drop_vars("split"), (criterion,), bootstrap=0, permutations=0, seed=seed)
        projection = projection if projection in set(scores["projection"]) else str(scores["projection"].iloc[0])
        scores = scores[[head not in set(without) for head in head_pairs(scores)]]
        heads = tuple(head_pairs(_as_many(scores, criterion, rule, projection, k, seed)))
        return cls.at(run, heads, criterion=criterion, projection=projection, seed=seed)

    @classmethod
    def at(
        cls,
        run: xr.Dataset,
        heads: Sequence[Head],
        *,
        criterion: str = "deflection",
        projection: str = "query",
        seed: int = 0,
    ) -> Self:
        """Heads that were chosen elsewhere, with their values in this run."""
        by_head = decision_values(run, get_criterion(criterion)).sel(projection=projection)
        values = np.stack([by_head.sel(layer=layer, head=head).values for layer, head in heads], axis=1)
        return cls(run, tuple(heads), values.astype(np.float64), seed)

    @property
    def value(self) -> np.ndarray:
        """Of the first head, [prompt]."""
        return self.values[:, 0]

    def threshold(self, values: np.ndarray | None = None) -> float:
        """Where the densities of the threshold prompts cross, as published; NaN where the values have none."""
        values = self.value if values is None else values
        return crossing(values, self.run, in_split(self.run, "threshold"))


def _as_many(scores: pd.DataFrame, criterion: str, rule: str, projection: str, k: int, seed: int) -> pd.DataFrame:
    how: dict[str, Any] = {"criterion": criterion, "rule": rule, "projection": projection, "seed": seed}
    try:
        return top_heads(scores, k=k, **how)
    except CriterionError:
        if k == 1:
            raise
        for fewer in range(k - 1, 1, -1):
            try:
                return top_heads(scores, k=fewer, **how)
            except CriterionError:
                continue
        return top_heads(scores, k=1, **how)


@dataclass(frozen=True, eq=False)
class Sources:
    """A run over kinds of unsafe prompts: data sets, sources of one, or families of one source.

    Attributes:
        run: With splits.
        kind: Of each prompt, [prompt].
        by: What they are: set, source or family.
    """

    run: xr.Dataset
    kind: np.ndarray
    by: str

    @property
    def names(self) -> list[str]:
        """The kinds that have unsafe prompts, in order of names."""
        return sorted(set(self.kind[is_unsafe(self.run)]) - {""})

    def of(self, name: str) -> np.ndarray:
        """The unsafe prompts of a kind and the safe ones to hold them against, [prompt]: its own, where it has some
        in every split and is a data set; all of them otherwise.
        """
        unsafe, mine = is_unsafe(self.run), self.kind == name
        own = mine & ~unsafe
        splits = [in_split(self.run, part) for part in ("selection", "threshold", "test")]
        enough = self.by != "family" and all((own & of).sum() >= FEWEST_PROMPTS for of in splits)
        return np.asarray((unsafe & mine) | (own if enough else ~unsafe))


def crossing(values: np.ndarray, run: xr.Dataset, among: np.ndarray) -> float:
    """The published threshold from the prompts `among`, [prompt]; NaN where no density can be had."""
    unsafe = is_unsafe(run)
    try:
        return densities_cross(values[among & unsafe], values[among & ~unsafe])[0]
    except CriterionError:
        return float("nan")


def is_unsafe(run: xr.Dataset) -> np.ndarray:
    return prompt_coord(run, "label") == "unsafe"


def separations(values: np.ndarray, run: xr.Dataset, among: np.ndarray | None = None, *, seed: int) -> pd.DataFrame:
    """How well each column of values tells unsafe prompts from safe ones, on the test prompts or those `among`.

    Args:
        values: [prompt, column], larger = more unsafe.

    Returns:
        One row a column: `auroc` with its 95 % interval `ci_low` and `ci_high` (bootstrap, ties kept), `p_value`
        (permutation of labels, one-sided, ties kept), `n`. NaN where one label is missing or a value is.
    """
    among = in_split(run, "test") if among is None else among
    part, values = run.coords.to_dataset().isel(prompt=np.flatnonzero(among)), values[among]
    unsafe, pairs, rows = is_unsafe(part), tie_names(part), []
    known = np.isfinite(values).all(0) & (0 < unsafe.sum() < len(unsafe))
    p = np.full(values.shape[1], np.nan)
    if known.any():
        contents = prompt_coord(part, "content")
        shuffles = statistics.shuffled_labels(unsafe, pairs, permutations=PERMUTATIONS, seed=seed, contents=contents)
        p[known] = statistics.permutation_p(values[:, known], unsafe, shuffles)
    for column, there in enumerate(known):
        of = values[:, column]
        area, ends = np.nan, (np.nan, np.nan)
        if there:
            area = statistics.auroc(of[:, None], unsafe)[0]
            ends = statistics.auroc_interval(of, unsafe, pairs, resamples=BOOTSTRAP, seed=seed)
        rows.append((float(area), float(ends[0]), float(ends[1]), float(p[column]), int(among.sum())))
    return pd.DataFrame(rows, columns=["auroc", "ci_low", "ci_high", "p_value", "n"])


def of_area(area: Any) -> dict[str, Any]:
    """A row of `separations` as a measurement: value, ci_low, ci_high, n."""
    return {"value": area["auroc"], "ci_low": area["ci_low"], "ci_high": area["ci_high"], "n": int(area["n"])}


def rate(flagged: np.ndarray) -> dict[str, float]:
    """A share with its exact 95 % interval: value, ci_low, ci_high, n; NaN without any."""
    hits, n = int(np.sum(flagged)), len(flagged)
    low, high = statistics.rate_interval(hits, n)
    return {"value": hits / n if n else np.nan, "ci_low": float(low), "ci_high": float(high), "n": n}


def flagged(values: np.ndarray, threshold: float, run: xr.Dataset, *, by_family: bool = False) -> list[dict[str, Any]]:
    """Shares of the test prompts over a threshold: of the unsafe ones, by family too if wanted, and of the safe ones.

    Returns:
        Rows of `measure`, with `by_family` the `family` (or all), and what `rate` gives; none without a threshold.
    """
    if not np.isfinite(threshold):
        return []
    unsafe, test = is_unsafe(run), in_split(run, "test")
    groups = {("detection_rate", "all"): test & unsafe}
    for family in families(run) if by_family else ():
        groups["detection_rate", family] = test & unsafe & (prompt_coord(run, "family") == family)
    groups["false_positive_rate", "all"] = test & ~unsafe
    return [
        {"measure": measure, **({"family": family} if by_family else {}), **rate(values[of] > threshold)}
        for (measure, family), of in groups.items()
    ]


def mean_of(values: np.ndarray, ties: np.ndarray, *, seed: int) -> dict[str, float]:
    """A mean with its 95 % bootstrap interval, ties drawn whole: value, ci_low, ci_high, n; NaN without any."""
    if not len(values):
        return {"value": np.nan, "ci_low": np.nan, "ci_high": np.nan, "n": 0}
    weights = statistics.bootstrap_weights(np.ones(len(values), dtype=bool), ties, resamples=BOOTSTRAP, seed=seed)
    low, high = statistics.percentile_interval(weights @ values / weights.sum(1))
    return {"value": float(np.mean(values)), "ci_low": float(low), "ci_high": float(high), "n": len(values)}


def families(run: xr.Dataset, *, by: str = "family", label: str = "unsafe") -> list[str]:
    """The named families (or sources, categories) of prompts of a label, in order of names."""
    return sorted(set(prompt_coord(run, by)[prompt_coord(run, "label") == label]) - {""})


def span(row: Any) -> str:
    """`0.87 (0.80 to 0.93)`, of a row with value or auroc and its interval."""
    value = row["value"] if "value" in row else row["auroc"]
    if not np.isfinite(value):
        return "not known"
    ends = f" ({row['ci_low']:.2f} to {row['ci_high']:.2f})" if np.isfinite(row["ci_low"]) else ""
    return f"{value:.2f}{ends}"


def percent(row: Any) -> str:
    """`87 % (80 to 93)`, of a share."""
    if not np.isfinite(row["value"]):
        return "not known"
    return f"{100 * row['value']:.0f} % ({100 * row['ci_low']:.0f} to {100 * row['ci_high']:.0f})"


def listed(words: Sequence[str]) -> str:
    """`a, b and c`."""
    words = list(words)
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def names_of(models: Sequence[HookedLVLM]) -> list[str]:
    """Names of models, numbered where several have the same."""
    names = [model.name for model in models]
    return [name if names.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(names, 1)]
