"""The reference engine: one full forward a head through TransformerLens' hooks, image tower and all.

It shares nothing with the exact engine but the weights: it scales queries at a hook instead of writing the limit in
closed form, multiplies z at another, and never resumes. Slow on purpose; tests hold the exact engine against it.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from workbench.errors import MaskError
from workbench.models.encode import Encoded
from workbench.models.hooked import HookedLVLM
from workbench.models.precision import double_kept
from workbench.models.walk import base_pass
from workbench.runs.job import Job
from workbench.sweeps.engines.cells import at_heads, base_variables, measured, scatter
from workbench.sweeps.engines.registry import Engine, block_step, one_phase
from workbench.sweeps.tasks import Arrays, Sweep, Task


class NaiveBlock:
    """The cells of one block of prompts, the long way."""

    def __init__(self, model: HookedLVLM, encoded: Sequence[Encoded], job: Job, rows: int) -> None:
        self.model, self.encoded, self.job = model, encoded, job
        read = job.read_layers(model)
        self.bases = [
            {at: (state, model.unembed(state)) for at, state in states_read(model, e, [], read).items()}
            for e in encoded
        ]

    def base_arrays(self) -> Arrays:
        parts = [base_variables(self.model, base_pass(self.model, [e]), self.job) for e in self.encoded]
        return scatter([[i] for i in range(len(parts))], parts, len(parts))

    def layer_arrays(self, layer: int) -> Arrays:
        model, job, parts = self.model, self.job, []
        cells, rows = job.cells_of(model, layer), job.mask.row_heads(model.n_heads, model.n_kv_heads)
        for encoded, base in zip(self.encoded, self.bases, strict=True):
            found = []
            for number, head in cells:
                hook = head_hook(model, layer, rows[head], job.projections[number], job, job.mask.start(encoded))
                states = states_read(model, encoded, [hook], job.read_layers(model))
                moved = {at: state[:, None] for at, state in states.items()}
                acts = torch.ones(1, 1, dtype=torch.bool, device=model.device)
                found.append(measured(model, job, layer, [(number, head)], [encoded], base, acts, moved))
            joined = {name: torch.cat([f[name] for f in found], 1) for name in found[0]}
            parts.append(at_heads(joined, cells, model, job))
        return scatter([[i] for i in range(len(parts))], parts, len(parts))


def states_read(
    model: HookedLVLM, encoded: Encoded, hooks: list[tuple[str, Any]], read: Sequence[int]
) -> dict[int, Tensor]:
    """States `[1, d_model]` at the last position in one full forward under hooks, by the layer they are read after."""
    kept: dict[int, Tensor] = {}
    calls: list[str] = []

    def keep(layer: int, value: Tensor, hook: Any) -> None:
        kept[layer] = value[:, -1].detach()

    def counted(name: str, edit: Any) -> Any:
        def run(value: Tensor, hook: Any) -> Tensor:
            calls.append(name)
            return edit(value, hook)

        return run

    inputs, last = dict(encoded.model_inputs), model.n_layers - 1
    ids = inputs.pop("input_ids")
    model.work.vision_passes += encoded.image_span is not None
    model.work.count(model.n_layers, 1, encoded.n_tokens)
    # What leaves a layer, whatever is added to it between layers, is what the next one is given.
    above = [] if set(read) <= {last} else range(min(read) + 1, model.n_layers)
    seen = [(f"blocks.{n}.hook_in", partial(keep, n - 1)) for n in above] + [("ln_final.hook_out", partial(keep, last))]
    with torch.no_grad(), double_kept(model.dtype):
        fwd_hooks = [*((name, counted(name, edit)) for name, edit in hooks), *seen]
        model.bridge.run_with_hooks(ids, fwd_hooks=fwd_hooks, **inputs)
    if silent := {name for name, _ in hooks} - set(calls):
        raise MaskError(
            f"{model.name!r}: hook {', '.join(silent)} took a mask but did not run, so the score would be a false 0."
        )
    nearest = {at: min(n for n in kept if n >= at) for at in read}  # a layer may be left out without a picture
    return {at: kept[n] if n == last else model.normed(kept[n]) for at, n in nearest.items()}


def head_hook(
    model: HookedLVLM, layer: int, heads: Sequence[int], projection: str, job: Job, start: int
) -> tuple[str, Any]:
    """(hook name, edit) that masks some query heads of a layer through TransformerLens."""
    factor = job.mask.factor
    if projection == "value":
        name = f"blocks.{layer}.attn.o.hook_in"
    elif model.family.query_norm and job.mask.form != "as_published":
        name = f"blocks.{layer}.attn.q_norm.hook_out"
    else:
        name = f"blocks.{layer}.attn.q.hook_out"
    if name not in model.bridge.hook_dict:
        raise MaskError(
            f"{model.name!r}: TransformerLens has no hook {name} for family {model.family.name!r}, so the naive engine "
            f"cannot mask the {projection} projection here. Use engine='exact', which does not need it."
        )

    def edit(value: Tensor, hook: Any) -> Tensor:
        return scale_heads(value, heads, factor, model.n_heads, start, pos_dim=getattr(hook, "pos_dim", None) or 1)

    return name, edit


def scale_heads(
    value: Tensor, heads: Sequence[int], factor: float, n_heads: int, start: int, *, pos_dim: int
) -> Tensor:
    """Multiply some heads by a factor from position `start` on; a new tensor of the same shape.

    Takes `[row, pos, head, d_head]`, `[row, head, pos, d_head]` (with `pos_dim=2`) or `[row, pos, head·d_head]`.
    """
    flat = value.ndim == 3
    by_head = value.unflatten(-1, (n_heads, -1)) if flat else value
    if pos_dim == 2 and not flat:
        by_head = by_head.transpose(1, 2)
    if by_head.ndim != 4 or by_head.shape[2] != n_heads:
        raise MaskError(
            f"A hook gave shape {tuple(value.shape)}; wanted a head axis of {n_heads} to mask query heads on."
        )
    scaled = by_head.clone()
    scaled[:, start:, list(heads)] *= factor
    if pos_dim == 2 and not flat:
        return scaled.transpose(1, 2)
    return scaled.flatten(-2) if flat else scaled


def phases(sweep: Sweep) -> Iterator[list[Task]]:
    """One phase, once the bridge has proved itself: one that is not right is no fault of a prompt."""
    assert sweep.model.bridge is not None
    yield from one_phase(partial(block_step, NaiveBlock))(sweep)


ENGINE = Engine(
    "naive",
    "one full forward a head through TransformerLens' hooks; the reference",
    phases,
    readout=True,
)
