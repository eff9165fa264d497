"""The registry of criteria: what can be measured for a head, each described by one record.

A criterion is added in one file, and then appears in every table, figure and widget under its name:

    import numpy as np
    import xarray as xr

    from workbench.criteria import Criterion, register_criterion

    def confidence_lost(run: xr.Dataset) -> xr.DataArray:
        '''Total variation where the first token changed, else 0; dims prompt, projection, layer, head.'''
        return run["tv"] * run["top1_change"]

    register_criterion(
        Criterion(
            name="confidence_lost",
            kind="per prompt",
            values=confidence_lost,
            needs=("tv", "top1_change"),
            unit="",
            label="Confidence lost",
            direction="larger = the mask took more of the answer away",
            source="this file",
        )
    )

What `values` is called with, and what it returns, depends on the kind:

| kind | `values` gets | and returns | rules that apply |
|---|---|---|---|
| `"per prompt"` | the run | prompt, projection, layer, head; without the projection where no mask is involved | all |
| `"per data set"` | the run of one class only | projection, layer, head | sensitivity, selectivity, ratio, the controls |
| `"per head, trained"` | the run, and `seed=` | decision values of held-out prompts: repeat, prompt, layer, head; NaN where the prompt was trained on | sensitivity, auroc, the controls that need no safe value |
"""  # noqa: E501

import difflib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from workbench.errors import CriterionError

PER_PROMPT = "per prompt"
PER_DATA_SET = "per data set"
TRAINED = "per head, trained"
KINDS = (PER_PROMPT, PER_DATA_SET, TRAINED)

RULES_OF_KIND = {
    PER_PROMPT: (
        "sensitivity",
        "selectivity",
        "auroc",
        "effect_size",
        "ratio",
        "random",
        "layer_matched",
        "magnitude_matched",
    ),
    PER_DATA_SET: ("sensitivity", "selectivity", "ratio", "random", "layer_matched", "magnitude_matched"),
    TRAINED: ("sensitivity", "auroc", "random", "layer_matched"),
}


def as_is(values: np.ndarray) -> np.ndarray:
    """The strength of a criterion whose larger values are the stronger ones."""
    return values


@dataclass(frozen=True)
class Criterion:
    """One way to say how much a head matters, computed from a stored run without the model.

    Attributes:
        name: What it answers to in `wb.score`, unique.
        kind: One of `KINDS`; it decides which rules have a meaning (see the module's table).
        values: The computation; its contract is in the module's table.
        needs: Variables of the run that `values` reads.
        unit: For axis titles; empty for a number without unit.
        label: For axis titles and table heads, without the unit.
        direction: What a large value, and the sign, mean.
        source: Paper, section and public repository; "this project" where it is ours.
        quirks: How the published code differs from its text, or what to beware of.
        strength: Maps values so that larger is stronger; the rules, AUROC, effect size and tests read it.
        decide: Trained criteria only: `decide(run, train)` fits every head on the prompts where the boolean array
            `train` is true and returns the decision value of every prompt: prompt, layer, head.
    """

    name: str
    kind: str
    values: Callable[..., xr.DataArray]
    needs: tuple[str, ...]
    unit: str
    label: str
    direction: str
    source: str
    quirks: str = ""
    strength: Callable[[np.ndarray], np.ndarray] = as_is
    decide: Callable[[xr.Dataset, np.ndarray], xr.DataArray] | None = None

    @property
    def axis_title(self) -> str:
        """Label and unit as a plot's axis says them."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    @property
    def rules(self) -> tuple[str, ...]:
        """The rules that have a meaning for this criterion."""
        return RULES_OF_KIND[self.kind]


_criteria: dict[str, Criterion] = {}


def register_criterion(criterion: Criterion) -> Criterion:
    """Make a criterion known under its name and return it.

    Raises:
        CriterionError: If its kind is unknown, or another criterion already has the name.
    """
    if criterion.kind not in KINDS:
        kinds = ", ".join(repr(kind) for kind in KINDS)
        raise CriterionError(f"Criterion {criterion.name!r} is of kind {criterion.kind!r}; a kind is one of {kinds}.")
    known = _criteria.get(criterion.name)
    if known is not None and known != criterion:
        raise CriterionError(
            f"There already is a criterion {criterion.name!r} ({known.label}; {known.source}). Give yours another name."
        )
    _criteria[criterion.name] = criterion
    return criterion


def get_criterion(name: str) -> Criterion:
    """The criterion of that name.

    Raises:
        CriterionError: If there is none; it names the close matches and all that exist.
    """
    if name in _criteria:
        return _criteria[name]
    close = difflib.get_close_matches(str(name), _criteria, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(close)}? " if close else ""
    raise CriterionError(f"There is no criterion {name!r}. {hint}Those that exist: {', '.join(_criteria)}.")


def list_criteria() -> tuple[Criterion, ...]:
    """Every registered criterion, in the order of registration (ours first)."""
    return tuple(_criteria.values())


def criteria_table() -> pd.DataFrame:
    """One row a criterion: name, kind, unit, label, direction, rules, needs, source, quirks."""
    rows = [
        {
            "name": c.name,
            "kind": c.kind,
            "unit": c.unit,
            "label": c.label,
            "direction": c.direction,
            "rules": ", ".join(c.rules),
            "needs": ", ".join(c.needs),
            "source": c.source,
            "quirks": c.quirks,
        }
        for c in list_criteria()
    ]
    return pd.DataFrame(rows)
