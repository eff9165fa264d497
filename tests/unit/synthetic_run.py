"""A made-up run of the real shape: seeded noise, and effects planted where a test wants them."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from workbench.criteria.deflection import angle_deg
from workbench.runs.reading import SCHEMAS

Head = tuple[int, int]
FAMILIES = ("text", "typographic", "icon", "wrapper")
MEASURES = ("deflection", "kl", "js", "tv", "top1_change", "l2", "norm_ratio", "refusal_change")


def synthetic_run(
    *,
    pairs: int = 40,
    layers: int = 3,
    heads: int = 4,
    d_head: int = 6,
    d_model: int = 16,
    planted: Sequence[Head] = ((2, 1),),
    decoy: Head | None = (0, 3),
    effect: float = 3.0,
    splits: Sequence[str] = ("",),
    projections: Sequence[str] = ("query", "value"),
    paired: bool = True,
    keep_states: bool = True,
    seed: int = 0,
) -> xr.Dataset:
    """A run of `pairs` unsafe prompts and as many safe twins, in the families text, typographic, icon and wrapper.

    Masking a `planted` head turns the state of unsafe prompts `effect` times as far as its ordinary 1 degree or so; the
    `decoy` turns every state by about 20 degrees, whatever its class. The planted heads' outputs also tell the classes
    apart. Deflections are computed from the states; `splits` are dealt to the pairs in turn within each family.
    """
    rng = np.random.default_rng(seed)
    unsafe = np.tile([True, False], pairs)
    pair = np.repeat(np.arange(pairs), 2)
    n, cells = 2 * pairs, (2 * pairs, len(projections), layers, heads)
    size = np.deg2rad(rng.gamma(9.0, 1 / 9.0, size=cells))  # radians, mean 1 degree
    loudness = rng.uniform(1.0, 1.5, size=(layers, heads))
    for layer, head in planted:
        loudness[layer, head] = 0.9  # quiet on safe prompts, so that the published percentile keeps it
    size *= loudness
    if decoy is not None:
        size[:, :, decoy[0], decoy[1]] *= 20
    for layer, head in planted:
        size[unsafe, :, layer, head] *= effect
    base = rng.normal(size=(n, d_model)) + 2.0
    aside = rng.normal(size=(1, *cells[1:], d_model)) + 0.5 * rng.normal(size=(*cells, d_model))  # a head's own way
    unit = base / np.linalg.norm(base, axis=-1, keepdims=True)
    along = unit[:, None, None, None]
    aside -= (aside * along).sum(-1, keepdims=True) * along
    aside /= np.linalg.norm(aside, axis=-1, keepdims=True)
    length = np.linalg.norm(base, axis=-1)[:, None, None, None, None]
    state = length * (np.cos(size)[..., None] * along + np.sin(size)[..., None] * aside)
    z = rng.normal(size=(n, layers, heads, d_head))
    for layer, head in planted:
        z[unsafe, layer, head, 0] += effect
    measures = {
        "deflection": angle_deg(base[:, None, None, None], state),
        "kl": size**2 * 10,
        "js": size**2,
        "tv": np.minimum(size, 1.0),
        "top1_change": (size > np.deg2rad(2)).astype(float),
        "l2": np.linalg.norm(state - base[:, None, None, None], axis=-1),
        "norm_ratio": 1 + 0.1 * size,
        "refusal_change": -size * 5,
    }
    dims = ("prompt", "projection", "layer", "head")
    variables = {name: (dims, measures[name].astype(np.float32)) for name in MEASURES}
    variables |= {
        "head_output": (("prompt", "layer", "head", "d_head"), z.astype(np.float32)),
        "base_state": (("prompt", "d_model"), base.astype(np.float32)),
        "image_attention": (("prompt", "layer", "head"), rng.uniform(size=(n, layers, heads)).astype(np.float32)),
        "refusal_write": (("prompt", "layer", "head"), rng.normal(size=(n, layers, heads)).astype(np.float32)),
    }
    variables["twin_gap"] = ("prompt", np.where(unsafe, -5.0, 5.0).astype(np.float32))
    # Any lower triangular matrix is the root of some W_O.
    roots = np.tril(rng.normal(size=(layers, heads, d_head, d_head))) + 2 * np.eye(d_head)
    variables["write_root"] = (("layer", "head", "d_head", "d_root"), roots.astype(np.float32))
    if keep_states:
        variables["state"] = ((*dims, "d_model"), state.astype(np.float32))
    family = np.array(FAMILIES)[pair % len(FAMILIES)]
    coords = {
        "prompt": [f"{'unsafe' if u else 'safe'} {p}" for u, p in zip(unsafe, pair, strict=True)],
        "projection": list(projections),
        "layer": np.arange(layers),
        "head": np.arange(heads),
        "label": ("prompt", np.where(unsafe, "unsafe", "safe")),
        "source": ("prompt", np.full(n, "synthetic")),
        "family": ("prompt", family),
        "category": ("prompt", np.array([f"topic {p % 3}" for p in pair])),
        "pair_id": ("prompt", np.array([f"pair {p}" if paired else "" for p in pair])),
        "split": ("prompt", np.array(splits)[(pair // len(FAMILIES)) % len(splits)]),
        "variant": ("prompt", np.full(n, "as given")),
        "has_image": ("prompt", np.full(n, True)),
    }
    attrs = {"schema": SCHEMAS[-1], "model": "synthetic", "n_layers": layers, "n_heads": heads, "seed": seed}
    return xr.Dataset(variables, coords=coords, attrs=attrs)
