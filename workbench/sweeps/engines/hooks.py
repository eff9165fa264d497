"""Masks through TransformerLens' hooks, and what a full forward under them gives: the reference's road.

Nothing here comes from the walk: queries and z are scaled where a hook hands them over, scores of keys are changed
before the softmax, and what a twin or another prompt gives is taken from a run of its own under the same hooks.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from workbench.errors import MaskError
from workbench.models.bound import counterpart
from workbench.models.encode import Encoded
from workbench.models.hooked import HookedLVLM
from workbench.models.masks import Mask
from workbench.models.precision import double_kept
from workbench.models.sources import Vectors, keys_at, kinds_of

ZChange = Callable[[Tensor], Tensor]  # of z, `[row, pos, head, d_head]`


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
    with torch.no_grad(), double_kept(model.dtype), edits_kept(model):
        fwd_hooks = [*((name, counted(name, edit)) for name, edit in hooks), *seen]
        model.bridge.run_with_hooks(ids, fwd_hooks=fwd_hooks, **inputs)
    if silent := {name for name, _ in hooks} - set(calls):
        raise MaskError(
            f"{model.name!r}: hook {', '.join(silent)} took a mask but did not run, so the score would be a false 0."
        )
    nearest = {at: min(n for n in kept if n >= at) for at in read}  # a layer may be left out without a picture
    return {at: kept[n] if n == last else model.normed(kept[n]) for at, n in nearest.items()}


@contextmanager
def edits_kept(model: HookedLVLM) -> Iterator[None]:
    """MaskError where TransformerLens throws an edit away, which it does with a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="A hook on .*delegates its computation")
        try:
            yield
        except UserWarning as said:
            raise MaskError(
                f"{model.name!r}: of family {model.family.name!r} TransformerLens shows scores and takes no edits of "
                "them, so the naive engine can mask no keys here. Use engine='exact', which does not need it."
            ) from said


def head_hook(
    model: HookedLVLM,
    layer: int,
    heads: Sequence[int],
    projection: str,
    mask: Mask,
    encoded: Encoded,
    change: ZChange | None = None,
) -> tuple[str, Any]:
    """(hook name, edit) that masks some query heads of a layer through TransformerLens.

    Args:
        change: What the mask makes of z, where it makes it anew; see `z_change`.
    """
    start, stop = mask.start(encoded), mask.stop(encoded, projection)
    if projection == "key" or mask.form == "redirect":
        return _named(model, layer, "hook_attn_scores", projection), scores_edit(model, heads, mask, encoded)
    if projection == "value":
        name = _named(model, layer, "o.hook_in", projection)
    elif model.family.query_norm and mask.form != "as_published":
        name = _named(model, layer, "q_norm.hook_out", projection)
    else:
        name = _named(model, layer, "q.hook_out", projection)
    changed = change or (lambda z: z * mask.factor)

    def edit(value: Tensor, hook: Any) -> Tensor:
        at = {"pos_dim": getattr(hook, "pos_dim", None) or 1}
        return change_heads(value, heads, changed, model.n_heads, slice(start, stop), **at)

    return name, edit


def _named(model: HookedLVLM, layer: int, hook: str, projection: str) -> str:
    name = f"blocks.{layer}.attn.{hook}"
    if name not in model.bridge.hook_dict:
        raise MaskError(
            f"{model.name!r}: TransformerLens has no hook {name} for family {model.family.name!r}, so the naive engine "
            f"cannot mask the {projection} projection here. Use engine='exact', which does not need it."
        )
    return name


def z_change(model: HookedLVLM, encoded: Encoded, layer: int, mask: Mask) -> ZChange | None:
    """What a mask makes of z of all heads of a layer; None where it scales what it finds, or changes scores."""
    source = mask.source
    if mask.form in ("interchange", "resample"):
        other, index = counterpart(model, mask, encoded)
        kept: list[Tensor] = []

        def keep(value: Tensor, hook: Any) -> Tensor:
            kept.append(value.detach().reshape(1, other.n_tokens, model.n_heads, -1))
            return value

        states_read(model, other, [(_named(model, layer, "o.hook_in", "value"), keep)], [model.n_layers - 1])
        given = kept[0][:, index]
        return lambda z: given
    if not isinstance(source, Vectors):
        return None
    vectors = source.of(model, layer)
    if mask.form == "mean":
        given = vectors[kinds_of(encoded)][None]
        return lambda z: given
    if mask.channels:
        return lambda z: z * vectors
    unit = vectors / vectors.norm(dim=-1, keepdim=True)
    return lambda z: z + (mask.factor - 1) * (z * unit).sum(-1, keepdim=True) * unit + mask.bias * unit


def scores_edit(model: HookedLVLM, heads: Sequence[int], mask: Mask, encoded: Encoded) -> Any:
    """The edit of a layer's scores `[row, head, pos, key]`, hidden keys very negative, that masks keys or redirects."""
    start, stop = mask.start(encoded), mask.stop(encoded, "key")
    if mask.form == "redirect":
        keys = keys_at(encoded, mask.source)
        stop = mask.stop(encoded)
    else:
        keys = torch.zeros(encoded.n_tokens, dtype=torch.bool)
        end = encoded.image_span[1] if mask.positions == "image" and encoded.image_span else None
        keys[mask.first(encoded) : end] = True
        capped = getattr(model.decoder.config, "attn_logit_softcapping", None)
        if capped and mask.factor:
            raise MaskError(
                f"{model.name!r} caps its scores, and TransformerLens' hook gives them after that, so the naive engine "
                "can remove keys (form='limit') and not scale them. Use engine='exact'."
            )
    keys = keys.to(model.device)

    def edit(value: Tensor, hook: Any) -> Tensor:
        changed, mine = value.clone(), value[:, list(heads), start:stop]
        new = mine + mask.bias if mask.form == "redirect" else mine * mask.factor
        hidden = mine < torch.finfo(value.dtype).min / 2
        changed[:, list(heads), start:stop] = torch.where(keys & ~hidden, new, mine)
        return changed

    return edit


def change_heads(
    value: Tensor, heads: Sequence[int], change: ZChange, n_heads: int, where: slice, *, pos_dim: int
) -> Tensor:
    """Change some heads at the positions `where`; a new tensor of the same shape.

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
    new = by_head.clone()
    new[:, where, list(heads)] = change(by_head)[:, where, list(heads)]
    if pos_dim == 2 and not flat:
        return new.transpose(1, 2)
    return new.flatten(-2) if flat else new
