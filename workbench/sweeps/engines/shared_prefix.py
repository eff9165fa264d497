"""The prefix engine: prompts that begin alike share what a mask does to their beginning, exactly.

A mask changes the keys and values of the shared positions in the layers above it. They are computed once for each node
of a trie (`workbench.sweeps.engines.trie`), layer and head, and every prompt beneath finds them as a cache; only what a
prompt has for itself is computed for itself. Prompts are shared within a block: put prompts with one picture side by
side.

Where sharing is not sound or pays nothing, the block is swept by the exact engine: attention that looks ahead beyond
an image, families that add something between layers, the published form of the mask, forms that take z of another
prompt for each (whose beginnings then differ), and positions other than all (whose beginnings are unmasked anyway).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from workbench.models.encode import Encoded
from workbench.models.families.family import nothing_between
from workbench.models.hooked import HookedLVLM
from workbench.models.walk import BasePass, KeysValues, Known, read_out, sees_ahead
from workbench.runs.job import Job
from workbench.sweeps.engines.cells import at_heads, base_reads, base_variables, measured, scatter
from workbench.sweeps.engines.exact import ExactBlock, mask_writes
from workbench.sweeps.engines.registry import Block, Engine, block_step, one_phase
from workbench.sweeps.engines.shared_passes import known_passes, position_marks, rows_of, segment, stack
from workbench.sweeps.engines.trie import Node, build_trie
from workbench.sweeps.plan import BLOCK, row_bytes
from workbench.sweeps.tasks import Arrays

UNSHARED = ("as_published", "interchange", "resample")


@dataclass(eq=False)
class Kept:
    """What a node leaves for its children.

    Attributes:
        known: Masked keys and values `[row, kv_head, pos, d_head]` from position 0 on; by layer.
        acts: Whether the mask changed anything so far; `[row]`.
    """

    known: dict[int, KeysValues]
    acts: Tensor


@dataclass(eq=False)
class Wave:
    """Nodes that cover the same positions and are computed as one batch; `base` is their unmasked pass there."""

    nodes: list[Node]
    base: BasePass

    @property
    def start(self) -> int:
        return self.nodes[0].start

    @property
    def stop(self) -> int:
        return self.nodes[0].stop

    @property
    def is_leaf(self) -> bool:
        return not self.nodes[0].children


class PrefixBlock:
    """The cells of one block of prompts, their shared beginnings computed once; `waves` from the roots down."""

    def __init__(
        self, model: HookedLVLM, encoded: Sequence[Encoded], job: Job, rows: int, waves: Sequence[Wave]
    ) -> None:
        self.model, self.encoded, self.job, self.rows, self.waves = model, encoded, job, rows, waves
        self.leaves = [wave for wave in waves if wave.is_leaf]
        self.prompts = [[node.prompts[0] for node in wave.nodes] for wave in self.leaves]

    def base_arrays(self) -> Arrays:
        parts = [base_variables(self.model, wave.base, self.job) for wave in self.leaves]
        return scatter(self.prompts, parts, len(self.encoded))

    def layer_arrays(self, layer: int) -> Arrays:
        if layer > max(self.job.read_layers(self.model)):
            return {}
        cells, parts = self.job.cells_of(self.model, layer), []
        n_rows = self._rows_at_once(layer)
        for first in range(0, len(cells), n_rows):
            parts.append(self._cells(layer, cells[first : first + n_rows]))
        found = []
        for wave_parts in zip(*parts, strict=True):
            joined = {name: torch.cat([part[name] for part in wave_parts], dim=1) for name in wave_parts[0]}
            found.append(at_heads(joined, cells, self.model, self.job))
        return scatter(self.prompts, found, len(self.encoded))

    def _rows_at_once(self, layer: int) -> int:
        """How many masks to follow at once, so that the cached keys and values fit what the partition planned for."""
        model = self.model
        inner = sum(node.stop for wave in self.waves if not wave.is_leaf for node in wave.nodes)
        width = 2 * model.n_kv_heads * model.d_head * (torch.finfo(model.dtype).bits // 8)
        planned = self.rows * row_bytes(model, max(e.n_tokens for e in self.encoded))
        return max(8, planned // max(1, inner * width * (model.n_layers - layer)))

    def _cells(self, layer: int, chosen: Sequence[tuple[int, int]]) -> list[dict[str, Tensor]]:
        """The measured cells `[prompt, row]` of each leaf wave under the chosen masks of a layer."""
        model, kept, found = self.model, dict[Node, Kept](), []
        tokens = self.rows * max(e.n_tokens for e in self.encoded)
        highest = layer == max(self.job.read_layers(model))
        for wave in self.waves:
            if highest and not wave.is_leaf:
                continue  # above the highest layer nobody looks at keys
            per_batch = max(1, tokens // (len(chosen) * (1 if highest else wave.stop - wave.start)))
            parts = []
            for first in range(0, len(wave.nodes), per_batch):
                parts.append(self._continue(wave, slice(first, first + per_batch), layer, chosen, kept))
            if wave.is_leaf:
                acts = torch.cat([part[0] for part in parts])
                moved = {at: torch.cat([part[1][at] for part in parts]) for at in parts[0][1]}
                base = base_reads(model, wave.base, self.job)
                found.append(measured(model, self.job, layer, chosen, wave.base.encoded, base, acts, moved))
        return found

    def _continue(
        self, wave: Wave, some: slice, layer: int, chosen: Sequence[tuple[int, int]], kept: dict[Node, Kept]
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Some nodes of a wave under some masks of a layer: whether they act (here or before), and states of leaves.

        Nodes that are no leaves leave keys and values in `kept`.
        """
        base, nodes, n_rows, read = (
            rows_of(wave.base, some),
            wave.nodes[some],
            len(chosen),
            self.job.read_layers(self.model),
        )
        start = base.n_pos - 1 if layer == max(read) else 0
        writes, acts = mask_writes(self.model, base, layer, self.job, chosen, start)
        parents = [kept[node.parent] for node in nodes if node.parent in kept]
        for row, parent in enumerate(parents):
            acts[row] |= parent.acts
        found: dict[int, KeysValues] | None = None if wave.is_leaf else {}
        known = Known(wave.start, lambda number: [parent.known[number] for parent in parents], found)
        moved = read_out(self.model, base, layer, n_rows, writes=writes, start=start, known=known, read=read)
        if found is not None:
            for row, node in enumerate(nodes):
                own = slice(row * n_rows, (row + 1) * n_rows)
                kept[node] = Kept({at: (key[own], value[own]) for at, (key, value) in found.items()}, acts[row])
        return acts, moved


