"""What exact cells, unmasked passes and estimates cost, in layer-tokens: a decoder layer at a token position."""

import numpy as np

from workbench.finding.search import Work, scored_at_first

ESTIMATE_SHARE = 0.12  # of the exact map's work that may go into estimates
FIRST_SHARE = 0.4  # of the work of the first exact cells that may; they are the smaller part the more prompts there are
MOST_DIRECTIONS, ENOUGH_DIRECTIONS, FEWEST_DIRECTIONS = 32, 8, 2


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


def directions_for(n_layers: int, asked: np.ndarray, each: float) -> int:
    """How many directions pay: more of them leave less to exact cells, and cost as much of the budget.

    Args:
        n_layers: Decoder layers.
        asked: Heads that are searched, `[projection, layer, head]`.
        each: Prompts of a class, of those that the rule reads.
    """
    rows = (n_layers - 1 - np.arange(n_layers)) @ asked.sum((0, 2))  # of the exact map, in layers that are walked whole
    of_map, of_first = ESTIMATE_SHARE, FIRST_SHARE * min(1.0, scored_at_first(asked.shape[-1]) / max(1.0, each))
    most, enough = (share * (rows + n_layers) / max(1, n_layers - 1) for share in (of_map, of_first))
    return int(np.clip(round(min(most, max(enough, ENOUGH_DIRECTIONS))), FEWEST_DIRECTIONS, MOST_DIRECTIONS))
