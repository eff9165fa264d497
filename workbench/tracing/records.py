"""The records of a trace: its variables with their units and dimensions, and where it came from."""

from __future__ import annotations  # a stored trace is opened without torch, which the types below would bring

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from workbench.axes import Head, head_name
from workbench.prompts.prompt import PromptSet

if TYPE_CHECKING:
    from workbench.models.hooked import HookedLVLM

SCHEMA = "trace-1"
COMPONENTS = ("residual", "attention", "mlp")
HEADS = "heads"  # the fourth: z of single heads
SIDES = ("unsafe", "safe")
TOKEN_GROUPS = ("picture", "hazard", "words", "template", "last")
ALL = "all"  # every position together
# What the attention of which positions on which others may be cut: (keys, queries), in groups of positions.
TEXT = ("hazard", "words")
_OF_FLOW: dict[str, tuple[str, ...]] = {"picture": ("picture",), "text": TEXT} | {g: (g,) for g in TOKEN_GROUPS[3:]}
FLOWS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    f"{keys} → {queries}": (_OF_FLOW[keys], _OF_FLOW[queries])
    for keys, queries in (
        ("picture", "text"), ("picture", "template"), ("picture", "last"), ("text", "template"), ("text", "last"),
        ("template", "last"),
    )
}  # fmt: skip
# What is told of every patched or cut pass against the pass it was made from, and of patched ones against the twin's.
MEASURES = ("deflection", "kl", "refusal_change", "top1_change")
TOWARDS = ("recovered", "left")
EFFECTS = ("total", "direct", "indirect")
DIRECTIONS = ("noise", "denoise")  # the unsafe prompt patched from the safe one, and the other way round
_OF_MEASURE = {
    "deflection": ("degrees", "angle by which the final state turned, 0-180"),
    "kl": ("nats", "KL(before || after) of the next-token distribution"),
    "refusal_change": ("log-odds", "after - before, of opening a refusal; positive = towards refusing"),
    "top1_change": ("1", "1 where the first token of the reply changed"),
    "recovered": (
        "1",
        "share of the way from the own final state to the twin's; 0 = none, 1 = all; NaN for equal twins",
    ),
    "left": ("state units", "distance of the final state to the twin's; 0 = it is the twin's"),
}
_GROUPED = ("layer", "token_group")
DIMS: dict[str, tuple[str, ...]] = {
    **{f"patch_{m}": ("pair", "direction", "component", *_GROUPED) for m in (*MEASURES, *TOWARDS)},
    **{f"head_{m}": ("pair", "direction", "layer", "head", "token_group") for m in (*MEASURES, *TOWARDS)},
    **{f"cut_{m}": ("pair", "side", "flow", "window") for m in MEASURES},
    **{f"path_{m}": ("pair", "direction", "effect", "source", "layer", "head") for m in ("write", "refusal")},
    **{f"lens_{m}": ("pair", "side", "layer") for m in ("kl", "refusal", "projection", "token")},
    "residual": ("pair", "side", "layer", "d_model"),
    "base_refusal": ("pair", "side"),
    "base_token": ("pair", "side"),
    "tokens_in_group": ("pair", "token_group"),
}
UNITS: dict[str, tuple[str, str]] = {
    **{f"patch_{m}": (u, f"{w}; a component at some tokens as in the twin") for m, (u, w) in _OF_MEASURE.items()},
    **{f"head_{m}": (u, f"{w}; z of a head at some tokens as in the twin") for m, (u, w) in _OF_MEASURE.items()},
    **{f"cut_{m}": (u, f"{w}; a flow cut in a window of layers") for m, (u, w) in list(_OF_MEASURE.items())[:4]},
    "path_write": ("state units", "length of the change of a later head's write at the last position"),
    "path_refusal": ("log-odds", "that change along the gradient of the refusal log-odds; positive = towards refusing"),
    "lens_kl": ("nats", "KL(final || read after the layer) of the next-token distribution"),
    "lens_refusal": ("log-odds", "of opening a refusal, read after the layer"),
    "lens_projection": ("state units", "residual stream along the direction of refusal of the other pairs"),
    "lens_token": ("token", "the likeliest next token, read after the layer"),
    "residual": ("state units", "residual stream after the layer, last position, before the final norm"),
    "base_refusal": ("log-odds", "of opening a refusal, nothing patched"),
    "base_token": ("token", "first token of the reply, nothing patched"),
    "tokens_in_group": ("tokens", "how many tokens the group has; 0 = the prompts have none, and its cells are NaN"),
}


