"""Which heads are among the first k for certain, and which are not: from draws of what every head's value may be.

The largest of many uncertain values are mostly too large, and the bound of the rule selectivity is a percentile over
all heads. So heads are taken together: in each draw every head has a value, the bound is drawn with them, and the first
k are noted. A set of heads is excluded when, in all but a stated share of the draws, none of them is among the first k;
and certain when, in all but that share, all of them are.

Sources: M. Mogstad, J. Romano, A. Shaikh and D. Wilhelm, "Inference for ranks", Review of Economic Studies 91, 2024; J.
Gu and R. Koenker, "Invidious comparisons: ranking and selection as compound decisions", Econometrica 91, 2023; E.
Even-Dar, S. Mannor and Y. Mansour, "Action elimination and stopping conditions", JMLR 7, 2006, for dropping heads while
the others go on.
"""

import numpy as np

from workbench.criteria.rules import SAFE_PERCENTILE

DRAWS = 1000


def with_safe(safe: np.ndarray) -> np.ndarray:
    """Which heads lie under the bound on safe values of their projection, `[draw, projection, layer, head]`."""
    under = np.zeros(safe.shape, dtype=bool)
    for number in range(safe.shape[1]):
        heads = ~np.isnan(safe[0, number])
        known = safe[:, number, heads]
        under[:, number, heads] = known < np.percentile(known, SAFE_PERCENTILE, axis=1, keepdims=True)
    return under


def sets(values: np.ndarray, k: int, risk: float, more: np.ndarray | float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """(certain, excluded) heads, `[head]`: the largest sets that are wrong in at most `risk` of the draws each.

    Args:
        values: Of the rule, `[draw, head]`; minus infinity where it leaves a head out.
        k: How many heads come first.
        risk: For each of the two sets.
        more: What a head may have besides, `[head]`: it is not excluded where this would bring it among the first.
    """
    if not values.shape[1]:
        return np.zeros(0, dtype=bool), np.zeros(0, dtype=bool)
    last = np.partition(values, -min(k, values.shape[1]), axis=1)[:, -min(k, values.shape[1]), None]
    found = []
    for wrong in (~((values >= last) & np.isfinite(values)), (values + more >= last) & np.isfinite(values)):
        ever = np.zeros(len(wrong), dtype=bool)
        chosen = np.zeros(wrong.shape[1], dtype=bool)
        for head in np.argsort(wrong.mean(0), kind="stable"):
            ever |= wrong[:, head]
            if ever.mean() > risk:
                break
            chosen[head] = True
        found.append(chosen)
    return found[0], found[1]
