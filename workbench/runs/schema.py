"""The records of a run: its variables with their units and dimensions, its coordinates, and where it came from.

A run is one `xarray.Dataset`; stored, it is a Zarr group of the same variables, cut into chunks, one a unit of work
(the base pass of a block of prompts, or one masked layer of it), and its chunks gathered into shards, one a file.
"""

from __future__ import annotations  # a stored run is opened without torch, which the types below would bring

import json
import math
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from workbench.axes import HEAD_DIMS, PROMPT_COORDS, head_name
from workbench.prompts.caveats import caveats
from workbench.prompts.prompt import PromptSet
from workbench.runs.job import FINAL, MEASURED, Job, Partition

if TYPE_CHECKING:
    import torch

    from workbench.models.hooked import HookedLVLM

SCHEMA = "2"
SHARD_BYTES = 4 * 2**20  # a file holds so much of a variable, before compression, or one chunk where that is larger
BASE_DIMS = {
    "head_output": ("prompt", "layer", "head", "d_head"),
    "base_state": ("prompt", "d_model"),
    "image_attention": ("prompt", "layer", "head"),
    "refusal_write": ("prompt", "layer", "head"),
}
# Names of their own: in a run of head sets, or of key/value groups, layers and heads are none of its axes.
VECTOR_DIMS = ("mask_layer", "mask_kind", "mask_head", "mask_channel")
UNITS = {
    **MEASURED,
    "head_output": ("state units", "z at the last prompt position, before W_O, unmasked"),
    "base_state": ("state units", "final state after the final norm, last prompt position, unmasked"),
    "state": ("state units", "final state after the final norm, last prompt position, masked"),
    "image_attention": ("1", "attention of the last prompt position on the image, 0-1"),
    "refusal_write": (
        "log-odds",
        "first-order direct effect of the head's write on the refusal log-odds; positive = refuse",
    ),
    "write_root": ("1", "lower triangular R with R R^T = W_O^h W_O^h^T: z R has the inner products of the write z W_O"),
    "deflection_estimate": ("degrees", "estimate of the deflection from a few backward passes; not exact"),
    "kl_estimate": ("nats", "estimate of the KL from a few backward passes (Fisher form); not exact"),
    "l2_estimate": ("state units", "estimate of the distance from a few backward passes; not exact"),
    "refusal_change_estimate": ("log-odds", "estimate of the refusal change from one backward pass; not exact"),
    "rule_value": ("of the criterion", "value of the rule heads were found by, where exact cells are few an estimate"),
    "rule_low": ("of the criterion", "lower end of its confidence interval"),
    "rule_high": ("of the criterion", "upper end of its confidence interval"),
    "find_status": ("1", "among the first k on these prompts: 0 excluded, 1 possible, 2 certain"),
    "twin_gap": ("log-odds", "of opening a refusal: of the prompt's matched twin - its own, both unmasked"),
    "mask_vectors": ("state units", "what the mask puts into heads: means of z by kind of position, or its source"),
    "prompts_used": ("prompts", "on how many prompts the head was scored exactly"),
}


KNOWN_FIRST = ("write_root", "mask_vectors")  # variables that are there before anything is computed

