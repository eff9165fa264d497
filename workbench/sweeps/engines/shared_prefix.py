"""The prefix engine: prompts that begin alike share what a mask does to their beginning, exactly.

A mask changes the keys and values of the shared positions in the layers above it. They are computed once for each node
of a trie (`workbench.sweeps.engines.trie`), layer and head, and every prompt beneath finds them as a cache; only what a
prompt has for itself is computed for itself. Prompts are shared within a block: put prompts with one picture side by
side.

Where sharing is not sound or pays nothing, the block is swept by the exact engine: attention that looks ahead beyond
an image, families that add something between layers, the published form of the mask, and positions other than all
(whose beginnings are unmasked anyway).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.models.attention import LastPosition, sites_set
from workbench.models.encode import Encoded
from workbench.models.families.family import nothing_between
from workbench.models.hooked import HookedLVLM
from workbench.models.precision import double_kept
from workbench.models.walk import BasePass, call_layer, last_attention_out, row_arguments
from workbench.runs.effects import measure
from workbench.runs.job import Job
from workbench.runs.memory import BASE
from workbench.sweeps.engines.cells import at_heads, base_variables, scatter
from workbench.sweeps.engines.exact import ExactBlock, mask_writes
from workbench.sweeps.engines.registry import Engine, one_phase
from workbench.sweeps.engines.shared_passes import known_passes, rows_of, sees_ahead, segment, stack
from workbench.sweeps.engines.trie import Node, build_trie
from workbench.sweeps.plan import BLOCK, row_bytes
from workbench.sweeps.tasks import Arrays

KeysValues = dict[int, tuple[Tensor, Tensor]]
SomeCells = Sequence[tuple[int, int]]


@dataclass(eq=False)
class Kept:
    """What a node leaves for its children.

    Attributes:
        known: Masked keys and values `[row, kv_head, pos, d_head]` from position 0 on; by layer.
        acts: Whether the mask changed anything so far; `[row]`.
    """

    known: KeysValues
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
    """The cells of one block of prompts, their shared beginnings computed once."""

    def __init__(self, model: HookedLVLM, encoded: Sequence[Encoded], job: Job, rows: int) -> None:
        self.model, self.encoded, self.job, self.rows = model, encoded, job, rows
        self.exact: ExactBlock | None = None
        self.waves: list[Wave] = []
        plain = model.family.after_layer is nothing_between and not model.family.decoder_record
        if job.mask.positions == "all" and job.mask.form != "as_published" and plain:
            self.waves = self._unmasked()
        if not self.waves:
            self.exact = ExactBlock(model, encoded, job, rows)
        self.leaves = [wave for wave in self.waves if wave.is_leaf]
        self.prompts = [[node.prompts[0] for node in wave.nodes] for wave in self.leaves]

    def base_arrays(self) -> Arrays:
        if self.exact is not None:
            return self.exact.base_arrays()
        parts = [base_variables(self.model, wave.base) for wave in self.leaves]
        return scatter(self.prompts, parts, len(self.encoded))

    def layer_arrays(self, layer: int) -> Arrays:
        if self.exact is not None:
            return self.exact.layer_arrays(layer)
        cells, at_once = self.job.cells_of(self.model, layer), self._rows_at_once(layer)
        found: list[list[dict[str, Tensor]]] = [[] for _ in self.leaves]
        for first in range(0, len(cells), at_once):
            for part, states in zip(found, self._states(layer, cells[first : first + at_once]), strict=True):
                part.append(states)
        joined = [{name: torch.cat([p[name] for p in part], 1) for name in part[0]} for part in found]
        parts = [at_heads(part, cells, self.model, self.job) for part in joined]
        return scatter(self.prompts, parts, len(self.encoded))

    def _unmasked(self) -> list[Wave]:
        """Waves from the roots down; none where sharing is not sound or there is nothing to share."""
        roots = build_trie(self.encoded)
        nodes = list(_all(roots))
        if not any(node.children for node in nodes):
            return []
        passes = known_passes(self.model, self.encoded, nodes)
        if any(node.children and sees_ahead(passes[node.prompts[0]], node.stop) for node in nodes):
            return []
        together: dict[tuple[int, int, int, bool, bytes], list[Node]] = {}
        for node in nodes:
            pictures = self.encoded[node.prompts[0]].image_positions[: node.stop].numpy().tobytes()
            key = (node.depth, node.start, node.stop, bool(node.children), pictures)
            together.setdefault(key, []).append(node)
        waves = []
        for (_, start, stop, inner, _), alike in sorted(together.items()):
            parts = [segment(self.model, passes[node.prompts[0]], start, stop, last=not inner) for node in alike]
            waves.append(Wave(alike, stack(parts)))
        return waves

    def _rows_at_once(self, layer: int) -> int:
        """How many masks to follow at once, so that the cached keys and values fit what the partition planned for."""
        model = self.model
        inner = sum(node.stop for wave in self.waves if not wave.is_leaf for node in wave.nodes)
        width = 2 * model.n_kv_heads * model.d_head * (torch.finfo(model.dtype).bits // 8)
        planned = self.rows * row_bytes(model, max(e.n_tokens for e in self.encoded))
        return max(8, planned // max(1, inner * width * (model.n_layers - layer)))

    def _states(self, layer: int, chosen: SomeCells) -> list[dict[str, Tensor]]:
        """The measured cells `[prompt, row]` of each leaf wave under the chosen masks of a layer."""
        model, kept, found = self.model, dict[Node, Kept](), []
        tokens = self.rows * max(e.n_tokens for e in self.encoded)
        last = layer == model.n_layers - 1
        for wave in self.waves:
            if last and not wave.is_leaf:
                continue  # above the last layer nobody looks at keys
            per_batch = max(1, tokens // (len(chosen) * (1 if last else wave.stop - wave.start)))
            parts = []
            for first in range(0, len(wave.nodes), per_batch):
                some = slice(first, first + per_batch)
                parts.append(self._continue(wave, some, layer, chosen, kept))
            if wave.is_leaf:
                states = torch.cat([p for p in parts if p is not None])
                cells = measure(model, wave.base.state, wave.base.logits, states)
                found.append(cells | ({"state": states} if self.job.keep_states else {}))
        return found

    @torch.no_grad()
    def _continue(
        self, wave: Wave, some: slice, layer: int, chosen: SomeCells, kept: dict[Node, Kept]
    ) -> Tensor | None:
        """Some nodes of a wave under some masks of a layer: final states of leaves; keys and values of others."""
        model, nodes = self.model, wave.nodes[some]
        base = rows_of(wave.base, some)
        n_rows, last_layer = len(chosen), model.n_layers - 1
        seen_from = -1 if layer == last_layer else None
        writes, acts = mask_writes(model, base, layer, self.job, chosen, seen_from)
        for row, node in enumerate(nodes):
            if node.parent in kept:
                acts[row] |= kept[node.parent].acts
        known = Known(nodes, kept, wave.start, n_rows)
        given: Tensor | None = repeated(base.attention_out[layer][:, seen_from:], n_rows) + writes.flatten(0, 1)
        hidden = repeated(base.inputs[layer][:, seen_from:], n_rows)
        numbers = [number for number in range(layer, model.n_layers) if number in base.inputs]
        with double_kept(model.dtype):
            for number in numbers:
                arguments = row_arguments(
                    base.arguments[number], len(nodes), hidden.shape[1], n_rows, 0, model.family.position_arguments
                )
                if number > layer:
                    arguments["past_key_values"] = known
                if number == last_layer:
                    if not wave.is_leaf:
                        self._last_keys(number, hidden, arguments)
                        break
                    if given is None:
                        given = last_attention_out(model, number, hidden, arguments)
                    hidden, given = hidden[:, -1:], given[:, -1:]
                model.work.count(1, hidden.shape[0], hidden.shape[1])
                hidden = call_layer(model, number, hidden, arguments, given)
                given = None
            if not wave.is_leaf:
                known.keep(nodes, kept, acts)
                return None
            states = model.normed(hidden[:, -1]).view(len(nodes), n_rows, -1)
        # A mask that changed no bit of z, here or in the beginning, changed nothing.
        return torch.where(acts[..., None], states, base.state[:, None])

    def _last_keys(self, number: int, hidden: Tensor, arguments: dict[str, object]) -> None:
        """The last layer's keys and values of positions that only others look at."""
        try:
            with sites_set([self.model.sites[number]], last_only=True):
                call_layer(self.model, number, hidden, arguments)
        except LastPosition:
            return


