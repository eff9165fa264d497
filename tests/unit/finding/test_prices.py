"""What a search costs before it begins: first exact cells and directions where there are many heads or prompts."""

import numpy as np
import pytest

from tests.unit.finding.test_find import made_up, rates
from workbench.bench.replay import replay
from workbench.finding.prices import directions_for, work_of
from workbench.finding.search import scored_at_first


@pytest.mark.parametrize(("n_heads", "prompts"), [(1, 6), (9, 6), (12, 5), (18, 3), (32, 3), (128, 3)])
def test_more_heads_a_layer_are_scored_on_fewer_prompts_at_first(n_heads, prompts):
    assert scored_at_first(n_heads) == prompts


def test_directions_cost_a_share_of_the_map_and_of_the_first_cells_but_for_a_few():
    small, large = np.ones((1, 4, 4), dtype=bool), np.ones((2, 32, 32), dtype=bool)
    # 4 heads on 3 + 2 + 1 layers and the unmasked pass, of which 0.12 in passes of 3 layers.
    assert directions_for(4, small, 30) == 2
    # 64 cells a layer on 496 layers, and 32 of an unmasked pass: of the first cells of 3 prompts in n, 0.4.
    share = 0.4 * (64 * 496 + 32) / 31
    assert [directions_for(32, large, each) for each in (3, 60, 100)] == [
        32,
        round(share * 3 / 60),
        round(share * 0.03),
    ]
    assert directions_for(32, large, 10_000) == 8
    tokens = np.full(20_000, 600)
    work = work_of(tokens, 0 * tokens, 32, large, n_read=20_000, directions=8)
    assert work.spent == 20_000 * (32 * 600 + 9 * (31 * 600 + 1))
    assert work.spent < 0.012 * work.whole


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["sensitivity", "selectivity"])
def test_statuses_and_intervals_hold_where_heads_are_many(rule):
    right, covered, work = rates(replay(made_up(heads=48), each=20, draws=8, rule=rule, k=3, budget=0.5))
    assert right == 1  # of 8 fixed draws
    assert covered > 0.93
    assert work < 0.5
