"""How heads may be written."""

import numpy as np
import pytest

from workbench.axes import as_head, as_heads, head_name


@pytest.mark.parametrize("value", [(3, 1), [3, 1], np.array([3, 1]), "L3H1", (np.int64(3), np.int32(1))])
def test_a_head_is_read_however_it_is_written(value):
    assert as_head(value) == (3, 1)
    assert as_heads(value) == [(3, 1)]
    assert head_name(*as_head(value)) == "L3H1"


def test_heads_of_an_array_and_of_names():
    assert as_heads(np.array([[0, 1], [2, 3], [4, 5]])) == [(0, 1), (2, 3), (4, 5)]
    assert as_heads(["L0H1", (2, 3)]) == as_heads(h for h in [(0, 1), (2, 3)]) == [(0, 1), (2, 3)]
    assert as_heads([]) == []


@pytest.mark.parametrize(
    "value", [None, 3, (1.0, 2), (True, False), (-1, 0), (1, 2, 3), "L1", "l1h2", "12", ("1", "2"), [(0, 1), None]]
)
def test_what_is_no_head_is_refused(value):
    with pytest.raises(ValueError, match="layer, head"):
        as_heads(value)
