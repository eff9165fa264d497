"""What a sweep is to measure, and the checks on what a user asked for."""

from __future__ import annotations  # a stored run is opened without torch, which the types below would bring

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from numbers import Integral
from typing import TYPE_CHECKING

import numpy as np

from workbench.axes import MASKABLE, Head, as_heads
from workbench.checking import plainly
from workbench.errors import MaskError

if TYPE_CHECKING:
    from workbench.models.hooked import HookedLVLM
    from workbench.models.masks import Mask

# What is measured of each cell (`workbench.runs.effects.measure`): its unit and its meaning, by its name.
MEASURED = {
    "deflection": ("degrees", "angle between the final states without and with the mask"),
    "kl": ("nats", "KL(base || masked) of the next-token distribution"),
    "js": ("nats", "Jensen-Shannon divergence of base and masked next-token distribution"),
    "tv": ("1", "total variation distance, 0-1"),
    "top1_change": ("1", "1 where the most likely next token changed"),
    "l2": ("state units", "distance of the final states"),
    "norm_ratio": ("1", "norm of the masked final state over that of the base"),
    "refusal_change": ("log-odds", "masked - base log-odds of opening a refusal; negative = the head helped to refuse"),
}
MEASURES = tuple(MEASURED)

# By layer: (projection, head) of each cell, as numbers into `Job.projections` and into the rows of the grain; in order.
Cells = dict[int, tuple[tuple[int, int], ...]]
FINAL = "final"
Groups = tuple[tuple[tuple[int, int], ...], ...]


@dataclass(frozen=True)
class Job:
    """What to measure.

    Attributes:
        projections: Of "query", "key" and "value", in order.
        mask: The mask, its source settled.
        cells: What is masked, by layer; every head of every projection when None.
        keep_states: Keep masked final states too.
        groups: Head sets masked together, in place of single cells.
        estimates: Measures that are estimated from backward passes.
        directions: How many directions an estimate draws.
        seed: Of what is drawn.
        readout: What the states are read from: "final", or decoder layers as strings; empty for the final state alone.
        measures: Which per-cell variables are computed, in the order of `MEASURES`.
    """

    projections: tuple[str, ...]
    mask: Mask
    cells: Cells | None
    keep_states: bool
    groups: Groups | None = None
    estimates: tuple[str, ...] = ()
    directions: int = 0
    seed: int = 0
    readout: tuple[str, ...] = ()
    measures: tuple[str, ...] = MEASURES

    def read_layers(self, model: HookedLVLM) -> tuple[int, ...]:
        """The layers after which states are read, one a read-out."""
        return tuple(model.n_layers - 1 if at == FINAL else int(at) for at in self.readout or (FINAL,))

    def layers(self, model: HookedLVLM) -> tuple[int, ...]:
        """Layers with cells to measure."""
        return model.masked_layers if self.cells is None else tuple(sorted(self.cells))

    def cells_of(self, model: HookedLVLM, layer: int) -> tuple[tuple[int, int], ...]:
        """(projection, head) of each cell of a layer, projection by projection."""
        if self.cells is not None:
            return self.cells[layer]
        n_rows = len(self.mask.row_heads(model.n_heads, model.n_kv_heads))
        return tuple((number, head) for number in range(len(self.projections)) for head in range(n_rows))

    def chosen(self, model: HookedLVLM) -> np.ndarray:
        """Which cells are masked, `[projection, layer, head]`."""
        n_rows = len(self.mask.row_heads(model.n_heads, model.n_kv_heads))
        chosen = np.zeros((len(self.projections), model.n_layers, n_rows), dtype=bool)
        for layer in self.layers(model):
            numbers, heads = zip(*self.cells_of(model, layer), strict=True)
            chosen[list(numbers), layer, list(heads)] = True
        return chosen

    def naive_work(self, model: HookedLVLM, lengths: Sequence[int], images: int) -> tuple[int, int]:
        """(layer-tokens, image passes) of one full forward a cell and one unmasked, as the peers do it.

        Args:
            model: The model.
            lengths: Of each prompt, in tokens.
            images: How many of the prompts have one.
        """
        if self.groups is not None:
            cells = len(self.groups) * len(self.projections)
        else:
            cells = sum(len(self.cells_of(model, layer)) for layer in self.layers(model))
        forwards = 1 + cells
        return forwards * model.n_layers * sum(lengths), forwards * images


@dataclass(frozen=True)
class Partition:
    """How rows were put together. Recorded with the run: another partition changes the last bits of results.

    Attributes:
        block: Consecutive prompts that are swept and stored together.
        rows: Most rows (a prompt under one mask) in one batch.
        halved: How often `rows` was halved because the device ran out of memory.
    """

    block: int
    rows: int
    halved: int = 0

    @staticmethod
    def parse(text: str) -> Partition:
        """The partition a stored run was recorded with."""
        return Partition(**json.loads(text))

    def json(self) -> str:
        """As a run records it."""
        return json.dumps(asdict(self))


