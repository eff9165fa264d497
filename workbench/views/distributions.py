"""What pictures of single heads draw, in numbers: values on every prompt, densities, thresholds, ROC curves."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from workbench.axes import Head, as_heads, head_name
from workbench.checking import plainly
from workbench.criteria import get_criterion, prompt_values
from workbench.criteria.redraws import REDRAWS
from workbench.criteria.statistics import bootstrap_weights, percentile_interval
from workbench.criteria.thresholds import kde_threshold
from workbench.errors import CriterionError, FigureError
from workbench.runs.pairs import tie_names
from workbench.views import theme

FALSE_ALARMS = np.linspace(0, 1, 101)


@dataclass(frozen=True, repr=False)
class Distribution:
    """One head's value on every prompt.

    Attributes:
        table: One row a prompt with a finite value: `prompt, value, label, family`, and `row`, its place across the
            values: its family's number with a jitter (0 throughout where values are parted by label).
        families: From row 0 up; empty where values are parted by label.
        axis: Name and unit of the values.
        threshold: In that unit; NaN where there is none.
    """

    table: pd.DataFrame
    families: tuple[str, ...]
    axis: str
    threshold: float

    @property
    def ends(self) -> tuple[float, float]:
        """Of an axis that shows every value and the threshold, with room."""
        seen = np.append(self.table["value"], self.threshold)
        low, high = np.nanmin(seen), np.nanmax(seen)
        room = 0.06 * (high - low) or 0.5
        return float(low - room), float(high + room)

    def parts(self) -> Iterator[tuple[str, str, pd.DataFrame]]:
        """Words, colour and rows of each label."""
        for label, colour in theme.LABEL_COLOURS.items():
            part = self.table[self.table["label"] == label]
            yield f"{label} (n = {len(part)})", colour, part


def distribution(table: pd.DataFrame, *, axis: str, by: str = "label", threshold: float | None = None) -> Distribution:
    """Values parted `by` "label" or "family", from a table with the columns `prompt, value, label, family`."""
    if by not in ("label", "family"):
        raise FigureError(f"Distributions are drawn by 'label' or 'family'; got {by!r}.")
    table = table[np.isfinite(table["value"])].assign(row=0.0)
    families = sorted(set(table["family"])) if by == "family" else []
    for label in theme.LABEL_COLOURS if families else ():
        inside = table["label"] == label
        jitter = np.random.default_rng(0).uniform(-0.28, 0.28, int(inside.sum()))
        table.loc[inside, "row"] = table.loc[inside, "family"].map(families.index) + jitter
    return Distribution(table, tuple(families), axis, float("nan") if threshold is None else threshold)


def density(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places and a Gaussian kernel density scaled to height 1; empty for values without spread, which have none."""
    from scipy.stats import gaussian_kde

    if len(values) < 2 or np.ptp(values) == 0:
        return np.empty(0), np.empty(0)
    reach = 0.06 * np.ptp(values)
    at = np.linspace(values.min() - reach, values.max() + reach, 120)
    height = gaussian_kde(values)(at)
    return at, height / height.max()


def _values(run: xr.Dataset, criterion: str, projection: str, head: Head) -> xr.DataArray:
    """A criterion's value of one head on every prompt it has a meaning for, in its own unit."""
    values = prompt_values(run, get_criterion(criterion), head=head)
    shown = projection if projection in values["projection"].values else "none"
    return values.sel(projection=shown, layer=head[0], head=head[1])


def prompt_table(run: xr.Dataset, criterion: str, projection: str, *, head: Head) -> pd.DataFrame:
    """One row a prompt: `prompt, value` (of one head, in the criterion's unit), `label, family`."""
    values = _values(run, criterion, projection, head)
    named = {"prompt": values["prompt"].values, "value": values.values, "label": values["label"].values}
    family = values["family"].values if "family" in values.coords else ""
    return pd.DataFrame(named).assign(family=family).astype({"prompt": str, "label": str, "family": str})


def threshold(run: xr.Dataset, criterion: str, projection: str, *, head: Head) -> float | None:
    """The published threshold of one head: where the two densities cross, from the prompts of the split `threshold`.

    Without such a split, from all of them. None where there is no threshold: a class that is constant or too small, or
    a criterion of which larger is not stronger.
    """
    values = _values(run, criterion, projection, head)
    if "split" in values.coords and "threshold" in values["split"].values:
        values = values.isel(prompt=values["split"].values == "threshold")
    numbers = values.values
    if not np.array_equal(get_criterion(criterion).strength(numbers), numbers):
        return None
    unsafe = values["label"].values == "unsafe"
    try:
        return kde_threshold(numbers[unsafe], numbers[~unsafe]).value
    except CriterionError:
        return None


def checked_heads(run: xr.Dataset, heads: Sequence[Head]) -> list[Head]:
    """Heads as (layer, head). Raises: FigureError for what is no head of the run."""
    try:
        asked = as_heads(heads)
    except ValueError as error:
        raise FigureError(f"What is drawn {error}; got {plainly(heads)}.") from error
    for head in asked:
        if head[0] not in run["layer"].values or head[1] not in run["head"].values:
            raise FigureError(
                f"The run has {run.sizes['layer']} layers of {run.sizes['head']} heads, no {head_name(*head)}."
            )
    return asked


class Roc(NamedTuple):
    """Shares of safe and of unsafe prompts that one head flags, threshold by threshold.

    Attributes:
        false_alarms: From 0 to 1.
        detected: At each.
        area: AUROC.
        interval: 95 % of the area, over redraws of the prompts.
        band: [2, 101], 95 % of the share detected at 0, 1, … 100 % false alarms, likewise.
    """

    false_alarms: np.ndarray
    detected: np.ndarray
    area: float
    interval: tuple[float, float]
    band: np.ndarray

    def words(self, head: Head) -> str:
        """`L3H6, AUROC 0.93 (0.88 to 0.97)`."""
        low, high = self.interval
        return f"{head_name(*head)}, AUROC {self.area:.2f} ({low:.2f} to {high:.2f})"


def roc(run: xr.Dataset, criterion: str, projection: str, *, head: Head) -> Roc:
    """The ROC curve of one head, with intervals from redraws of the prompts, pairs kept together.

    Raises:
        FigureError: For a head without values on both kinds of prompts.
    """
    from sklearn.metrics import roc_auc_score, roc_curve

    values = _values(run, criterion, projection, head)
    values = values[np.isfinite(values.values)]
    strength, unsafe = get_criterion(criterion).strength(values.values), values["label"].values == "unsafe"
    if unsafe.all() or not unsafe.any():
        raise FigureError(
            f"{head_name(*head)} has values of {criterion} on {int(unsafe.sum())} unsafe and {int((~unsafe).sum())} "
            "safe prompts; a ROC curve takes both kinds. Choose a head that was swept, in a run with both."
        )
    false_alarms, detected, _ = roc_curve(unsafe, strength)
    weights = bootstrap_weights(unsafe, tie_names(values.to_dataset(name="value")), resamples=REDRAWS, seed=0)
    areas, curves = [], []
    for weight in weights:
        at, share, _ = roc_curve(unsafe, strength, sample_weight=weight, drop_intermediate=False)
        areas.append(np.trapezoid(share, at))
        curves.append(share[np.searchsorted(at, FALSE_ALARMS + 1e-12, side="right") - 1])
    low, high = percentile_interval(np.array(areas))
    band = np.array(percentile_interval(np.array(curves)))
    return Roc(false_alarms, detected, float(roc_auc_score(unsafe, strength)), (float(low), float(high)), band)
