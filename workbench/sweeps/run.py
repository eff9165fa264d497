"""`sweep`: mask every head on every prompt, and return the labelled run."""

import datetime
import json
import subprocess
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from tqdm.auto import tqdm

from workbench.errors import MaskError, PromptError, WorkbenchError
from workbench.models.hooked import HookedLVLM
from workbench.models.masks import Mask
from workbench.models.resume import base_pass
from workbench.prompts.prompt import Prompt, PromptSet
from workbench.shapes import HEAD_DIMS, PROJECTIONS, PROMPT_COORDS
from workbench.sweeps.engine import ExactBlock, Job, base_variables, blocks, check_heads, group_cells
from workbench.sweeps.measure import MEASURES
from workbench.sweeps.naive import NaiveBlock
from workbench.sweeps.plan import Partition, batches, plan

SCHEMA = "workbench-run-1"
ENGINES = {"exact": ExactBlock, "naive": NaiveBlock}
# Masked final states are kept by default when all of them together are at most this large.
STATE_BUDGET = 512 * 2**20
BASE_DIMS = {
    "head_output": ("prompt", "layer", "head", "d_head"),
    "base_state": ("prompt", "d_model"),
    "image_attention": ("prompt", "layer", "head"),
    "refusal_write": ("prompt", "layer", "head"),
}
UNITS = {
    "deflection": ("degrees", "angle between the final states without and with the mask"),
    "kl": ("nats", "KL(base || masked) of the next-token distribution"),
    "js": ("nats", "Jensen-Shannon divergence of base and masked next-token distribution"),
    "tv": ("1", "total variation distance, 0-1"),
    "top1_change": ("1", "1 where the most likely next token changed"),
    "l2": ("state units", "distance of the final states"),
    "norm_ratio": ("1", "norm of the masked final state over that of the base"),
    "refusal_change": ("log-odds", "masked - base log-odds of opening a refusal; negative = the head helped to refuse"),
    "head_output": ("state units", "z at the last prompt position, before W_O, unmasked"),
    "base_state": ("state units", "final state after the final norm, last prompt position, unmasked"),
    "state": ("state units", "final state after the final norm, last prompt position, masked"),
    "image_attention": ("1", "attention of the last prompt position on the image, 0-1"),
    "refusal_write": ("log-odds", "first-order direct effect of the head's write on the refusal log-odds; positive = refuse"),
    "write_root": ("1", "lower triangular R with R R^T = W_O^h W_O^h^T: z R has the inner products of the write z W_O"),
}


def sweep(
    model: HookedLVLM,
    prompts: Sequence[Prompt],
    *,
    projections: Sequence[str] = PROJECTIONS,
    mask: Mask | None = None,
    engine: str = "exact",
    out: str | Path | None = None,
    heads: Sequence[tuple[int, int]] | None = None,
    groups: Sequence[Sequence[tuple[int, int]]] | None = None,
    keep_states: bool | str = "auto",
    rows: int | None = None,
    progress: bool = True,
) -> xr.Dataset:
    """Mask the projections of every head on every prompt and measure what changes at the last prompt position.

    Args:
        model: From `load_model`.
        prompts: Any sequence of prompts.
        projections: Of "query" and "value".
        mask: How heads are masked; `Mask()` by default.
        engine: "exact" (from the masked layer on), or "naive" (one full forward a head; the reference).
        out: Store the run here as a Zarr group, block by block; the same call later goes on where it stopped.
        heads: Only these (layer, head) cells; all others are NaN.
        groups: Sets of (layer, head) masked together; the run then has a dimension `group` in place of layer, head.
        keep_states: Keep the masked final states too (needed by angles over data sets); "auto" when they are small.
        rows: Most rows in one batch; by default from the memory that is free, recorded with the run.
        progress: Show a progress bar with the time left.

    Returns: The run. Dimensions prompt, projection, layer, head; variables with units in their attributes.

    Raises: PromptError, MaskError, RunError: what was wanted, what came, and what to do.
    """
    mask = mask or Mask()
    prompts = prompts if isinstance(prompts, PromptSet) else PromptSet(prompts)
    projections = _check(model, prompts, projections, engine, heads, groups)
    job = Job(
        projections,
        mask,
        None if heads is None else check_heads(model, heads, mask),
        _keeps_states(keep_states, model, len(prompts), len(projections), mask),
    )
    longest = max(model.encode(p).n_tokens for p in prompts)
    partition = plan(model, longest, rows=rows)
    began, started = time.perf_counter(), datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    work_before = (model.work.layer_tokens, model.work.vision_passes)
    if groups is not None:
        run = _sweep_groups(model, prompts, groups, job, partition, progress)
    else:
        run = _sweep_heads(model, prompts, job, partition, engine, progress)
    run.attrs.update(provenance(model, prompts, mask, engine, partition))
    run.attrs.update(
        started=started,
        wall_s=round(time.perf_counter() - began, 3),
        layer_tokens=model.work.layer_tokens - work_before[0],
        vision_passes=model.work.vision_passes - work_before[1],
    )
    if out is not None:
        run.to_zarr(out, mode="w")
    return run


