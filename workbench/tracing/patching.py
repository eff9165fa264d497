"""Patching: what one twin's pass has at a layer and a group of tokens, put into the other's, and everything above anew.

`residual` is the residual stream after the layer, `attention` what its attention writes (after W_O), `mlp` what its
MLP gives, and a head is its output z. All start from what is known of both passes: nothing below the layer and nothing
before the first patched token runs again, and a patch that changes no number is not run at all: it did nothing,
exactly.

The stream is taken as the next layer reads it. All of it patched gives the twin's state, bit for bit, except where a
family brings the picture in again further up (Qwen3-VL between its first layers, Llama 3.2 Vision by
cross-attention): what comes in there is the own picture's.

Sources: activation patching after Meng et al., arXiv 2202.05262 (causal tracing), and Zhang & Nanda, arXiv 2309.16042
(denoising and noising); heads after "How Alignment Routes", arXiv 2604.04385 (interchange of z between twins).
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from workbench.axes import head_name
from workbench.models.hooked import HookedLVLM
from workbench.models.masks import head_writes
from workbench.models.walk import read_out
from workbench.tracing.passes import TwinPass, mlp_of, put_in
from workbench.tracing.records import ALL, HEADS


@dataclass(frozen=True)
class Row:
    """One patch of a layer.

    Attributes:
        component: Of `COMPONENTS`, or "heads".
        group: Of tokens.
        head: Which one, for "heads".
        where: Positions that are patched, `[pos]`.
    """

    component: str
    group: str
    head: int | None
    where: Bool[Tensor, " pos"]

    @property
    def start(self) -> int:
        """The first of them."""
        return int(self.where.nonzero()[0])

    def name(self, layer: int) -> str:
        """In messages."""
        what = self.component if self.head is None else head_name(layer, self.head)
        return f"{what} of layer {layer} at {self.group}"


def rows_of_layer(passes: TwinPass, layer: int, components: Sequence[str], heads: Sequence[int]) -> list[Row]:
    """The patches of a layer: every group of tokens that the prompts have, with every component asked for."""
    wanted: list[tuple[str, int | None]] = [(c, None) for c in components if c != HEADS]
    wanted += [(HEADS, head) for head in heads] if HEADS in components else []
    known = [c for c in wanted if c[0] == "residual" or layer in passes.model.sites]
    groups = [(group, where) for group, where in passes.twins.groups.items() if where.any()]
    return [Row(component, group, head, where) for component, head in known for group, where in groups]


def patched_states(
    passes: TwinPass, layer: int, rows: Sequence[Row], most_tokens: int
) -> Float[Tensor, "prompt row d_model"]:
    """Final states of each twin's pass with the other's numbers in it, row by row.

    Args:
        passes: Of the pair.
        layer: The patched one, which ran.
        rows: As `rows_of_layer` gives them.
        most_tokens: Token positions (lines x positions) that a batch may have.
    """
    states = passes.state[:, None].repeat(1, len(rows), 1)
    acting = [i for i, row in enumerate(rows) if _differs(passes, layer, row)]
    for of_residual in (True, False):
        several = [i for i in acting if (rows[i].component == "residual") == of_residual]
        if of_residual and layer == max(passes.base.inputs):
            # Nothing runs above the last layer but the final norm, at the last position; `_differs` looked there alone.
            states[:, several] = passes.state.flip(0)[:, None]
            continue
        for some in _batches(rows, several, passes.base.n_pos, most_tokens, of_residual=of_residual):
            run = _after if of_residual else _within
            states[:, some] = run(passes, layer, [rows[i] for i in some])
    return states


def _batches(
    rows: Sequence[Row], chosen: list[int], n_pos: int, most_tokens: int, *, of_residual: bool
) -> Iterator[list[int]]:
    """Rows that start near one another, so that few positions run for nothing, as many as a batch may have.

    The whole residual stream goes alone: then its batch has the shape of the unmasked pass, and so its last bits.
    """
    waiting = sorted(chosen, key=lambda i: (rows[i].start, rows[i].group != ALL))
    while waiting:
        first = rows[waiting[0]]
        alone = of_residual and first.group == ALL
        count = 1 if alone else max(1, most_tokens // (2 * (n_pos - first.start)))
        yield waiting[:count]
        waiting = waiting[count:]


def _given(passes: TwinPass, layer: int, row: Row) -> Tensor:
    """What a row patches, of both twins: `[prompt, pos, d_model]`, of a head `[prompt, pos, d_head]`."""
    if row.component == "residual":
        above = passes.above(layer)
        return passes.residual[:, None] if above is None else passes.base.inputs[above]
    if row.component == "attention":
        return passes.base.attention_out[layer]
    if row.component == "mlp":
        return passes.mlp_out[layer]
    return passes.base.recordings[layer].z[:, :, row.head]


def _differs(passes: TwinPass, layer: int, row: Row) -> bool:
    given = _given(passes, layer, row)
    where = row.where[-given.shape[1] :].to(given.device)
    return bool((given[0] != given[1])[where].any())


def _after(passes: TwinPass, layer: int, rows: Sequence[Row]) -> Float[Tensor, "prompt row d_model"]:
    """The residual stream between this layer and the next, patched."""
    model, above = passes.model, passes.above(layer)
    assert above is not None
    where = torch.stack([row.where for row in rows])
    values = passes.base.inputs[above].flip(0)
    with put_in(model.layers[above], values, where, at="input"):
        return _walked(passes, above, rows)


def _within(passes: TwinPass, layer: int, rows: Sequence[Row]) -> Float[Tensor, "prompt row d_model"]:
    """What the attention, single heads, or the MLP of this layer give, patched."""
    model, base, start = passes.model, passes.base, min(row.start for row in rows)
    out = base.attention_out[layer]
    writes = out.new_zeros(2, len(rows), base.n_pos - start, out.shape[-1])
    whole = [i for i, row in enumerate(rows) if row.component == "attention"]
    if whole:
        writes[:, whole] = (out.flip(0) - out)[:, None, start:]
    if single := [i for i, row in enumerate(rows) if row.head is not None]:
        z = base.recordings[layer].z[:, start:]
        writes[:, single] = head_writes(model, layer, z.flip(0) - z, [(_head(rows[i]),) for i in single])
    where = torch.stack([row.where for row in rows]).to(out.device)
    writes = writes * where[None, :, start:, None]
    in_mlp = where & torch.tensor([[row.component == "mlp"] for row in rows], device=out.device)
    put: Any = nullcontext()
    if in_mlp.any():
        put = put_in(mlp_of(model, layer), passes.mlp_out[layer].flip(0), in_mlp, at="output")
    with put:
        return _walked(passes, layer, rows, writes=writes)


def _head(row: Row) -> int:
    assert row.head is not None
    return row.head


def _walked(passes: TwinPass, layer: int, rows: Sequence[Row], **options: Any) -> Tensor:
    top = passes.model.n_layers - 1
    start = min(row.start for row in rows)
    return read_out(passes.model, passes.base, layer, len(rows), start=start, **options)[top]


def patched_layer(
    passes: TwinPass, layer: int, components: Sequence[str], heads: Sequence[int], most_tokens: int
) -> Iterator[tuple[Row, dict[str, Tensor]]]:
    """Each patch of a layer with its measures `[prompt]`."""
    rows = rows_of_layer(passes, layer, components, heads)
    if not rows:
        return
    states = patched_states(passes, layer, rows, most_tokens)
    found = passes.measured(states, [row.name(layer) for row in rows])
    for number, row in enumerate(rows):
        yield row, {name: value[:, number] for name, value in found.items()}


def patched_heads(model: HookedLVLM, heads: Sequence[tuple[int, int]] | None, layer: int) -> list[int]:
    """The heads of a layer that are patched."""
    return list(range(model.n_heads)) if heads is None else sorted({head for at, head in heads if at == layer})
