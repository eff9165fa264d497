"""What a detector is fitted on: prompts that choose heads, and prompts that set the threshold, never the same ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from workbench.axes import LABELS
from workbench.criteria.thresholds import balanced_accuracy, kde_threshold
from workbench.errors import DetectorError
from workbench.prompts.prompt import Prompt, PromptSet
from workbench.prompts.splits import check_splits, split_prompts
from workbench.runs.reading import FEWEST_PROMPTS, prompt_coord

HALVES = {"selection": 0.5, "threshold": 0.5}
FOLDS = 4  # halves of halves, so that folds are dealt as splits are: by label and family, pairs and pictures together


@dataclass(frozen=True)
class Parts:
    """The two parts of a calibration set.

    Attributes:
        selection: Prompts that heads are chosen on.
        threshold: Prompts that the threshold is set on; declared ones are none of `selection`, others are the same.
        how: For the record: declared by the prompts, or cross-fitted with a seed.
        fold: The fold of each prompt, [prompt]; the threshold is set on values of prompts by what was chosen on the
            other folds. Empty where the parts are declared.
    """

    selection: PromptSet
    threshold: PromptSet
    how: str
    fold: np.ndarray

    def record(self) -> dict[str, Any]:
        """What a stored detector says about its calibration set."""
        return {
            "split": self.how,
            "selection_prompts": [p.id for p in self.selection],
            "threshold_prompts": [p.id for p in self.threshold],
            "families": sorted({p.family for part in (self.selection, self.threshold) for p in part} - {""}),
        }


def calibration_parts(prompts: Sequence[Prompt], *, seed: int = 0) -> Parts:
    """The selection and the threshold part of a calibration set.

    Prompts that declare splits are used accordingly, and those declared `test` are left out. Where only one of the two
    parts is declared, or nothing is, all of them are used for both, by cross-fitting: their folds are stratified by
    label and family, pairs and pictures kept together, with a seed.

    Raises:
        DetectorError: If only some prompts declare a split, all are declared test, or a part has fewer than three
            prompts of a label.
        PromptError: If the declared splits overlap.
    """
    check_splits(prompts)
    declared = {p.split for p in prompts}
    if "" in declared and len(declared) > 1:
        count = sum(not p.split for p in prompts)
        raise DetectorError(
            f"{count} of {len(prompts)} prompts declare no split and the others do, so what belongs to the test is not "
            "known. Declare a split for all of them, or for none."
        )
    if declared == {"test"}:
        raise DetectorError(
            f"All {len(prompts)} prompts are declared test prompts, and a detector that has seen them cannot be tested "
            "on them. Fit it on the splits selection and threshold."
        )
    usable = PromptSet(p for p in prompts if p.split != "test")
    if not {"selection", "threshold"} <= declared:
        check_labels(usable, "A calibration set that declares no parts", at_least=2 * FEWEST_PROMPTS)
        halves = split_prompts(usable, fractions=HALVES, seed=seed).values()
        quarters = [part for half in halves for part in split_prompts(half, fractions=HALVES, seed=seed).values()]
        of = {p.id: number for number, quarter in enumerate(quarters) for p in quarter}
        fold = np.array([of[p.id] for p in usable])
        return Parts(usable, usable, f"cross-fitted in {FOLDS} folds, seed {seed}", fold)
    parts = Parts(usable.where(split="selection"), usable.where(split="threshold"), "declared", np.empty(0, dtype=int))
    for name in HALVES:
        check_labels(getattr(parts, name), f"The {name} part of a calibration set ({parts.how})")
    return parts


def stand_ins(run: xr.Dataset) -> PromptSet:
    """A run's prompts as far as it knows them: ids, labels, families, pairs and splits, without text or picture.

    Those that ask the same have the same stand-in for a text, so that they stay together. Those that share a picture
    but no pair may be parted where a split has to be made.
    """
    names = ("label", "source", "family", "category", "pair_id", "split")
    rows = zip(
        map(str, run["prompt"].values),
        prompt_coord(run, "content"),
        *(prompt_coord(run, name) for name in names),
        strict=True,
    )
    return PromptSet(
        Prompt(id=id_, text=content or id_, **dict(zip(names, row, strict=True))) for id_, content, *row in rows
    )


class Origin(NamedTuple):
    """What a stored run was measured on."""

    name: str
    weight_hash: str
    fingerprint: str


def origin_of(run: xr.Dataset) -> Origin:
    """The model of a run.

    Raises:
        DetectorError: If the run does not say which weights it was measured on.
    """
    if not run.attrs.get("weight_hash"):
        raise DetectorError(
            "This run does not say which weights it was measured on (no attribute 'weight_hash'), so a detector "
            "fitted on it could not be kept to them. Use a run that wb.sweep made."
        )
    return Origin(*(str(run.attrs.get(name, "")) for name in ("model", "weight_hash", "fingerprint")))


def rows_of(run: xr.Dataset, prompts: PromptSet) -> xr.Dataset:
    """The rows of a run that some of its prompts have."""
    wanted = {p.id for p in prompts}
    return run.isel(prompt=np.flatnonzero([str(id_) in wanted for id_ in run["prompt"].values]))


def check_labels(prompts: Sequence[Prompt], what: str, *, at_least: int = FEWEST_PROMPTS) -> None:
    """Refuse prompts that hold fewer than `at_least` of a label."""
    count = {label: sum(p.label == label for p in prompts) for label in LABELS}
    if min(count.values()) < at_least:
        raise DetectorError(
            f"{what} needs at least {at_least} prompts of each label; these {len(prompts)} hold "
            f"{' and '.join(f'{n} {label}' for label, n in count.items())}. Add prompts of the label that lacks them."
        )


def unsafe_array(prompts: Sequence[Prompt]) -> np.ndarray:
    """True where the prompt is labelled unsafe, shape [prompt]."""
    return np.array([p.label == "unsafe" for p in prompts], dtype=bool)


def calibrated(
    values: np.ndarray, parts: Parts, rule: str | float, stability: float | None
) -> tuple[float, dict[str, Any]]:
    """The threshold from the values [prompt] of the threshold part, and what is noted of it: how well it separates."""
    labels = unsafe_array(parts.threshold)
    unsafe, safe = values[labels], values[~labels]
    threshold, method = densities_cross(unsafe, safe) if rule == "kde" else (float(rule), "given")
    return threshold, {
        **parts.record(),
        "unsafe_median": float(np.median(unsafe)),
        "safe_median": float(np.median(safe)),
        "threshold_method": method,
        "stability": stability,
        "balanced_accuracy": balanced_accuracy(unsafe, safe, threshold),
    }


def densities_cross(unsafe: np.ndarray, safe: np.ndarray) -> tuple[float, str]:
    """The published threshold and how it was found.

    A class whose values are all the same has no density. If the other class lies wholly above or below it, the midpoint
    of the medians is taken, as published for densities that do not cross; otherwise that is an error.
    """
    constant = min(np.ptp(unsafe), np.ptp(safe)) == 0
    if constant and (unsafe.min() > safe.max() or unsafe.max() < safe.min()):
        return float(np.median(unsafe) + np.median(safe)) / 2, "midpoint, since a class is constant"
    found = kde_threshold(unsafe, safe)
    return found.value, f"kde {found.method}"
