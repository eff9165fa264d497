"""Axis words, used unchanged in type strings, einops patterns, table columns and plot labels.

| word | meaning |
|---|---|
| `prompt` | one question put to the model, picture included |
| `projection` | which of a head's projections is masked: `"query"` or `"value"` |
| `layer` | decoder layer, 0-based |
| `head` | query head, 0-based (a key/value head where the grain says so) |
| `kv_head` | key/value head, 0-based |
| `pos` | token position in the prompt, 0-based |
| `key` | token position that is looked at |
| `d_head` | width of one head |
| `d_model` | width of the residual stream |
| `vocab` | token id |
| `row` | one line of a batch: one prompt under one mask |
"""

from collections.abc import Iterable

PROJECTIONS = ("query", "value")
HEAD_DIMS = ("prompt", "projection", "layer", "head")
PROMPT_COORDS = ("label", "source", "family", "category", "pair_id", "split", "variant", "has_image")
LABELS = ("safe", "unsafe")
SPLITS = ("selection", "threshold", "test")

Head = tuple[int, int]  # (layer, head), both 0-based


def head_name(layer: int, head: int) -> str:
    """`L12H3`: how a head is written in tables, plots and messages."""
    return f"L{layer}H{head}"


def head_names(heads: Iterable[Head]) -> str:
    """`L3H1 L0H2`: how several heads are written."""
    return " ".join(head_name(layer, head) for layer, head in heads)
