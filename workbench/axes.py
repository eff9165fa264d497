"""Axis words, used unchanged in type strings, einops patterns, table columns and plot labels.

| word | meaning |
|---|---|
| `prompt` | one question put to the model, picture included |
| `projection` | which of a head's projections is masked: `"query"`, `"key"` or `"value"` |
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

import json
import re
from collections.abc import Iterable, Sequence
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

PROJECTIONS = ("query", "value")  # masked where nothing else is asked for
MASKABLE = ("query", "key", "value")
HEAD_DIMS = ("prompt", "projection", "layer", "head")
PROMPT_COORDS = ("label", "source", "family", "category", "pair_id", "split", "variant", "has_image", "content")
LABELS = ("safe", "unsafe")
SPLITS = ("selection", "threshold", "test")

MOST_BYTES = 2**20  # of a file of heads

Head = tuple[int, int]  # (layer, head), both 0-based


def head_name(layer: int, head: int) -> str:
    """`L12H3`: how a head is written in tables, plots and messages."""
    return f"L{layer}H{head}"


def head_names(heads: Iterable[Head]) -> str:
    """`L3H1 L0H2`: how several heads are written."""
    return " ".join(head_name(layer, head) for layer, head in heads)


def head_pairs(table: "pd.DataFrame") -> list[Head]:
    """The heads of a table with the columns `layer` and `head`, in its order."""
    return [(int(layer), int(head)) for layer, head in zip(table["layer"], table["head"], strict=True)]


def as_head(value: Any) -> Head:
    """(layer, head) from a pair of whole numbers or from its name.

    Raises:
        ValueError: Anything else; floats and truth values are no numbers of heads.

    Examples:
        >>> as_head("L12H3"), as_head([12, 3])
        ((12, 3), (12, 3))
    """
    if isinstance(value, str) and (found := re.fullmatch(r"L(\d{1,4})H(\d{1,4})", value)):
        return int(found[1]), int(found[2])
    if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str) and len(value) == 2:
        layer, head = value
        if all(isinstance(v, Integral) and not isinstance(v, bool | np.bool_) and int(v) >= 0 for v in (layer, head)):
            return int(layer), int(head)
    raise ValueError("must be heads as (layer, head), two whole numbers from 0, or as 'L12H3'")


def as_heads(value: Any) -> list[Head]:
    """The heads in a sequence of heads, or in a file that the explorer wrote; one head alone is a sequence of one.

    Raises:
        ValueError: No sequence of heads, or a file without one.

    Examples:
        >>> as_heads("L1H2"), as_heads([(0, 1), "L2H0"])
        ([(1, 2)], [(0, 1), (2, 0)])
    """
    if isinstance(value, str | Path) and str(value).endswith(".json"):
        return _read_heads(Path(value))
    try:
        return [as_head(value)]
    except ValueError:
        if isinstance(value, str) or not isinstance(value, Iterable):
            raise
    return [as_head(head) for head in value]


def _read_heads(path: Path) -> list[Head]:
    """The heads of a heads.json: `{"heads": ["L3H1", …], …}`, or the list alone."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError("must be a file of heads; this one is too large to be one")
        record = json.loads(path.read_bytes())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(
            f"must be a file of heads, as the explorer saves it; it could not be read ({type(error).__name__})"
        ) from error
    heads = record.get("heads") if isinstance(record, dict) else record
    if not isinstance(heads, list):
        raise ValueError('must be a file of heads, {"heads": ["L3H1", …]}; this one has no list of them')
    return [as_head(head) for head in heads]