Shard = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Variable:
    """One stored variable.

    Attributes:
        chunks: The part of `shape` that is read and checked by itself.
        by_layer: Whether a unit of work writes one layer of a block of prompts, a chunk; else it writes all of them.
    """

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: str
    by_layer: bool

    @property
    def shards(self) -> tuple[int, ...]:
        """The part of `shape` that one file holds: whole units, all layers of a block first, then blocks."""
        shard = list(self.chunks if self.by_layer else (self.chunks[0], *self.shape[1:]))
        for axis in (self.dims.index("layer") if self.by_layer else 0, 0):
            room = SHARD_BYTES // (math.prod(shard) * np.dtype(self.dtype).itemsize)
            shard[axis] *= max(1, min(room, -(-self.shape[axis] // shard[axis])))
        return tuple(shard)

    def shard_at(self, where: tuple[slice, ...]) -> Shard:
        """The shard that a unit's region of the variable lies in: (start, stop) along its first axes."""
        bounds = []
        for part, size, whole in zip(where, self.shards, self.shape, strict=False):
            start = (part.start or 0) // size * size
            bounds.append((start, min(start + size, whole)))
        return tuple(bounds)


def layout(
    model: HookedLVLM, n_prompts: int, job: Job, block: int, *, n_groups: int | None = None
) -> dict[str, Variable]:
    """The variables of a run that are computed block by block."""
    many = ("readout",) if job.readout else ()
    n_reads = (len(job.readout),) if job.readout else ()
    exact = "float64" if str(model.dtype) == "torch.float64" else "float32"  # float64 is for whoever compares two roads
    block, n_projections = min(block, n_prompts), len(job.projections)
    if n_groups is not None:
        dims, sizes = ("prompt", "projection", "group"), (n_projections, n_groups)
        grouped = Variable(dims, (n_prompts, *sizes), (block, *sizes), exact, by_layer=False)
        state = Variable(
            ("prompt", "d_model"), (n_prompts, model.d_model), (block, model.d_model), "float32", by_layer=False
        )
        return dict.fromkeys(job.measures, grouped) | {"base_state": state}
    n_rows = len(job.mask.row_heads(model.n_heads, model.n_kv_heads))
    shape, chunks = (n_prompts, n_projections, model.n_layers, n_rows), (block, n_projections, 1, n_rows)
    read = Variable((*HEAD_DIMS, *many), (*shape, *n_reads), (*chunks, *n_reads), exact, by_layer=True)
    variables = dict.fromkeys(job.measures, read)
    if job.keep_states:
        width = (*n_reads, model.d_model)
        of_state = (*HEAD_DIMS, *many, "d_model")
        variables["state"] = Variable(of_state, (*shape, *width), (*chunks, *width), exact, by_layer=True)
    whole = Variable(HEAD_DIMS, shape, (block, *shape[1:]), "float32", by_layer=False)
    variables |= {f"{name}_estimate": whole for name in job.estimates}
    size_of = {"layer": model.n_layers, "head": model.n_heads, "d_head": model.d_head, "d_model": model.d_model}
    size_of["readout"] = len(job.readout)
    # With grain kv_group a row is a key/value head, and what is known per query head would not line up with it.
    names = list(BASE_DIMS) if job.mask.grain == "query_head" else ["base_state"]
    if job.mask.form == "interchange":
        variables["twin_gap"] = Variable(("prompt",), (n_prompts,), (block,), "float32", by_layer=False)
    for name in names:
        of_base = ("prompt", *many, "d_model") if name == "base_state" else BASE_DIMS[name]
        rest = tuple(size_of[dim] for dim in of_base[1:])
        # The one wide variable is read layer by layer.
        chunk = (1, *rest[1:]) if name == "head_output" else rest
        variables[name] = Variable(of_base, (n_prompts, *rest), (block, *chunk), "float32", by_layer=False)
    return variables


def skeleton(
    model: HookedLVLM, prompts: PromptSet, job: Job, groups: Sequence[Sequence[tuple[int, int]]] | None = None
) -> xr.Dataset:
    """Coordinates, and what is known before anything is computed."""
    from workbench.models.fingerprint import request_hash

    frame = prompts.frame()
    coords: dict[str, Any] = {"prompt": _column([p.id for p in prompts]), "projection": _column(job.projections)}
    coords |= {name: ("prompt", _column(frame[name].tolist())) for name in PROMPT_COORDS}
    coords["content_hash"] = ("prompt", _column([p.content_hash() for p in prompts]))
    coords["request_hash"] = ("prompt", _column([request_hash(model, p) for p in prompts]))
    known = _mask_vectors(job)
    if groups is not None:
        coords["group"] = _column(["+".join(head_name(layer, head) for layer, head in group) for group in groups])
        return xr.Dataset(known, coords=coords)
    n_rows = len(job.mask.row_heads(model.n_heads, model.n_kv_heads))
    coords |= {"layer": np.arange(model.n_layers), "head": np.arange(n_rows)}
    if job.readout:
        coords["readout"] = _column(job.readout)
    if job.mask.grain == "query_head":
        known["write_root"] = ("layer", "head", "d_head", "d_root"), write_roots(model)
    return xr.Dataset(known, coords=coords)


def _mask_vectors(job: Job) -> dict[str, Any]:
    """The vectors that the mask puts into heads, where it has any."""
    table = getattr(job.mask.source, "table", None)
    if table is None:
        return {}
    return {"mask_vectors": (VECTOR_DIMS if table.ndim == 4 else (VECTOR_DIMS[0], *VECTOR_DIMS[2:]), table)}


def _column(values: Sequence[Any]) -> np.ndarray:
    """Strings as objects: numpy's fixed-width strings have no place in the Zarr format."""
    return np.array(values, dtype=object) if any(isinstance(v, str) for v in values) else np.array(values)


def about(name: str) -> dict[str, str]:
    """Unit and meaning of a variable, as its attributes."""
    return dict(zip(("units", "long_name"), UNITS[name], strict=True))


def describe(run: xr.Dataset) -> xr.Dataset:
    """Write unit and meaning into the attributes of every variable that has them."""
    for name in set(map(str, run.data_vars)) & set(UNITS):
        run[name].attrs.update(about(name))
    return run


def write_roots(model: HookedLVLM) -> np.ndarray:
    """`[layer, head, d_head, d_root]`: R with R Rᵀ = W_O Wᵀ_O of each head, so that probes can read z·W_O from z.

    Products where the weight lies, and a Cholesky factor of each: at a 7B's shape a factorisation of the weights
    themselves kept a GPU waiting as long as the sweep of a prompt. NaN where W_O is not a plain weight (quantised).
    """
    import torch

    from workbench.models.offloaded import at_hand

    roots = np.full((model.n_layers, model.n_heads, model.d_head, model.d_head), np.nan, dtype=np.float32)
    for layer, attention in model.attentions.items():
        output = getattr(attention, model.family.output)
        with at_hand(output):
            weight = output_weight(output)
            if weight is None:
                continue
            device = "cpu" if weight.device.type == "mps" else weight.device  # which has no float64
            wide = weight.detach().to(device, torch.float64)
            by_head = wide.view(weight.shape[0], model.n_heads, model.d_head).permute(1, 2, 0)
            products = (by_head @ by_head.transpose(1, 2)).cpu()
        found, failed = torch.linalg.cholesky_ex(products)
        if failed.any():  # columns that depend on one another, up to rounding
            found = torch.linalg.qr(by_head.cpu().transpose(1, 2)).R.transpose(1, 2)
        roots[layer] = found.numpy()
    return roots


def output_weight(output: torch.nn.Module) -> torch.Tensor | None:
    """W_O as it acts, `[d_model, head · d_head]`: an adapter's part counts. None where it is no plain weight."""
    import torch

    weight = getattr(output, "weight", None)
    if weight is None or not weight.is_floating_point():
        return None
    if not hasattr(output, "base_layer"):
        return weight
    with torch.no_grad():
        every = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
        return (output(every) - output(torch.zeros_like(every[:1]))).T


def recipe(
    model: HookedLVLM, prompts: PromptSet, job: Job, engine: str, options: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    """What a run is of. Two runs with equal recipes hold the same numbers; a store takes no other's."""
    from workbench.models.fingerprint import fingerprint

    heads = None if job.cells is None else [[n, h] for n in job.cells for h in sorted({h for _, h in job.cells[n]})]
    return {
        "schema": SCHEMA,
        "weight_hash": model.weight_hash,
        "fingerprint": fingerprint(model),
        "prompt_hash": prompts.content_hash(),
        **job.mask.describe(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": "eager" if engine == "naive" else "sdpa",
        "engine": engine,
        "engine_options": json.dumps(dict(options), sort_keys=True),
        "seed": seed,
        "projections": list(job.projections),
        "heads": "all" if heads is None else json.dumps(heads),
        "groups": "none" if job.groups is None else json.dumps(job.groups),
        "keeps_states": job.keep_states,
        "readout": list(job.readout or (FINAL,)),
        "measures": list(job.measures),
    }


def provenance(model: HookedLVLM, prompts: PromptSet, partition: Partition) -> dict[str, Any]:
    """Where a run was made, and with what: changes from machine to machine, not the numbers (beyond rounding)."""
    import torch

    packages = ("lvlm-workbench", "torch", "transformers", "transformer-lens", "numpy", "xarray", "zarr")
    return {
        "model": model.name,
        "model_revision": model.revision,
        "model_family": model.family.name,
        "n_layers": model.n_layers,
        "n_heads": model.n_heads,
        "n_kv_heads": model.n_kv_heads,
        "masked_layers": list(model.masked_layers),
        "refusal_tokens": list(model.refusal_tokens),
        "prompt_source": json.dumps(prompts.recipe),
        "caveats": json.dumps(caveats(prompts)),
        "device": str(model.device),
        "machine": f"{platform.machine()} {platform.processor()}".strip(),
        "threads": torch.get_num_threads(),
        "partition": partition.json(),
        "versions": json.dumps({name: _version(name) for name in packages}),
        "git_commit": _git_commit(),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _git_commit() -> str:
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return ""
    done = subprocess.run(["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip()
