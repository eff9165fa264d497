"""What the public functions of criteria are given, as `workbench.checking` holds it against their signatures."""

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import xarray as xr

from workbench.checking import Converted, Whole
from workbench.criteria.registry import get_rule
from workbench.errors import CriterionError
from workbench.runs.reading import RunLike, as_run, check_run


def _run(given: Any) -> xr.Dataset:
    run = as_run(given)
    check_run(run)
    return run


def _names(given: Any) -> tuple[str, ...]:
    names = (given,) if isinstance(given, str) else given
    if not isinstance(names, Sequence | set | frozenset | np.ndarray) or not all(isinstance(n, str) for n in names):
        raise ValueError("must be a name, or a sequence of names")
    return tuple(dict.fromkeys(str(name) for name in names))


def _rule_names(given: Any) -> tuple[str, ...]:
    return tuple(get_rule(name).name for name in _names(given))


def _how_many(given: Any) -> int:
    if isinstance(given, bool) or not isinstance(given, int | np.integer) or given < 1:
        raise CriterionError(f"k is the number of heads to pick, 1 or more; got {given!r}.")
    return int(given)


Run = Annotated[RunLike, Converted(_run)]
Names = Annotated[Sequence[str] | str, Converted(_names)]
RuleNames = Annotated[Sequence[str] | str, Converted(_rule_names)]
HowMany = Annotated[int, Converted(_how_many)]
Resamples = Annotated[int, Whole(0)]
Seed = Annotated[int, Whole(0)]
