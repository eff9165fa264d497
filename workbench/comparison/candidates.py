"""The detectors that a breakdown compares: heads chosen on one split, a threshold from another, values for all prompts.

Several heads detect by the mean of their values; several probed heads by one logistic regression on their outputs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import xarray as xr

from workbench.axes import Head, head_names
from workbench.criteria import get_criterion, score, statistics, top_heads
from workbench.criteria.detection import Decisions
from workbench.criteria.logistic import fit_logistic
from workbench.criteria.registry import TRAINED, Criterion
from workbench.criteria.thresholds import kde_threshold
from workbench.detectors.detector import head_pairs
from workbench.detectors.sahs import features
from workbench.errors import CriterionError
from workbench.runs.pairs import unit_names
from workbench.runs.reading import prompt_coord
from workbench.runs.splits import in_split

KEYS = ("criterion", "rule", "projection", "n_heads")


@dataclass(frozen=True, eq=False)
class Candidate:
    """One detector of the breakdown, with its decision value for every prompt of the run.

    Attributes:
        key: criterion, rule, projection and number of heads.
        heads: Best first.
        values: [prompt], higher = more unsafe.
        threshold: In the unit of the values.
        resampled: AUROC, pooled and matched, on the test prompts as they are and then under bootstrap weights that all
            candidates share: [measure, 1 + resample].
    """

    key: tuple[str, str, str, int]
    heads: tuple[Head, ...]
    values: np.ndarray
    threshold: float
    resampled: np.ndarray

    @property
    def about(self) -> dict[str, object]:
        """What its rows in the breakdown have in common."""
        return {**dict(zip(KEYS, self.key, strict=True)), "heads": head_names(self.heads), "threshold": self.threshold}


def candidates(
    run: xr.Dataset,
    criteria: Sequence[str],
    rules: Sequence[str],
    n_heads: Sequence[int],
    bootstrap: int,
    seed: int,
    left_out: list[str],
) -> Iterator[Candidate]:
    """Every combination that gives a detector; why the others do not is added to `left_out`.

    Args:
        run: With splits (`workbench.runs.splits.with_splits`).
    """
    scores = score(run, tuple(criteria), bootstrap=0, permutations=0, seed=seed)
    test, calibration = in_split(run, "test"), in_split(run, "threshold")
    unsafe = prompt_coord(run, "label") == "unsafe"
    family, pairs = prompt_coord(run, "family")[test], unit_names(run)[test]
    weights = statistics.bootstrap_weights(unsafe[test], pairs, resamples=bootstrap, seed=seed)
    weights = np.concatenate([np.ones((1, len(pairs))), weights])  # the prompts as they are, then the resamples
    for name in criteria:
        criterion = get_criterion(name)
        by_head = Decisions(run, criterion)
        projections = dict.fromkeys(scores.loc[scores["criterion"] == name, "projection"])
        for rule, projection, k in product(rules, projections, n_heads):
            if rule not in criterion.rules:
                continue
            try:
                top = top_heads(scores, criterion=name, rule=rule, projection=projection, k=k, seed=seed)
                heads = tuple(head_pairs(top))
                values = _values(run, criterion, by_head, projection, heads)
                threshold = kde_threshold(values[calibration & unsafe], values[calibration & ~unsafe]).value
            except CriterionError as error:
                left_out.append(f"{name} × {rule} × {projection} × {k}: {error}")
                continue
            areas = resampled_areas(values[test], unsafe[test], family, weights)
            yield Candidate((name, rule, projection, k), heads, values, threshold, areas)


def _values(
    run: xr.Dataset, criterion: Criterion, by_head: Decisions, projection: str, heads: Sequence[Head]
) -> np.ndarray:
    """Decision values of some heads together, [prompt]."""
    if criterion.kind == TRAINED and criterion.needs == ("head_output",) and len(heads) > 1:
        z, train = features(run, heads), in_split(run, "selection").astype(float)
        coef, intercept = fit_logistic(z, prompt_coord(run, "label") == "unsafe", weight=train)
        return z @ coef + intercept
    columns = [by_head.of(projection, layer, head).values for layer, head in heads]
    if len(columns[0]) < run.sizes["prompt"]:
        raise CriterionError(
            f"Criterion {criterion.name!r} has no meaning for some prompts, which need a decision too."
        )
    return np.mean(columns, axis=0)


def resampled_areas(values: np.ndarray, unsafe: np.ndarray, family: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUROC under each resample, [2, resample]: pooled, and matched (mean over the families that have both labels).

    Matched is NaN where no family has both, or a resample draws none of a label in one of them.
    """
    matched = [
        _area(values, unsafe & (family == name), ~unsafe & (family == name), weights)
        for name in sorted(set(family[unsafe]) & set(family[~unsafe]) - {""})
    ]
    pooled = _area(values, unsafe, ~unsafe, weights)
    if not matched:
        return np.stack([pooled, np.full(len(weights), np.nan)])
    with np.errstate(invalid="ignore"):
        families = np.stack(matched)
        present = np.isfinite(families)
        mean = np.where(present, families, 0).sum(0) / present.sum(0)
    return np.stack([pooled, mean])


def _area(values: np.ndarray, attack: np.ndarray, benign: np.ndarray, weights: np.ndarray) -> np.ndarray:
    of = attack | benign
    return statistics.resampled_auroc(values[of], attack[of], weights[:, of])