def _check(
    model: HookedLVLM,
    prompts: PromptSet,
    projections: Sequence[str],
    engine: str,
    heads: Any,
    groups: Any,
) -> tuple[str, ...]:
    if not isinstance(model, HookedLVLM):
        raise WorkbenchError(f"sweep needs a model from workbench.load_model; got a {type(model).__name__}.")
    if not len(prompts):
        raise PromptError("There are no prompts to sweep. Load some with workbench.load_prompts('pocket').")
    projections = (projections,) if isinstance(projections, str) else tuple(projections)
    if not projections or set(projections) - set(PROJECTIONS) or len(set(projections)) < len(projections):
        raise MaskError(f"projections must name each of {', '.join(PROJECTIONS)} at most once; got {projections}.")
    if engine not in ENGINES:
        raise WorkbenchError(f"engine must be one of {', '.join(ENGINES)}; got {engine!r}.")
    if heads is not None and groups is not None:
        raise MaskError("Give either heads (single cells) or groups (head sets masked together), not both.")
    return projections


def _keeps_states(wanted: bool | str, model: HookedLVLM, n_prompts: int, n_projections: int, mask: Mask) -> bool:
    if wanted not in (True, False, "auto"):
        raise WorkbenchError(f"keep_states must be True, False or 'auto'; got {wanted!r}.")
    if wanted != "auto":
        return bool(wanted)
    n_rows = len(mask.row_heads(model.n_heads, model.n_kv_heads))
    return 4 * n_prompts * n_projections * model.n_layers * n_rows * model.d_model <= STATE_BUDGET


def _sweep_heads(
    model: HookedLVLM, prompts: PromptSet, job: Job, partition: Partition, engine: str, progress: bool
) -> xr.Dataset:
    n_rows = len(job.mask.row_heads(model.n_heads, model.n_kv_heads))
    shape = (len(prompts), len(job.projections), model.n_layers, n_rows)
    cells = {name: np.full(shape, np.nan, dtype=_float(model)) for name in MEASURES}
    if job.keep_states:
        cells["state"] = np.full((*shape, model.d_model), np.nan, dtype=_float(model))
    base: dict[str, np.ndarray] = {}
    layers = job.layers(model)
    with tqdm(total=len(prompts) * len(layers), desc="sweep", unit="layer", disable=not progress) as bar:
        for start, stop in blocks(len(prompts), partition.block):
            block = ENGINES[engine](model, [model.encode(p) for p in prompts[start:stop]], job, partition)
            for name, array in block.base_arrays().items():
                base.setdefault(name, np.full((len(prompts), *array.shape[1:]), np.nan, dtype=array.dtype))[start:stop] = array
            for layer in layers:
                for name, array in block.layer_arrays(layer).items():
                    cells[name][start:stop, :, layer] = array
                bar.update(stop - start)
    return assemble(model, prompts, job, cells, base)


def _float(model: HookedLVLM) -> type:
    """Runs store float32; a float64 model's are kept in full, for whoever compares two roads."""
    return np.float64 if model.dtype == torch.float64 else np.float32


def assemble(
    model: HookedLVLM, prompts: PromptSet, job: Job, cells: dict[str, np.ndarray], base: dict[str, np.ndarray]
) -> xr.Dataset:
    """Label the arrays."""
    variables: dict[str, Any] = {
        name: ((*HEAD_DIMS, "d_model") if name == "state" else HEAD_DIMS, array) for name, array in cells.items()
    }
    if job.mask.grain == "kv_group":
        # A row is a key/value head here; what is known per query head would not line up with it.
        base = {name: array for name, array in base.items() if name == "base_state"}
    variables |= {name: (BASE_DIMS[name], array) for name, array in base.items()}
    if job.mask.grain == "query_head":
        variables["write_root"] = (("layer", "head", "d_head", "d_root"), write_roots(model))
    n_rows = cells["kl"].shape[3]
    run = xr.Dataset(
        variables,
        coords={
            "prompt": [p.id for p in prompts],
            "projection": list(job.projections),
            "layer": np.arange(model.n_layers),
            "head": np.arange(n_rows),
            **_prompt_coords(prompts),
        },
    )
    for name in run.data_vars:
        run[name].attrs.update(zip(("units", "long_name"), UNITS[str(name)], strict=True))
    return run


