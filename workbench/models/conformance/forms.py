"""The checks of `workbench check` on forms that put something into heads; each by hand, and on two roads to the state."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from workbench.models.attention import allowed_keys, causal_mask
from workbench.models.conformance.probe import Failed, Probe, check
from workbench.models.masks import Mask, head_writes, masked_z
from workbench.models.sources import Others, kinds_of
from workbench.models.walk import base_pass, read_out
from workbench.prompts.prompt import PromptSet

BY_CHANNEL = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
FACTOR, BIAS = 0.25, 1.5


@check("forms that put something in")
def check_forms(probe: Probe) -> Any:
    """z under each form is what its formula gives, written out; and going on from it equals the whole forward."""
    model, layer, heads = probe.model, probe.layers[len(probe.layers) // 2], (0, model_last(probe))
    count = 0
    for mask, projection in forms(probe):
        base = base_pass(model, [probe.encoded])
        start = mask.start(probe.encoded)
        z = masked_z(model, base, layer, projection, mask)
        what = f"{mask.form}, {projection}, {mask.positions}"
        yield f"z under {what}", z[:, start:], by_hand(probe, layer, mask, projection)[:, start:]
        writes = head_writes(model, layer, (z - base.recordings[layer].z)[:, start:], [(head,) for head in heads])
        rows = read_out(model, base, layer, len(heads), writes=writes, start=start)[model.n_layers - 1][0]
        for row, head in zip(rows, heads, strict=True):
            whole = model.state(probe.prompt, heads=[(layer, head)], projection=projection, mask=mask)
            yield f"{what}, L{layer}H{head}", row, whole
        count += 1
    return f"{count} masks, "


@check("all heads interchanged")
def check_full_patch(probe: Probe) -> str:
    """With every head's z that of the twin, the final state is the twin's: nothing else reaches the last position.

    Cross-attention to the picture is no maskable head; where there is some, the twins share their picture.
    """
    model, twin = probe.model, twin_of(probe)
    if len(model.masked_layers) < model.n_layers:
        twin = dataclasses.replace(twin, image=probe.prompt.image)
    if probe.encoded.input_ids[0, -1] != model.encode(twin).input_ids[0, -1]:
        raise Failed("the twins end in different tokens, whose embeddings no head carries")
    every = [(layer, head) for layer in model.masked_layers for head in range(model.n_heads)]
    mask = Mask(form="interchange", source=twin)
    patched, wanted = model.state(probe.prompt, heads=every, projection="value", mask=mask), probe.full(twin)
    if torch.equal(wanted, probe.full()):
        raise Failed("the twins have the same state, so that nothing was to be carried")
    difference = probe.near("the state with all heads interchanged", patched, wanted)
    return "bit-identical" if torch.equal(patched, wanted) else f"largest difference {difference:.1e}"


def model_last(probe: Probe) -> int:
    return probe.model.n_heads - 1


def twin_of(probe: Probe) -> Any:
    """The probe's other prompt, as the twin of its prompt."""
    return dataclasses.replace(probe.other_prompt, label="unsafe")


def forms(probe: Probe) -> Iterator[tuple[Mask, str]]:
    """The forms that put something in, with the projection that they mask."""
    model, twin, image = probe.model, twin_of(probe), probe.encoded.image_span is not None
    table = BY_CHANNEL.repeat(model.n_layers * model.n_heads * model.d_head)[
        : -2 * model.n_layers * model.n_heads * model.d_head
    ]
    table = table.view(model.n_layers, model.n_heads, model.d_head)
    both = PromptSet([probe.prompt, twin])
    yield Mask(form="interchange", source=twin), "value"
    yield Mask(form="interchange", source=twin, positions="last"), "value"
    yield Mask(form="mean", source=both), "value"
    yield Mask(form="resample", source=both, seed=1), "value"
    yield Mask(form="direction", source=table, factor=FACTOR, bias=BIAS), "value"
    yield Mask(form="scale", source=table), "value"
    yield Mask(), "key"
    yield Mask(form="scale", factor=FACTOR, positions="last"), "key"
    if image:
        yield Mask(form="redirect", bias=BIAS), "query"
        yield Mask(positions="image"), "key"
        yield Mask(positions="image"), "query"


def by_hand(probe: Probe, layer: int, mask: Mask, projection: str) -> Tensor:
    """z of every head of a layer under a mask, from its definition."""
    model, seen = probe.model, probe.base.recordings[layer]
    n, twin = probe.base.n_pos, model.encode(twin_of(probe))
    theirs = base_pass(model, [twin]).recordings[layer].z
    kinds, their_kinds = kinds_of(probe.encoded), kinds_of(twin)
    if mask.form == "interchange":
        return theirs
    if mask.form == "mean":
        found = torch.empty_like(seen.z)
        for kind in kinds.unique():
            parts = [seen.z[0, kinds == kind].mean(0), theirs[0, their_kinds == kind].mean(0)]
            found[0, kinds == kind] = torch.stack(parts).mean(0)
        return found
    if mask.form == "resample":
        # Which position was drawn is the draw's; that it is one of the twin's of the same kind is looked up.
        z = masked_z(model, base_pass(model, [probe.encoded]), layer, projection, mask)
        assert isinstance(mask.source, Others)
        for at in range(n):
            if not any(torch.equal(z[0, at], one) for one in theirs[0, their_kinds == kinds[at]]):
                raise Failed(f"position {at} took z of no position of its kind in the other prompt")
        return z
    if projection == "value":
        vectors = mask.source.of(model, layer)  # type: ignore[union-attr]  # these two have vectors
        if mask.form == "scale":
            return torch.einsum("rphd,hd->rphd", seen.z, vectors)
        unit = torch.stack([v / v.norm() for v in vectors])
        along = torch.einsum("rphd,hd->rph", seen.z, unit)
        return seen.z - torch.einsum("rph,hd->rphd", (1 - FACTOR) * along - BIAS, unit)
    return _attended(probe, layer, mask, projection)


def _attended(probe: Probe, layer: int, mask: Mask, projection: str) -> Tensor:
    """z from scores that are written out, head by head and position by position."""
    seen, encoded, n = probe.base.recordings[layer], probe.encoded, probe.base.n_pos
    scale = seen.query.shape[-1] ** -0.5 if seen.scaling is None else seen.scaling
    allowed = causal_mask(n, n, seen.query.device) if seen.mask is None else allowed_keys(seen.mask)
    on = encoded.image_positions if mask.form == "redirect" else torch.zeros(n, dtype=torch.bool)
    first, last = mask.first(encoded), n
    if mask.positions == "image" and encoded.image_span is not None:
        last = encoded.image_span[1]
    factor = torch.ones(n, dtype=seen.query.dtype)
    factor[first:last] = 0.0 if mask.form == "limit" else mask.factor if mask.form == "scale" else 1.0
    z = seen.z.clone()
    for head in range(z.shape[2]):
        group = head * seen.key.shape[1] // z.shape[2]
        for at in range(first, n if projection == "key" or mask.form == "redirect" else last):
            scores = seen.key[0, group] @ seen.query[0, head, at] * scale
            scores = scores * (factor if projection == "key" else factor[at])
            if (cap := seen.extras.get("softcap")) is not None:
                scores = cap * (scores / cap).tanh()
            scores = (scores + mask.bias * on).masked_fill(~allowed[0, 0, at], -torch.inf)
            z[0, at, head] = scores.softmax(-1) @ seen.value[0, group]
    return z