def waves_of(model: HookedLVLM, encoded: Sequence[Encoded]) -> list[Wave]:
    """Waves from the roots down; none where sharing is not sound or there is nothing to share."""
    if not any(node.children for node in build_trie(encoded)):
        return []  # before anything is computed
    passes = known_passes(model, encoded)
    nodes = list(_all(build_trie(encoded, [position_marks(model, base) for base in passes])))
    if not any(node.children for node in nodes):
        return []
    if any(node.children and sees_ahead(passes[node.prompts[0]], node.stop) for node in nodes):
        return []
    together: dict[tuple[int, int, int, bool, bytes], list[Node]] = {}
    for node in nodes:
        pictures = encoded[node.prompts[0]].image_positions[: node.stop].numpy().tobytes()
        key = (node.depth, node.start, node.stop, bool(node.children), pictures)
        together.setdefault(key, []).append(node)
    return [
        Wave(alike, stack([segment(model, passes[node.prompts[0]], start, stop) for node in alike]))
        for (_, start, stop, _, _), alike in sorted(together.items())
    ]


def _all(roots: Sequence[Node]) -> Iterator[Node]:
    for node in roots:
        yield node
        yield from _all(node.children)


def prefix_block(model: HookedLVLM, encoded: Sequence[Encoded], job: Job, rows: int) -> Block:
    """A block with shared beginnings; the exact engine's where sharing is not sound or pays nothing."""
    plain = model.family.after_layer is nothing_between and not model.family.decoder_record
    waves = None
    if job.mask.positions == "all" and job.mask.form not in UNSHARED and plain:
        waves = waves_of(model, encoded)
    return PrefixBlock(model, encoded, job, rows, waves) if waves else ExactBlock(model, encoded, job, rows)


# Prompts are shared within a block, so its blocks are larger.
ENGINE = Engine(
    "prefix",
    "as exact; what prompts share at their beginning is computed once",
    one_phase(partial(block_step, prefix_block)),
    block=8 * BLOCK,
    readout=True,
)
