"""The one place where every family's heads are read and edited.

transformers lets a model call an attention function by name. Ours computes exactly what its SDPA function
computes, but on the way it can see and edit what all families have in common at that point: queries after any
query norm and after the rotary step, keys and values after the cache, the real allowed-key mask of the layer
(sliding windows, chunks and bidirectional image blocks included), and the head outputs z before W_O. Grouped
queries, fused projections and query norms therefore need no special case.

Axis words: row pos head kv_head key d_head (see `workbench.axes`).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

IMPLEMENTATION = "workbench_heads"


@dataclass
class HeadEdit:
    """What is done to some heads in one layer, row by row. Positions outside `start:stop` are left alone.

    Attributes:
        query_factor: Multiplies queries after any query norm; `[row, head]`. None changes nothing.
        query_off: Where true, z becomes the mean of v over the allowed keys of each position: the limit of a
            query factor of 0, written directly; `[row, head]`.
        output_factor: Multiplies z; `[row, head]`.
        chosen: Where true, z becomes what `change` makes of it; `[row, head]`.
        change: From the attention module, what it saw and its z to z of every head under the mask.
        start: First token position (0-based, in the whole sequence) at which the edit acts.
        stop: One past the last; None for all that follow, those of a reply too.
    """

    query_factor: Float[Tensor, "row head"] | None = None
    query_off: Bool[Tensor, "row head"] | None = None
    output_factor: Float[Tensor, "row head"] | None = None
    chosen: Bool[Tensor, "row head"] | None = None
    change: "Callable[[nn.Module, Recording, Tensor], Tensor] | None" = None
    start: int = 0
    stop: int | None = None


@dataclass
class Recording:
    """What one layer's attention saw in one pass, rotary step and query norm applied.

    Attributes:
        query: `[row, head, pos, d_head]`.
        key: `[row, kv_head, key, d_head]`.
        value: `[row, kv_head, key, d_head]`.
        mask: Boolean `[row or 1, 1, pos, key]`, true where allowed; None means plain causal.
        scaling: The factor on the scores.
        z: Head outputs before W_O, `[row, pos, head, d_head]`.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scaling: float | None
    extras: dict[str, Any]
    z: Tensor = field(default_factory=lambda: torch.empty(0))

    def at_last(self) -> "Recording":
        """The same with the last position's query alone."""
        mask = self.mask[:, :, -1:] if self.mask is not None else None
        return replace(self, query=self.query[:, :, -1:], mask=mask)


class LastPosition(Exception):
    """Carries z of the last position `[row, 1, head, d_head]` out of a layer that is needed no further."""

    def __init__(self, z: Tensor) -> None:
        super().__init__("internal: the last layer was left after its attention")
        self.z = z


@dataclass
class Site:
    """The state of one self-attention module: what to edit, and what to keep.

    `tap` is added to z: zeros through which a gradient can be read.
    """

    layer: int
    edit: HeadEdit | None = None
    recording: Recording | None = None
    record: bool = False
    last_only: bool = False
    tap: Tensor | None = None
    calls: int = 0


def install_sites(attentions: dict[int, nn.Module]) -> dict[int, Site]:
    """Give each decoder self-attention module a `Site`, by layer; the model must run with `IMPLEMENTATION`."""
    sites = {}
    for layer, module in attentions.items():
        module.workbench_site = sites[layer] = Site(layer)  # type: ignore[assignment]  # a plain attribute
    return sites


def head_attention(
    module: nn.Module,
    query: Float[Tensor, "row head pos d_head"],
    key: Float[Tensor, "row kv_head key d_head"],
    value: Float[Tensor, "row kv_head key d_head"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "row pos head d_head"], None]:
    """transformers' SDPA attention, with the edits and recordings of the module's `Site`."""
    site: Site | None = getattr(module, "workbench_site", None)
    seen = Recording(query, key, value, attention_mask, scaling, kwargs)
    if site is None:
        return attend(module, seen), None
    site.calls += 1
    if seen.mask is None and key.shape[2] != query.shape[2] and query.shape[2] > 1:
        seen.mask = causal_mask(query.shape[2], key.shape[2], query.device)
    if site.last_only:
        seen = seen.at_last()
    z = seen.z = edited_attention(module, site.edit, seen)
    if site.record:
        site.recording = seen
    if site.tap is not None:
        z = z + site.tap
    if site.last_only:
        raise LastPosition(z)
    return z, None


def attend(module: nn.Module, seen: Recording) -> Float[Tensor, "row pos head d_head"]:
    """Head outputs z; SDPA unless the family caps its scores, which SDPA cannot."""
    if seen.extras.get("softcap") is None:
        alone = {"is_causal": False} if seen.mask is None and seen.query.shape[2] == 1 else {}
        options = {**seen.extras, **alone, "scaling": seen.scaling}
        return sdpa_attention_forward(module, seen.query, seen.key, seen.value, seen.mask, **options)[0]
    pattern, value = attention_pattern(seen), seen.value
    return torch.einsum("rhqk,rhkd->rqhd", pattern.to(value.dtype), per_query_head(value, seen.query.shape[1]))


