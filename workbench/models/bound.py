"""A mask bound to the prompts of a pass: where it acts, and what it puts into heads there.

Forms that need more than a factor (twins, means, draws, directions, keys) are all a change of z, made by one function
from what the attention saw: `masked_z` applies it to a recorded pass, the attention's site to a running one, so that
engines, head sets and replies share it.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from workbench.errors import MaskError
from workbench.models.arguments import repeated
from workbench.models.attention import HeadEdit, Recording, attend, attention_pattern, causal_mask, per_query_head
from workbench.models.decoder import Decoder
from workbench.models.encode import Encoded, encode
from workbench.models.forms import FROM_PROMPTS, Mask
from workbench.models.sources import OF_THE_CALL, Others, Vectors, aligned, keys_at, kinds_of, redrawn, unlike_lengths
from workbench.models.walk import BasePass, base_pass, batch_key
from workbench.prompts.prompt import Prompt, PromptSet

LOGITS = -1  # beside the layers
Change = Callable[[nn.Module, Recording, Tensor], Tensor]


def with_source(
    model: Decoder, mask: Mask, prompts: PromptSet, track: Callable[[Iterable[Prompt]], Iterable[Prompt]] = iter
) -> Mask:
    """The mask as it acts on these prompts: they are its source where it names none, and means are measured.

    Args:
        track: Shows the progress of what is measured.
    """
    if mask.form not in FROM_PROMPTS or isinstance(mask.source, Vectors):
        return mask
    source: Any = mask.source
    if source is None:
        of = "" if mask.form == "interchange" else f" {prompts.content_hash()}"
        source = Others(prompts, OF_THE_CALL + of)
    return replace(mask, source=source.means(model, track) if mask.form == "mean" else source)


def check_source(mask: Mask, prompt: Prompt, count: Callable[[Prompt], int]) -> None:
    """Refuse a prompt for which the mask's source has nothing that fits; pictures are not decoded.

    Args:
        count: Tokens of a prompt.

    Raises:
        PromptError: It has no twin, or one of another length, or there is no prompt to draw.
    """
    others = mask.source
    if not isinstance(others, Others) or mask.form == "mean":
        return
    if mask.form == "resample":
        others.drawn(prompt, mask.seed)
        return
    twin = others.twin(prompt)
    lengths = count(prompt), count(twin)
    if mask.positions == "all" and lengths[0] != lengths[1]:
        raise unlike_lengths((prompt.id, twin.id), lengths, lengths)


def counterpart(model: Decoder, mask: Mask, encoded: Encoded) -> tuple[Encoded, Tensor]:
    """The prompt whose z `interchange` or `resample` puts in, and which of its positions at each position, `[pos]`.

    Raises:
        PromptError: There is none, or the two cannot be aligned.
    """
    others, prompt = mask.source, encoded.prompt
    if not isinstance(others, Others) or prompt is None:
        raise MaskError(
            f"The form {mask.form!r} takes z of other prompts, and none are given here: source=… (--mask-source; "
            "--twin), a twin or the prompts to take from. A sweep takes the prompts that it is given."
        )
    if mask.form == "resample":
        other = encode(model, others.drawn(prompt, mask.seed))
        return other, redrawn(encoded, other, mask.seed)
    other = encode(model, others.twin(prompt))
    return other, aligned(encoded, other, mask.first, lambda e: mask.stop(e) or e.n_tokens)


def bound(model: Decoder, mask: Mask, base: BasePass) -> "Bound":
    """The mask bound to the prompts of a pass; kept with the pass."""
    if mask not in base.bound:
        base.bound[mask] = Bound(model, mask, base.encoded)
    found: Bound = base.bound[mask]
    return found


class Bound:
    """A mask on some prompts that share a batch.

    Args:
        model: The model.
        mask: With its source; see `with_source`.
        batch: The prompts, in row order; of equal length, their pictures at one place.
    """

    def __init__(self, model: Decoder, mask: Mask, batch: Sequence[Encoded]) -> None:
        self.model, self.mask, self.batch = model, mask, list(batch)

    def edit(self, projection: str, layer: int, rows: Sequence[Sequence[int]]) -> HeadEdit:
        """The edit of a layer in which row r masks the query heads `rows[r]`; rows are prompt-major, or one for all."""
        model, mask = self.model, self.mask
        start = mask.start(self.batch[0]) if self.batch else 0
        edit = mask.edit(projection, rows, model.n_heads, start, model.device)
        edit.stop = mask.stop(self.batch[0], projection) if self.batch else None
        if mask.puts_in(projection):
            edit.change = self.change(projection, layer)
        return edit

    def change(self, projection: str, layer: int) -> Change:
        """From the attention module, what it saw and its z, to z of every head under the mask, at all positions."""
        mask = self.mask
        if projection == "key":
            return self._keys_scaled
        if mask.form == "redirect":
            return self._redirected
        if mask.form in FROM_PROMPTS:
            return partial(_put_in, self._z_of_others(layer))
        assert isinstance(mask.source, Vectors)
        vectors = mask.source.of(self.model, layer)
        return partial(_channels, vectors) if mask.channels else partial(_along, vectors, mask.factor, mask.bias)

    def _z_of_others(self, layer: int) -> Tensor:
        """z that comes into the place of the prompts' own in a layer, `[prompt, pos, head, d_head]`."""
        if self.mask.form == "mean":
            table, kinds = self._means().of(self.model, layer), self._each(kinds_of)
            if table.isnan().flatten(1).any(1)[kinds.unique().to(table.device)].any():
                raise MaskError(
                    f"Prompt {self.batch[0].prompt_id!r} has a picture and no prompt of the mask's source has one, so "
                    "there is no mean of z at its tokens. Take the mean over prompts with pictures."
                )
            return table[kinds.to(table.device)]
        return self._others[layer]

    def logits_of_others(self) -> Tensor:
        """Next-token logits of each prompt's counterpart, unmasked, `[prompt, vocab]`."""
        return self._others[LOGITS]

    def _each(self, of: Callable[[Encoded], Tensor]) -> Tensor:
        """What `of` says of the positions that the prompts have in common, `[prompt, pos]`."""
        found = [of(e) for e in self.batch]
        return torch.stack([line[: min(map(len, found))] for line in found])

    def _means(self) -> Vectors:
        source = self.mask.source
        if isinstance(source, Others):
            return source.means(self.model)
        if not isinstance(source, Vectors):
            raise MaskError(
                "The form 'mean' needs the prompts whose z it takes the mean of: source=…. A sweep takes the prompts "
                "that it is given."
            )
        return source

    @cached_property
    def _others(self) -> dict[int, Tensor]:
        """z of each prompt's counterpart at the positions that stand for its own, by layer, and its logits.

        In one batch where they can share one, as the prompts themselves did: what is alike is then alike to the bit.
        """
        others = [counterpart(self.model, self.mask, e) for e in self.batch]
        alike = len({batch_key(e) for e, _ in others}) == 1
        batches = [others] if alike else [[other] for other in others]
        found: dict[int, list[Tensor]] = {}
        for batch in batches:
            index = torch.stack([at for _, at in batch]).clamp(min=0)
            base, rows = base_pass(self.model, [e for e, _ in batch]), torch.arange(len(batch))[:, None]
            for layer, seen in base.recordings.items():
                found.setdefault(layer, []).append(seen.z[rows, index.to(seen.z.device)])
            found.setdefault(LOGITS, []).append(base.logits)
        return {layer: torch.cat(parts) for layer, parts in found.items()}

    def _keys_scaled(self, module: nn.Module, seen: Recording, z: Tensor) -> Tensor:
        at = torch.arange(seen.key.shape[2], device=seen.key.device)
        masked = torch.ones_like(at, dtype=torch.bool)
        if self.batch:
            first = self.mask.first(self.batch[0])
            span = self.batch[0].image_span
            masked = at >= first
            if self.mask.positions == "image" and span is not None:
                masked &= at < span[1]
        key = torch.where(masked[:, None], seen.key * self.mask.factor, seen.key)
        return attend(module, replace(seen, key=key))

    def _redirected(self, module: nn.Module, seen: Recording, z: Tensor) -> Tensor:
        source = self.mask.source
        assert isinstance(source, str | tuple)
        if not self.batch:
            raise MaskError("redirect needs the prompts whose keys it changes; hold it with the prompts given.")
        chosen = self._each(partial(keys_at, chosen=source)).to(seen.key.device)
        # A reply's tokens are text.
        chosen = nn.functional.pad(chosen, (0, seen.key.shape[2] - chosen.shape[1]), value=source == "text")
        return biased_attention(module, seen, repeated(chosen, len(z) // len(chosen)).to(z) * self.mask.bias)


def biased_attention(module: nn.Module, seen: Recording, bias: Tensor) -> Tensor:
    """z of every head with `bias`, `[row, key]` in the dtype of z, added to the scores, after a cap."""
    scale = seen.query.shape[-1] ** -0.5 if seen.scaling is None else seen.scaling
    if seen.extras.get("softcap") is not None:
        mask = causal_mask(seen.query.shape[2], seen.key.shape[2], bias.device) if seen.mask is None else seen.mask
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=seen.query.dtype).masked_fill(~mask, -torch.inf)
        pattern = attention_pattern(replace(seen, mask=mask + bias[:, None, None]))
        value = per_query_head(seen.value, seen.query.shape[1])
        return torch.einsum("rhqk,rhkd->rqhd", pattern.to(value.dtype), value)
    # One channel more, 1 in every query, whose product with a key is its bias: no table of queries times keys.
    more = (bias / scale)[:, None, :, None].expand(-1, seen.key.shape[1], -1, -1)
    query = nn.functional.pad(seen.query, (0, 1), value=1.0)
    return attend(module, replace(seen, query=query, key=torch.cat([seen.key, more], -1), scaling=scale))


def _put_in(given: Tensor, module: nn.Module, seen: Recording, z: Tensor) -> Tensor:
    n_keys = seen.key.shape[2]
    at = torch.arange(n_keys - z.shape[1], n_keys, device=given.device)
    # What follows the prompt is of the kind of its last position.
    return repeated(given[:, at.clamp(max=given.shape[1] - 1)], len(z) // len(given)).to(z)


def _along(vectors: Tensor, factor: float, bias: float, module: nn.Module, seen: Recording, z: Tensor) -> Tensor:
    unit = nn.functional.normalize(vectors, dim=-1)
    return z + ((factor - 1) * (z * unit).sum(-1, keepdim=True) + bias) * unit


def _channels(vectors: Tensor, module: nn.Module, seen: Recording, z: Tensor) -> Tensor:
    return z * vectors