class Known:
    """The cache that a wave's layers find: masked keys and values of what comes before, row by row."""

    def __init__(self, nodes: Sequence[Node], kept: dict[Node, Kept], start: int, n_rows: int) -> None:
        self.parents = [kept[node.parent].known for node in nodes if node.parent in kept]
        self.start, self.n_rows = start, n_rows
        self.found: KeysValues = {}

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """transformers asks how long the beginning is."""
        return self.start

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """transformers hands over the new keys and values and takes all of them."""
        both = []
        for number, new in enumerate((key, value)):
            if not self.start:
                both.append(new)
                continue
            whole = new.new_empty(*new.shape[:2], self.start + new.shape[2], new.shape[3])
            for row, parent in enumerate(self.parents):
                whole[row * self.n_rows : (row + 1) * self.n_rows, :, : self.start] = parent[layer_idx][number]
            whole[:, :, self.start :] = new
            both.append(whole)
        self.found[layer_idx] = both[0], both[1]
        return both[0], both[1]

    def keep(self, nodes: Sequence[Node], kept: dict[Node, Kept], acts: Tensor) -> None:
        """Leave what was found for the children of these nodes."""
        for row, node in enumerate(nodes):
            own = slice(row * self.n_rows, (row + 1) * self.n_rows)
            kept[node] = Kept({layer: (key[own], value[own]) for layer, (key, value) in self.found.items()}, acts[row])


def repeated(tensor: Tensor, n_rows: int) -> Tensor:
    """Each node's line `n_rows` times: rows are node-major."""
    return tensor.repeat_interleave(n_rows, dim=0) if n_rows > 1 else tensor


def _all(roots: Sequence[Node]) -> Iterator[Node]:
    for node in roots:
        yield node
        yield from _all(node.children)


def shared_prefix_step(
    model: HookedLVLM, encoded: Sequence[Encoded], job: Job, rows: int, units: Sequence[int]
) -> Iterator[tuple[int, Arrays]]:
    """The units of one block of prompts."""
    block = PrefixBlock(model, encoded, job, rows)
    for unit in units:
        yield unit, block.base_arrays() if unit == BASE else block.layer_arrays(unit - 1)


# Prompts are shared within a block, so its blocks are larger.
ENGINE = Engine(
    "prefix",
    "as exact; what prompts share at their beginning is computed once",
    one_phase(shared_prefix_step),
    block=8 * BLOCK,
)
