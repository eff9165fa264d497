"""Control heads: what a claim about chosen heads has to beat.

Every control leaves out the k heads that selectivity itself picks for the same criterion and projection (for probes:
sensitivity), and is drawn with a seed.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd

from workbench.criteria.registry import TRAINED, Criterion
from workbench.errors import CriterionError

CONTROLS = ("random", "layer_matched", "magnitude_matched")
NEAREST = 5  # magnitude_matched draws among this many heads of the closest safe value


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

    `random` draws from all other heads. `layer_matched` draws, for each picked head, another head of its layer.
    `magnitude_matched` draws, for each, one of the five heads whose safe value is closest.

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
    anchors = pick(k)
    value = rows["unsafe"] if criterion.kind == TRAINED else rows["unsafe"] - rows["safe"]
    rest = rows.assign(value=value).drop(index=anchors.index)
    rng = np.random.default_rng(seed)
    if control == "random":
        if len(rest) < k:
            raise CriterionError(
                f"random: {len(rest)} heads are left beside the {len(anchors)} picked ones, and {k} were asked for."
            )
        return rest.loc[rng.permutation(rest.index.to_numpy())[:k]]
    if len(anchors) < k:
        raise CriterionError(
            f"{control} imitates the {k} heads that selectivity picks for {criterion.name}, and that rule keeps only "
            f"{len(anchors)}. Ask for fewer, or use the control random."
        )
    drawn = []
    for layer, safe in zip(anchors["layer"], anchors["safe"], strict=True):
        if control == "layer_matched":
            candidates = rest.index[rest["layer"] == layer]
            if candidates.empty:
                raise CriterionError(
                    f"layer_matched: layer {layer} has no head left beside the {k} picked ones and those "
                    "drawn already. Ask for fewer heads, or use magnitude_matched or random."
                )
        else:
            candidates = (rest["safe"] - safe).abs().sort_values(kind="stable").index[:NEAREST]
            if candidates.empty:
                raise CriterionError(
                    f"magnitude_matched: no head is left beside the {k} picked ones. Ask for fewer heads."
                )
        chosen = rng.choice(candidates.to_numpy())
        drawn.append(rest.loc[[chosen]])
        rest = rest.drop(index=chosen)
    return pd.concat(drawn)
