"""The reference engine: one full forward a head through TransformerLens' hooks, image tower and all.

It shares nothing with the exact engine but the weights: it scales queries at a hook instead of writing the limit in
closed form, multiplies z at another, and never resumes. Slow on purpose; tests hold the exact engine against it.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.errors import MaskError
from workbench.models.encode import Encoded
from workbench.models.hooked import HookedLVLM
from workbench.models.precision import double_kept
from workbench.models.walk import base_pass
from workbench.runs.effects import measure
from workbench.runs.job import Job
from workbench.runs.memory import BASE
from workbench.sweeps.engines.cells import base_variables
from workbench.sweeps.engines.registry import Engine, one_phase
from workbench.sweeps.tasks import Arrays


class NaiveBlock:
    """The cells of one block of prompts, the long way."""

    def __init__(self, model: HookedLVLM, encoded: Sequence[Encoded], job: Job, rows: int) -> None:
        self.model, self.encoded, self.job = model, encoded, job
        self.base_states = [final_state(model, e, []) for e in encoded]

    def base_arrays(self) -> Arrays:
        parts = [base_variables(self.model, base_pass(self.model, [e])) for e in self.encoded]
        return {name: torch.cat([part[name] for part in parts]).cpu().numpy() for name in parts[0]}

    def layer_arrays(self, layer: int) -> Arrays:
        model, job = self.model, self.job
        rows = job.mask.row_heads(model.n_heads, model.n_kv_heads)
        arrays: Arrays = {}
        for index, (encoded, base_state) in enumerate(zip(self.encoded, self.base_states, strict=True)):
            start = job.mask.start(encoded)
            for number, head in job.cells_of(model, layer):
                hook = head_hook(model, layer, rows[head], job.projections[number], job, start)
                state = final_state(model, encoded, [hook])
                found = measure(model, base_state[None], model.unembed(base_state[None]), state[None, None])
                if job.keep_states:
                    found["state"] = state[None, None]
                for name, value in found.items():
                    shape = (len(self.encoded), len(job.projections), len(rows), *value.shape[2:])
                    array = arrays.setdefault(name, np.full(shape, np.nan))
                    array[index, number, head] = value[0, 0].cpu().numpy()
        return arrays


def final_state(model: HookedLVLM, encoded: Encoded, hooks: list[tuple[str, Any]]) -> Tensor:
    """Final state (after the final norm) at the last position, `[d_model]`, in one full forward under hooks."""
    kept: list[Tensor] = []
    calls: list[str] = []

    def keep(value: Tensor, hook: Any) -> None:
        kept.append(value[0, -1].detach())

    def counted(name: str, edit: Any) -> Any:
        def run(value: Tensor, hook: Any) -> Tensor:
            calls.append(name)
            return edit(value, hook)

        return run

    inputs = dict(encoded.model_inputs)
    ids = inputs.pop("input_ids")
    model.work.vision_passes += encoded.image_span is not None
    model.work.count(model.n_layers, 1, encoded.n_tokens)
    with torch.no_grad(), double_kept(model.dtype):
        fwd_hooks = [*((name, counted(name, edit)) for name, edit in hooks), ("ln_final.hook_out", keep)]
        model.bridge.run_with_hooks(ids, fwd_hooks=fwd_hooks, **inputs)
    if silent := {name for name, _ in hooks} - set(calls):
        raise MaskError(
            f"{model.name!r}: hook {', '.join(silent)} took a mask but did not run, so the score would be a false 0."
        )
    return kept[-1]


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


def naive_step(
    model: HookedLVLM, encoded: Sequence[Encoded], job: Job, rows: int, units: Sequence[int]
) -> Iterator[tuple[int, Arrays]]:
    """The units of one block of prompts."""
    block = NaiveBlock(model, encoded, job, rows)
    for unit in units:
        yield unit, block.base_arrays() if unit == BASE else block.layer_arrays(unit - 1)


ENGINE = Engine("naive", "one full forward a head through TransformerLens' hooks; the reference", one_phase(naive_step))
