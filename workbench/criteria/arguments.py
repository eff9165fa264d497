"""What the public functions of criteria are given, as `workbench.checking` holds it against their signatures."""

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np

from workbench.checking import Converted, Whole
from workbench.criteria.registry import get_rule


def _names(given: Any) -> tuple[str, ...]:
    names = (given,) if isinstance(given, str) else given
    if not isinstance(names, Sequence | set | frozenset | np.ndarray) or not all(isinstance(n, str) for n in names):
        raise ValueError("must be a name, or a sequence of names")
    return tuple(dict.fromkeys(str(name) for name in names))


def _rule_names(given: Any) -> tuple[str, ...]:
    return tuple(get_rule(name).name for name in _names(given))


Names = Annotated[Sequence[str] | str, Converted(_names)]
RuleNames = Annotated[Sequence[str] | str, Converted(_rule_names)]
HowMany = Annotated[int, Whole(1, 10**9)]
Resamples = Annotated[int, Whole(0, 10**7)]