def recipe(
    model: HookedLVLM,
    prompts: PromptSet,
    components: Sequence[str],
    heads: Sequence[Head] | None,
    sources: Sequence[Head] | int,
    window: int,
) -> dict[str, Any]:
    """What a trace is of: traces with equal recipes hold the same numbers."""
    from workbench.models.fingerprint import fingerprint

    return {
        "schema": SCHEMA,
        "weight_hash": model.weight_hash,
        "fingerprint": fingerprint(model),
        "prompt_hash": prompts.content_hash(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "components": list(components),
        "heads": "all" if heads is None else " ".join(head_name(*head) for head in heads),
        "sources": f"the first {sources}" if isinstance(sources, int) else " ".join(head_name(*h) for h in sources),
        "window": window,
    }


def empty(
    model: HookedLVLM, names: Sequence[str], components: Sequence[str], cuts: Sequence[tuple[int, ...]], width: int
) -> xr.Dataset:
    """A trace of some pairs in which nothing is known yet; variables of what was not asked for are left out.

    Args:
        width: How many source heads the paths have.
    """
    coords: dict[str, Any] = {
        "pair": np.array(names, dtype=object),
        "direction": list(DIRECTIONS),
        "side": list(SIDES),
        "layer": np.arange(model.n_layers),
        "head": np.arange(model.n_heads),
        "token_group": [*TOKEN_GROUPS, ALL],
        "component": [c for c in COMPONENTS if c in components],
        "flow": list(FLOWS),
        "window": np.array([w[0] for w in cuts], dtype=np.int64),
        "window_last": ("window", np.array([w[-1] for w in cuts], dtype=np.int64)),
        "effect": list(EFFECTS),
    }
    sizes = {name: len(values) for name, values in coords.items() if not isinstance(values, tuple)}
    sizes |= {"source": width, "d_model": model.d_model}
    left_out = {"head_": HEADS not in components, "patch_": not coords["component"], "cut_": not cuts}
    left_out["path_"] = not width
    found = {
        name: (dims, _unknown(name, tuple(sizes[dim] for dim in dims)))
        for name, dims in DIMS.items()
        if not any(out and name.startswith(prefix) for prefix, out in left_out.items())
    }
    used = {dim for dims, _ in found.values() for dim in dims}
    kept = {
        # Strings as objects: numpy's of fixed width have no place in the Zarr format.
        name: np.array(values, dtype=object) if isinstance(values, list) else values
        for name, values in coords.items()
        if name in used or (isinstance(values, tuple) and values[0] in used)
    }
    return described(xr.Dataset(found, coords=kept))


def _unknown(name: str, shape: tuple[int, ...]) -> np.ndarray:
    if UNITS[name][0] == "token":
        return np.full(shape, "", dtype=object)
    return np.full(shape, np.nan, dtype=np.float32 if name == "residual" else np.float64)


def described(trace: xr.Dataset) -> xr.Dataset:
    """Write unit and meaning into the attributes of every variable."""
    for name in map(str, trace.data_vars):
        trace[name].attrs.update(zip(("units", "long_name"), UNITS[name], strict=True))
    return trace


def left_out(trace: xr.Dataset) -> Mapping[str, str]:
    """Pairs that were not traced, by name, and why."""
    return dict(json.loads(trace.attrs.get("skipped", "{}")))
