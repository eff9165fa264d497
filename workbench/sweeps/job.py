"""What a sweep is to measure, and the checks on what a user asked for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from workbench.errors import MaskError
from workbench.models.encode import Encoded
from workbench.models.hooked import HookedLVLM
from workbench.models.masks import Mask

Cells = dict[int, tuple[int, ...]]
Groups = tuple[tuple[tuple[int, int], ...], ...]


@dataclass(frozen=True)
class Job:
    """What to measure.

    Attributes:
        projections: Of "query" and "value", in order.
        mask: The mask.
        heads: Masked (layer, head) cells by layer; every cell of a layer when None. Heads are rows of the grain.
        keep_states: Keep masked final states too.
        groups: Head sets masked together, in place of single cells.
        estimates: What a sketch estimates.
        directions: How many directions it draws for each.
        seed: Of what is drawn.
    """

    projections: tuple[str, ...]
    mask: Mask
    heads: Cells | None
    keep_states: bool
    groups: Groups | None = None
    estimates: tuple[str, ...] = ()
    directions: int = 0
    seed: int = 0

    def layers(self, model: HookedLVLM) -> tuple[int, ...]:
        """Layers with cells to measure."""
        return model.masked_layers if self.heads is None else tuple(sorted(self.heads))

    def heads_of(self, model: HookedLVLM, layer: int) -> tuple[int, ...]:
        """Cells of a layer."""
        if self.heads is not None:
            return self.heads[layer]
        return tuple(range(len(self.mask.row_heads(model.n_heads, model.n_kv_heads))))

    def naive_work(self, model: HookedLVLM, encoded: Sequence[Encoded]) -> tuple[int, int]:
        """(layer-tokens, image passes) of one full forward a cell and one unmasked, as the peers do it."""
        if self.groups is not None:
            cells = len(self.groups)
        else:
            cells = sum(len(self.heads_of(model, layer)) for layer in self.layers(model))
        forwards = 1 + cells * len(self.projections)
        tokens = sum(e.n_tokens for e in encoded)
        return forwards * model.n_layers * tokens, forwards * sum(e.image_span is not None for e in encoded)


def check_heads(model: HookedLVLM, heads: Sequence[tuple[int, int]], mask: Mask) -> Cells:
    """Chosen (layer, head) pairs by layer; a MaskError names the first that does not exist."""
    n_rows = len(mask.row_heads(model.n_heads, model.n_kv_heads))
    chosen: dict[int, list[int]] = {}
    for layer, head in heads:
        if layer not in model.sites or not 0 <= head < n_rows:
            raise MaskError(
                f"heads names L{layer}H{head}, which is not in {model.name!r}: maskable layers are "
                f"{', '.join(map(str, model.masked_layers))}; heads are 0..{n_rows - 1} at grain {mask.grain!r}."
            )
        chosen.setdefault(int(layer), []).append(int(head))
    if not chosen:
        raise MaskError("heads is empty, so there is nothing to mask. Leave it out to sweep all heads.")
    return {layer: tuple(sorted(set(chosen[layer]))) for layer in sorted(chosen)}


def check_groups(model: HookedLVLM, groups: Sequence[Sequence[tuple[int, int]]], mask: Mask) -> Groups:
    """Head sets without repeats; a MaskError for one that is empty or names a head that does not exist."""
    if not groups:
        raise MaskError("groups is empty, so there is nothing to mask. Give sets of (layer, head), or leave it out.")
    for group in groups:
        check_heads(model, group, mask)
    return tuple(tuple(dict.fromkeys((int(layer), int(head)) for layer, head in group)) for group in groups)


def blocks(n_prompts: int, size: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of consecutive blocks of prompts."""
    for start in range(0, n_prompts, size):
        yield start, min(start + size, n_prompts)