def _prompt_coords(prompts: PromptSet) -> dict[str, tuple[str, list[Any]]]:
    frame = prompts.frame()
    return {name: ("prompt", frame[name].tolist()) for name in PROMPT_COORDS}


def write_roots(model: HookedLVLM) -> np.ndarray:
    """`[layer, head, d_head, d_root]`: R with R Rᵀ = W_O Wᵀ_O of each head, so that probes can read z·W_O from z.

    NaN where W_O is not a plain weight (quantised).
    """
    roots = np.full((model.n_layers, model.n_heads, model.d_head, model.d_head), np.nan, dtype=np.float32)
    for layer, attention in model.attentions.items():
        weight = getattr(getattr(attention, model.family.output), "weight", None)
        if weight is None or not weight.is_floating_point():
            continue
        by_head = weight.detach().double().cpu().view(weight.shape[0], model.n_heads, model.d_head).permute(1, 2, 0)
        roots[layer] = torch.linalg.qr(by_head.transpose(1, 2)).R.transpose(1, 2).numpy()
    return roots


def _sweep_groups(
    model: HookedLVLM,
    prompts: PromptSet,
    groups: Sequence[Sequence[tuple[int, int]]],
    job: Job,
    partition: Partition,
    progress: bool,
) -> xr.Dataset:
    groups = [tuple(dict.fromkeys((int(layer), int(head)) for layer, head in group)) for group in groups]
    for group in groups:
        check_heads(model, group, job.mask)
    cells = {name: np.full((len(prompts), len(job.projections), len(groups)), np.nan) for name in MEASURES}
    base_state = np.full((len(prompts), model.d_model), np.nan, dtype=np.float32)
    with tqdm(total=len(prompts), desc="sweep", unit="prompt", disable=not progress) as bar:
        for start, stop in blocks(len(prompts), partition.block):
            encoded = [model.encode(p) for p in prompts[start:stop]]
            for batch in batches(encoded, max(1, partition.rows // len(groups))):
                base = base_pass(model, [encoded[i] for i in batch])
                at = [start + i for i in batch]
                for name, value in group_cells(model, base, groups, job, partition.rows).items():
                    cells[name][at] = value.cpu().numpy()
                base_state[at] = base.state.float().cpu().numpy()
                bar.update(len(batch))
    dims = ("prompt", "projection", "group")
    names = ["+".join(f"L{layer}H{head}" for layer, head in group) for group in groups]
    variables: dict[str, Any] = {name: (dims, array.astype(_float(model))) for name, array in cells.items()}
    run = xr.Dataset(
        variables | {"base_state": (BASE_DIMS["base_state"], base_state)},
        coords={
            "prompt": [p.id for p in prompts],
            "projection": list(job.projections),
            "group": names,
            **_prompt_coords(prompts),
        },
    )
    for name in run.data_vars:
        run[name].attrs.update(zip(("units", "long_name"), UNITS[str(name)], strict=True))
    return run


def provenance(model: HookedLVLM, prompts: PromptSet, mask: Mask, engine: str, partition: Partition) -> dict[str, Any]:
    """Where a run came from: everything needed to make it again."""
    packages = ("lvlm-workbench", "torch", "transformers", "transformer-lens", "numpy", "xarray")
    return {
        "schema": SCHEMA,
        "model": model.name,
        "model_revision": model.revision,
        "model_family": model.family.name,
        "weight_hash": model.weight_hash,
        "n_layers": model.n_layers,
        "n_heads": model.n_heads,
        "n_kv_heads": model.n_kv_heads,
        "masked_layers": list(model.masked_layers),
        "refusal_tokens": list(model.refusal_tokens),
        "prompt_hash": prompts.content_hash(),
        "prompt_source": json.dumps(prompts.recipe),
        **mask.describe(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "attention": "sdpa" if engine != "naive" else "eager",
        "engine": engine,
        "partition": json.dumps(partition.describe()),
        "versions": json.dumps({name: _version(name) for name in packages}),
        "git_commit": _git_commit(),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except ImportError:
        return "not installed"


def _git_commit() -> str:
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return ""
    done = subprocess.run(["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip()
