"""The registries of criteria (what can be measured for a head) and of rules (how heads are ranked by it).

Each is described by one record; tables, help texts, the explorer and error messages read the records.

A rule is added as `workbench.criteria.rules` adds its own. A criterion is added in one file, and then appears in every table, figure and widget under its name:

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

A large run is given piece by piece, some layers or heads at a time: the value of a head is its own, whatever the others
do.
"""  # noqa: E501

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from workbench.errors import CriterionError
from workbench.registry import Registry

PER_PROMPT = "per prompt"
PER_DATA_SET = "per data set"
TRAINED = "per head, trained"
KINDS = (PER_PROMPT, PER_DATA_SET, TRAINED)


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

    @classmethod
    def stored(cls, variable: str, **about: Any) -> "Criterion":
        """The criterion, one value a prompt, that a variable of the run is; by its name where `about` has no other."""
        values = itemgetter(variable)
        return cls(
            **{"name": variable, "kind": PER_PROMPT, "values": values, "needs": (variable,), "unit": "", **about}
        )

    @property
    def rules(self) -> tuple[str, ...]:
        """The rules that have a meaning for this criterion."""
        return tuple(rule.name for rule in list_rules() if self.kind in rule.kinds)


Columns = Mapping[str, Any]  # by name, an array or a column each: unsafe, safe, safe_rank, auroc, effect_size


def all_heads(of: Columns, percentile: float) -> Any:
    """What a rule keeps that leaves no head out."""
    return np.full(np.shape(of["unsafe"]), True)


def no_value(rows: pd.DataFrame, unit: str, percentile: float) -> str:
    """Why a rule that leaves no head out keeps too few."""
    return "The others have no value (NaN): both classes are constant, or the head was not swept. Ask for fewer."


@dataclass(frozen=True)
class Rule:
    """One way to rank heads under a criterion, largest value first.

    A rule ranks by a value that it computes from a head's statistics: the columns of a score table, as strengths, or
    arrays of any shape by the same names, so that engines, which have no table yet, rank by the same code. A control
    draws its heads instead.

    Attributes:
        name: What it answers to in `wb.top_heads`, unique.
        kinds: The kinds of criteria for which it has a meaning.
        says: What it ranks by, or draws, in a line.
        source: Paper or repository; "this project" where it is ours; "control" for what a claim has to beat.
        value: From the columns to the value that ranks.
        keeps: From the columns, and the percentile of the bound on safe values, to which heads it does not leave out.
        why_few: From scored rows, the criterion's unit and the percentile, why it keeps so few heads, and what to do.
        is_control: Whether it draws heads at random, for a claim about others to be held against.
        candidates: Controls only: from the scored rows left, and the row of a picked head, to the index of those that
            may stand in for it. Default: any, whatever was picked.
    """

    name: str
    kinds: tuple[str, ...]
    says: str
    source: str
    value: Callable[[Columns], Any] = lambda of: of["unsafe"]
    keeps: Callable[[Columns, float], Any] = all_heads
    why_few: Callable[[pd.DataFrame, str, float], str] = no_value
    is_control: bool = False
    candidates: Callable[[pd.DataFrame, Any], pd.Index] | None = None


CRITERIA: Registry[Criterion] = Registry("criterion", (), error=CriterionError)
RULES: Registry[Rule] = Registry("rule", (), error=CriterionError)
get_criterion = CRITERIA.named
"""The criterion of that name; a CriterionError says which there are, and which is meant."""
get_rule = RULES.named
"""The rule of that name; a CriterionError says which there are, and which is meant."""
list_criteria = CRITERIA.records
"""Every criterion, in the order of registration (ours first)."""
list_rules = RULES.records
"""Every rule, in the order of registration (ours first, the controls last)."""


def register_criterion(criterion: Criterion) -> Criterion:
    """Make a criterion known under its name and return it.

    Raises:
        CriterionError: If its kind is unknown, or another criterion already has the name.
    """
    _check_new(CRITERIA, criterion, (criterion.kind,))
    return CRITERIA.register(criterion)


def register_rule(rule: Rule) -> Rule:
    """Make a rule known under its name and return it.

    Raises:
        CriterionError: If one of its kinds is unknown, or another rule already has the name.
    """
    _check_new(RULES, rule, rule.kinds)
    return RULES.register(rule)


def criteria_table() -> pd.DataFrame:
    """One row a criterion: name, kind, unit, label, direction, rules, needs, source, quirks."""
    columns = ["name", "kind", "unit", "label", "direction", "rules", "needs", "source", "quirks"]
    return _table(list_criteria(), columns)


def rules_table() -> pd.DataFrame:
    """One row a rule: name, says, kinds (of the criteria for which it has a meaning), source."""
    return _table(list_rules(), ["name", "says", "kinds", "source"])


def _check_new(known: Registry[Any], record: Criterion | Rule, kinds: tuple[str, ...]) -> None:
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise CriterionError(
            f"{known.what.capitalize()} {record.name!r} is of kind {unknown[0]!r}; a kind is one of "
            f"{', '.join(map(repr, KINDS))}."
        )
    if (other := known.get(record.name)) not in (None, record):
        told = other.label if isinstance(other, Criterion) else other.says
        raise CriterionError(
            f"There already is a {known.what} {record.name!r} ({told}; {other.source}). Give yours another name."
        )


def _table(records: Sequence[Any], columns: list[str]) -> pd.DataFrame:
    rows = [[getattr(record, name) for name in columns] for record in records]
    return pd.DataFrame(
        [[", ".join(cell) if isinstance(cell, tuple) else cell for cell in row] for row in rows], columns=columns
    )
