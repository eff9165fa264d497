"""The checks of `workbench check` on forms that put something into heads: by hand, and on two roads to the state."""

import dataclasses
from collections.abc import Iterator
from math import prod
from typing import Any

import torch
from torch import Tensor

from workbench.axes import Head
from workbench.models.attention import allowed_keys, causal_mask
from workbench.models.conformance.probe import Failed, NotApplicable, Probe, check
from workbench.models.masks import Mask, head_writes, masked_z
from workbench.models.sources import KINDS, kinds_of
from workbench.models.walk import BasePass, base_pass, read_out
from workbench.prompts.prompt import PromptSet

FACTOR, BIAS = 0.25, 1.5


@check("forms that put something in")
def check_forms(probe: Probe) -> Any:
    """z under each form is what its formula gives, written out; and going on from it equals the whole forward."""
    model, base, layer = probe.model, probe.base, probe.layers[len(probe.layers) // 2]
    twin, count = base_pass(model, [model.encode(twin_of(probe))]), 0
    for count, (mask, projection) in enumerate(forms(probe), 1):
        head, start = (0, model.n_heads - 1)[count % 2], mask.start(probe.encoded)
        z = masked_z(model, base, layer, projection, mask)
        what = f"{mask.form}, {projection}, {mask.positions}, L{layer}H{head}"
        yield f"z under {what}", z[0, start:, head], by_hand(probe, twin, (layer, head), mask, projection)[start:]
        writes = head_writes(model, layer, (z - base.recordings[layer].z)[:, start:], [(head,)])
        state = read_out(model, base, layer, 1, writes=writes, start=start)[model.n_layers - 1][0, 0]
        yield what, state, model.state(probe.prompt, heads=[(layer, head)], projection=projection, mask=mask)
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
        raise NotApplicable("without a chat template the twins end in different tokens, which no head carries")
    every = [(layer, head) for layer in model.masked_layers for head in range(model.n_heads)]
    mask = Mask(form="interchange", source=twin)
    patched, wanted = model.state(probe.prompt, heads=every, projection="value", mask=mask), probe.full(twin)
    if torch.equal(wanted, probe.full()):
        raise Failed("the twins have the same state, so that nothing was to be carried")
    difference = probe.near("the state with all heads interchanged", patched, wanted)
    return "bit-identical" if torch.equal(patched, wanted) else f"largest difference {difference:.1e}"


def twin_of(probe: Probe) -> Any:
    """The probe's other prompt, as the twin of its prompt."""
    return dataclasses.replace(probe.other_prompt, label="unsafe")


def forms(probe: Probe) -> Iterator[tuple[Mask, str]]:
    """The forms that put something in, with the projection that they mask."""
    model, twin, image = probe.model, twin_of(probe), probe.encoded.image_span is not None
    shape = model.n_layers, model.n_heads, model.d_head
    table = torch.arange(prod(shape), dtype=torch.float64).cos().view(shape)
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


def by_hand(probe: Probe, twin: BasePass, at: Head, mask: Mask, projection: str) -> Tensor:
    """z of one head under a mask, from its definition, `[pos, d_head]`."""
    layer, head = at
    own, theirs = (base.recordings[layer].z[0, :, head] for base in (probe.base, twin))
    kinds, their_kinds = kinds_of(probe.encoded), kinds_of(twin.encoded[0])
    if mask.form == "interchange":
        return theirs
    if mask.form == "mean":
        means = [(own[kinds == kind].mean(0) + theirs[their_kinds == kind].mean(0)) / 2 for kind in range(len(KINDS))]
        return torch.stack(means)[kinds]
    if mask.form == "resample":
        # Which position was drawn is the draw's; that it is one of the twin's of the same kind is looked up.
        found = masked_z(probe.model, probe.base, layer, projection, mask)[0, :, head]
        for place, kind in enumerate(kinds):
            if not (theirs[their_kinds == kind] == found[place]).all(-1).any():
                raise Failed(f"position {place} took z of no position of its kind in the other prompt")
        return found
    if projection == "value":
        vector = mask.source.of(probe.model, layer)[head]
        if mask.form == "scale":
            return own @ vector.diag()
        unit = vector / vector.norm()
        return own - (1 - FACTOR) * own @ torch.outer(unit, unit) + BIAS * unit
    return _attended(probe, at, mask, projection)


def _attended(probe: Probe, at: Head, mask: Mask, projection: str) -> Tensor:
    """z of one head from scores that are written out, position by position."""
    layer, head = at
    seen, encoded, n = probe.base.recordings[layer], probe.encoded, probe.base.n_pos
    group = head * seen.key.shape[1] // seen.query.shape[1]
    query, key, value = seen.query[0, head], seen.key[0, group], seen.value[0, group]
    scale = query.shape[-1] ** -0.5 if seen.scaling is None else seen.scaling
    allowed = (causal_mask(n, n, query.device) if seen.mask is None else allowed_keys(seen.mask))[0, 0]
    first, last = mask.first(encoded), encoded.image_span[1] if mask.positions == "image" and encoded.image_span else n
    factor, bias = query.new_ones(n), query.new_zeros(n)
    if mask.form == "redirect":
        bias[encoded.image_positions] = mask.bias
    else:
        factor[first:last] = mask.factor
    z = seen.z[0, :, head].clone()
    for place in range(first, last if projection == "query" and mask.form != "redirect" else n):
        scores = (key @ query[place]) * scale * (factor if projection == "key" else factor[place])
        if (cap := seen.extras.get("softcap")) is not None:
            scores = cap * (scores / cap).tanh()
        z[place] = (scores + bias).masked_fill(~allowed[place], -torch.inf).softmax(-1) @ value
    return z
