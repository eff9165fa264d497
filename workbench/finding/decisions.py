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


def first_of_draws(values: np.ndarray, k: int) -> np.ndarray:
    """Which heads are among the first k of each draw of the rule's values, `[draw, head]`; none at minus infinity."""
    first = np.zeros(values.shape, dtype=bool)
    if values.shape[1]:
        k = min(k, values.shape[1])
        np.put_along_axis(first, np.argpartition(-values, k - 1, axis=1)[:, :k], True, axis=1)
    return first & np.isfinite(values)


def sets(first: np.ndarray, risk: float) -> tuple[np.ndarray, np.ndarray]:
    """(certain, excluded) heads, `[head]`: the largest sets that are wrong in at most `risk` of the draws each."""
    share = first.mean(0)
    found = []
    for wrong, order in ((~first, np.argsort(-share, kind="stable")), (first, np.argsort(share, kind="stable"))):
        ever = np.zeros(len(first), dtype=bool)
        chosen = np.zeros(len(share), dtype=bool)
        for head in order:
            ever |= wrong[:, head]
            if ever.mean() > risk:
                break
            chosen[head] = True
        found.append(chosen)
    return found[0], found[1]
