"""Control heads: what a claim about chosen heads has to beat.

Every control leaves out the k heads that selectivity itself picks for the same criterion and projection (for probes:
sensitivity), and is drawn with a seed.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd

from workbench.criteria.registry import TRAINED, Criterion, get_rule, list_rules
from workbench.criteria.rules import difference
from workbench.errors import CriterionError

CONTROLS = tuple(rule.name for rule in list_rules() if rule.is_control)


def control_heads(
    rows: pd.DataFrame,
    criterion: Criterion,
    control: str,
    *,
    k: int,
    seed: int,
    pick: Callable[[int], pd.DataFrame],
) -> pd.DataFrame:
    """k control heads with a column `value`, in the order of the heads they are matched to.

    `random` draws from all other heads; the others draw, for each picked head, one that resembles it.

    Args:
        rows: Scored heads of one criterion and projection, as strengths.
        criterion: Theirs.
        control: One of `CONTROLS`.
        k: How many.
        seed: Of the draw.
        pick: `pick(k)` gives the k heads that the controls are matched to, best first.

    Raises:
        CriterionError: Where there are not enough heads to draw from.
    """
    anchors, candidates, rng = pick(k), get_rule(control).candidates, np.random.default_rng(seed)
    value = rows["unsafe"] if criterion.kind == TRAINED else difference(rows)
    rest = rows.assign(value=value).drop(index=anchors.index)
    if candidates is None:
        if len(rest) < k:
            raise CriterionError(
                f"{control}: {len(rest)} heads are left beside the {len(anchors)} picked ones, and {k} were asked for."
            )
        return rest.loc[rng.permutation(rest.index.to_numpy())[:k]]
    if len(anchors) < k:
        raise CriterionError(
            f"{control} imitates the {k} heads that selectivity picks for {criterion.name}, and that rule keeps only "
            f"{len(anchors)}. Ask for fewer, or use the control random."
        )
    drawn = []
    for anchor in anchors.itertuples():
        alike = candidates(rest, anchor)
        if alike.empty:
            raise CriterionError(
                f"{control}: layer {anchor.layer} has no head left beside the {k} picked ones and those drawn already. "
                "Ask for fewer heads, or use another control."
            )
        drawn.append(rest.loc[[rng.choice(alike.to_numpy())]])
        rest = rest.drop(index=drawn[-1].index)
    return pd.concat(drawn)