def attention_pattern(seen: Recording) -> Float[Tensor, "row head pos key"]:
    """Attention weights, each row of keys summing to 1; computed in float32 or wider."""
    query, key = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (seen.query, seen.key))
    scale = query.shape[-1] ** -0.5 if seen.scaling is None else seen.scaling
    scores = torch.einsum("rhqd,rhkd->rhqk", query, per_query_head(key, query.shape[1])) * scale
    if (softcap := seen.extras.get("softcap")) is not None:
        scores = torch.tanh(scores / softcap) * softcap
    mask = causal_mask(query.shape[2], key.shape[2], query.device) if seen.mask is None else seen.mask
    scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1)


def edited_attention(module: nn.Module, edit: HeadEdit | None, seen: Recording) -> Float[Tensor, "row pos head d_head"]:
    """z with `edit` applied; with no edit, bit for bit what `attend` gives."""
    if edit is None:
        return attend(module, seen)
    n_pos, n_heads = seen.query.shape[2], seen.query.shape[1]
    acts = acting_positions(edit.start, n_pos, seen.key.shape[2], seen.query.device, edit.stop)[None, :, None, None]
    if edit.query_factor is not None:
        scaled = seen.query * edit.query_factor[:, :, None, None].to(seen.query.dtype)
        seen = replace(seen, query=torch.where(acts.transpose(1, 2), scaled, seen.query))
    z = attend(module, seen)
    if edit.query_off is not None:
        even = even_attention(seen.value, seen.mask, n_pos, n_heads)
        z = torch.where(acts & edit.query_off[:, None, :, None], even, z)
    if edit.output_factor is not None:
        z = torch.where(acts, z * edit.output_factor[:, None, :, None].to(z.dtype), z)
    if edit.chosen is not None and edit.change is not None:
        z = torch.where(acts & edit.chosen[:, None, :, None], edit.change(module, seen, z), z)
    return z


def even_attention(
    value: Float[Tensor, "row kv_head key d_head"], mask: Tensor | None, n_pos: int, n_heads: int
) -> Float[Tensor, "row pos head d_head"]:
    """The mean of v over the allowed keys of each position: what a head outputs when its queries vanish.

    Source:
        Zhou et al., arXiv 2410.13708, section 3 ("undifferentiated attention"), taken to the limit.
    """
    wide = value.to(torch.promote_types(value.dtype, torch.float32))
    n_keys = value.shape[2]
    if mask is None:
        count = torch.arange(1, n_keys + 1, device=value.device, dtype=wide.dtype)
        mean = (wide.cumsum(2) / count[None, None, :, None])[:, :, n_keys - n_pos :]
    else:
        allowed = allowed_keys(mask).to(wide.dtype)
        allowed = allowed.expand(value.shape[0], -1, -1, -1)
        share = allowed / allowed.sum(-1, keepdim=True)
        mean = torch.einsum("rgqk,rhkd->rhqd", share, wide)
    return per_query_head(mean.to(value.dtype), n_heads).transpose(1, 2)


def allowed_keys(mask: Tensor) -> Bool[Tensor, "row one pos key"]:
    """True where a key may be seen, from a boolean mask or an additive one (very negative = forbidden)."""
    if mask.dtype == torch.bool:
        return mask
    return mask > torch.finfo(mask.dtype).min / 2


def causal_mask(n_pos: int, n_keys: int, device: torch.device) -> Bool[Tensor, "one one pos key"]:
    """Plain causal attention when the `n_pos` queries are the last of `n_keys` positions."""
    pos = torch.arange(n_keys - n_pos, n_keys, device=device)
    return (pos[:, None] >= torch.arange(n_keys, device=device)[None, :])[None, None]


def acting_positions(
    start: int, n_pos: int, n_keys: int, device: torch.device, stop: int | None = None
) -> Bool[Tensor, " pos"]:
    """Which of the last `n_pos` of `n_keys` positions lie at or after `start`, and before `stop` where it is given."""
    at = torch.arange(n_keys - n_pos, n_keys, device=device)
    return (at >= start) & (at < (n_keys if stop is None else stop))


def per_query_head(
    tensor: Float[Tensor, "row kv_head key d_head"], n_heads: int
) -> Float[Tensor, "row head key d_head"]:
    """Repeat key/value heads so that query head h finds its own at index h (grouped-query attention)."""
    groups = n_heads // tensor.shape[1]
    return tensor if groups == 1 else tensor.repeat_interleave(groups, dim=1)


@contextmanager
def sites_set(sites: list[Site], **values: Any) -> Iterator[None]:
    """Set the same attributes on several sites for the length of a block; always put back, errors included."""
    before = [{name: getattr(site, name) for name in values} for site in sites]
    for site in sites:
        for name, value in values.items():
            setattr(site, name, value)
    try:
        yield
    finally:
        for site, old in zip(sites, before, strict=True):
            for name, value in old.items():
                setattr(site, name, value)


AttentionInterface.register(IMPLEMENTATION, head_attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
