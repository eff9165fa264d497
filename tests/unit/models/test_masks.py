"""Masks: words that are refused, and what one does to the heads it names."""

import pytest
import torch

from workbench.errors import MaskError
from workbench.models.attention import causal_mask, even_attention
from workbench.models.masks import Mask


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"form": "zero"}, "limit, as_published, scale"),
        ({"grain": "head"}, "query_head, kv_group"),
        ({"positions": "first"}, "all, after_image, last"),
        ({"factor": float("nan"), "form": "scale"}, "finite number"),
        ({"factor": 0.5}, "form='scale'"),
        ({"form": "as_published", "positions": "last"}, "act at all positions"),
    ],
)
def test_a_mask_that_means_nothing_is_refused_with_the_choices(words, said):
    with pytest.raises(MaskError, match=said):
        Mask(**words)


def test_the_published_mask_has_the_published_factor():
    assert Mask().factor == 0.0
    assert Mask(form="as_published").factor == 1e-5
    assert Mask(form="as_published", factor=1e-4).factor == 1e-4


def test_key_value_groups_cover_every_query_head_once():
    assert Mask(grain="kv_group").row_heads(6, 2) == [(0, 1, 2), (3, 4, 5)]
    assert Mask().row_heads(3, 1) == [(0,), (1,), (2,)]


def test_even_attention_is_the_mean_over_the_keys_a_position_may_see():
    value = torch.randn(2, 2, 5, 3, dtype=torch.float64)
    window = causal_mask(5, 5, value.device) & (torch.arange(5)[:, None] - torch.arange(5)[None, :] < 2)
    for mask, seen in (
        (None, [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4]]),
        (window, [[0], [0, 1], [1, 2], [2, 3], [3, 4]]),
    ):
        even = even_attention(value, mask, 5, 4)  # two query heads a key/value head
        assert even.shape == (2, 5, 4, 3)
        for pos, keys in enumerate(seen):
            for head in range(4):
                torch.testing.assert_close(even[:, pos, head], value[:, head // 2, keys].mean(1))


def test_an_edit_names_heads_that_exist():
    with pytest.raises(MaskError, match=r"Head 4 is not in 0\.\.3"):
        Mask().edit("query", [(4,)], 4, 0, torch.device("cpu"))
    with pytest.raises(MaskError, match="query, key, value"):
        Mask().edit("output", [(0,)], 4, 0, torch.device("cpu"))