def check_heads(model: HookedLVLM, heads: Sequence[Head], mask: Mask) -> list[Head]:
    """The (layer, head) pairs, sorted; a MaskError names the first that does not exist."""
    try:
        heads = as_heads(heads)
    except ValueError as error:
        raise MaskError(f"What is masked {error}; got {plainly(heads)}.") from error
    n_rows = len(mask.row_heads(model.n_heads, model.n_kv_heads))
    for layer, head in heads:
        if layer not in model.sites or not 0 <= head < n_rows:
            raise MaskError(
                f"heads names L{layer}H{head}, which is not in {model.name!r}: maskable layers are "
                f"{', '.join(map(str, model.masked_layers))}; heads are 0..{n_rows - 1} at grain {mask.grain!r}."
            )
    pairs = sorted(set(heads))
    if not pairs:
        raise MaskError("heads is empty, so there is nothing to mask. Leave it out to sweep all heads.")
    return pairs


def cells_of_heads(model: HookedLVLM, heads: Sequence[Head], mask: Mask, n_projections: int) -> Cells:
    """The cells of some heads, under every projection."""
    pairs = check_heads(model, heads, mask)
    return by_layer((number, layer, head) for number in range(n_projections) for layer, head in pairs)


def by_layer(cells: Iterable[tuple[int, int, int]]) -> Cells:
    """Cells (projection, layer, head), in any order and with repeats, layer by layer."""
    found: Cells = {}
    for layer, number, head in sorted({(layer, number, head) for number, layer, head in cells}):
        found[layer] = (*found.get(layer, ()), (number, head))
    return found


def check_groups(model: HookedLVLM, groups: Sequence[Sequence[Head]], mask: Mask) -> Groups:
    """Head sets without repeats; a MaskError for one that is empty or names a head that does not exist."""
    if isinstance(groups, str) or not isinstance(groups, Sequence) or not groups:
        raise MaskError(
            f"groups must be sets of heads, such as [[(3, 1), (0, 2)], ['L2H0']]; got {plainly(groups)}. Leave it out "
            "to mask single heads."
        )
    for group in groups:
        if not isinstance(group, Iterable):
            raise MaskError(f"groups has sets of heads; got {plainly(group)} among them.")
        if isinstance(group, str) or any(isinstance(head, Integral) for head in group):
            raise MaskError(f"groups has sets of heads, and {plainly(group)} is one head. Write [{plainly(group)}].")
        check_heads(model, group, mask)
    return tuple(tuple(dict.fromkeys(as_heads(group))) for group in groups)


def blocks(n_prompts: int, size: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of consecutive blocks of prompts."""
    for start in range(0, n_prompts, size):
        yield start, min(start + size, n_prompts)


def check_projections(mask: Mask, projections: Sequence[str] | str | None) -> tuple[str, ...]:
    """The projections that are masked, by default those of the mask; a MaskError for what it does not mask."""
    if mask.phase == "decoding":
        raise MaskError(
            "phase='decoding' masks tokens of a reply, and a sweep reads the last position of the prompt, which is "
            "there before any: no cell could change. Use phase='reading', or look at replies (generate, compare)."
        )
    if projections is None:
        return mask.projections
    given = (projections,) if isinstance(projections, str) else tuple(projections)
    if not given or set(given) - set(MASKABLE) or len(set(given)) < len(given):
        raise MaskError(f"projections must name each of {', '.join(MASKABLE)} at most once; got {given}.")
    for projection in given:
        mask.check(projection)
    return given


def check_measures(measures: Sequence[str] | str) -> tuple[str, ...]:
    """Measures in the order of `MEASURES`; a MaskError for one that there is not, or none."""
    given = {measures} if isinstance(measures, str) else set(measures)
    if unknown := sorted(given - set(MEASURES), key=str):
        raise MaskError(f"measures are of {', '.join(MEASURES)}; got {plainly(unknown[0])}.")
    if not given:
        raise MaskError("measures is empty, so nothing would be measured. Leave it out for all of them.")
    return tuple(name for name in MEASURES if name in given)


def check_readout(model: HookedLVLM, readout: Sequence[str | int] | str | int | None) -> tuple[str, ...]:
    """Labels of the read-outs, empty for the final state alone; a MaskError for what is no layer of the model."""
    given = (readout,) if isinstance(readout, str | int) else tuple(readout or ())
    labels = tuple(str(label) for label in given)
    layers = [str(layer) for layer in range(model.n_layers)]
    if wrong := [label for label in given if isinstance(label, bool) or str(label) not in (FINAL, *layers)]:
        raise MaskError(
            f"readout names {wrong[0]!r}; it takes {FINAL!r} and the decoder layers 0..{model.n_layers - 1} of "
            f"{model.name!r}, after which the residual stream is read."
        )
    if len(set(labels)) < len(labels):
        raise MaskError(f"readout names each place once; got {', '.join(labels)}.")
    return () if labels in ((), (FINAL,)) else labels
