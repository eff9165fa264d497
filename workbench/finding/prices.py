"""What exact cells, unmasked passes and estimates cost, in layer-tokens: a decoder layer at a token position."""

import numpy as np

from workbench.finding.search import Work

ESTIMATE_SHARE = 0.12  # of the exact map's work that may go into estimates
MOST_DIRECTIONS, FEWEST_DIRECTIONS = 32, 2


def work_of(
    tokens: np.ndarray, first: np.ndarray, n_layers: int, asked: np.ndarray, *, n_read: int, directions: int
) -> Work:
    """Costs of a search as `workbench.models.walk` counts them.

    Args:
        tokens: Of each prompt.
        first: The position from which masks act, of each prompt.
        n_layers: Decoder layers.
        asked: Heads that are searched, `[projection, layer, head]`.
        n_read: How many prompts, the first, the rule reads; the exact map has all of them.
        directions: Backward passes of an estimate.
    """
    above = n_layers - 1 - np.arange(n_layers)
    # Of the highest layer only the last position is walked.
    cell = above * (tokens - first)[:, None] + 1
    base = n_layers * tokens
    way = (n_layers - 1) * tokens + 1
    whole = base.sum() + (cell * asked.sum((0, 2))).sum()
    return Work(
        cell.astype(float), base.astype(float), float((base + (1 + directions) * way)[:n_read].sum()), float(whole)
    )


def directions_for(n_layers: int, asked: np.ndarray) -> int:
    """How many directions pay: more of them leave less to exact cells, and cost as much of the budget."""
    rows = (n_layers - 1 - np.arange(n_layers)) @ asked.sum((0, 2))  # of the exact map, in layers that are walked whole
    directions = ESTIMATE_SHARE * (rows + n_layers) / max(1, n_layers - 1)
    return int(np.clip(round(directions), FEWEST_DIRECTIONS, MOST_DIRECTIONS))
