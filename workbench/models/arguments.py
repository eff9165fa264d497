"""What decoder layers are called with, fitted to other rows and positions than those of the pass that was recorded."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

# Where the batch axis and the position axis of a decoder layer's arguments lie, counted from the end. Rotary
# tables are (…, batch, pos, width) in every family, position ids (…, batch, pos), masks (batch, 1, pos, key).
BATCH_AXIS = {"position_embeddings": -3, "position_ids": -2, "attention_mask": -4}
POS_AXIS = {"position_embeddings": -2, "position_ids": -1, "attention_mask": -2, "cache_position": -1}
Arguments = dict[str, Any]


def repeated(tensor: Tensor, n_rows: int, dim: int = 0) -> Tensor:
    """Each prompt's line `n_rows` times: rows are prompt-major."""
    return tensor.repeat_interleave(n_rows, dim=dim) if n_rows > 1 else tensor


def changed(change: Callable[..., Tensor], *several: Arguments) -> Arguments:
    """Arguments with `change(name, batch axis, tensor, …)` in place of each tensor, those inside tuples included.

    Of several sets, `change` sees the tensors of all; the rest is the first set's.
    """

    def fit(name: str, values: Sequence[Any]) -> Any:
        first = values[0]
        if isinstance(first, tuple | list):
            return type(first)(fit(name, same) for same in zip(*values, strict=True))
        if not isinstance(first, Tensor) or not first.ndim:
            return first
        return change(name, BATCH_AXIS.get(name, -first.ndim), *values)

    return {name: fit(name, [each[name] for each in several]) for name in several[0]}


def at_positions(arguments: Arguments, n_pos: int, start: int, stop: int, more: Mapping[str, int]) -> Arguments:
    """Arguments of `n_pos` positions cut to `start:stop`; masks see the keys up to `stop`.

    Args:
        more: Position axes a family has beyond the usual ones, as `Family.position_arguments`.
    """
    if (start, stop) == (0, n_pos):
        return dict(arguments)
    axes = {**POS_AXIS, **more}

    def cut(name: str, _: int, value: Tensor) -> Tensor:
        axis = axes.get(name)
        if axis is None or value.ndim < -axis or value.shape[axis] != n_pos:
            return value
        value = value.narrow(axis, start, stop - start)
        return value.narrow(-1, 0, stop) if name == "attention_mask" and stop < n_pos else value

    return changed(cut, arguments)


def for_rows(arguments: Arguments, n_prompts: int, n_rows: int) -> Arguments:
    """Arguments of `n_prompts` lines for `n_rows` rows a prompt; what is one prompt's broadcasts over its rows."""
    if n_rows == 1:
        return dict(arguments)

    def repeat(name: str, axis: int, value: Tensor) -> Tensor:
        if name == "cache_position" or value.ndim < -axis:
            return value
        if name in POS_AXIS:
            return repeated(value, n_rows, axis) if value.shape[axis] == n_prompts > 1 else value
        # What families add besides the usual may have several lines a prompt (mllama: its tiles), side by side.
        if value.shape[0] % n_prompts:
            return value
        return repeated(value.unflatten(0, (n_prompts, -1)), n_rows).flatten(0, 1)

    return changed(repeat, arguments)


def of_rows(arguments: Arguments, n_rows: int, some: slice) -> Arguments:
    """Arguments of some rows of a batch of `n_rows`; tables that all rows share stay as they are."""

    def choose(name: str, axis: int, value: Tensor) -> Tensor:
        if n_rows == 1 or value.ndim < -axis or value.shape[axis] != n_rows:
            return value
        return value.movedim(axis, 0)[some].movedim(0, axis)

    return changed(choose, arguments)


def joined(several: Sequence[Arguments]) -> Arguments:
    """One set of arguments for all: tables that are equal broadcast, others lie along the batch axis."""

    def join(name: str, axis: int, first: Tensor, *rest: Tensor) -> Tensor:
        return first if all(torch.equal(first, value) for value in rest) else torch.cat([first, *rest], axis)

    return changed(join, *several)
