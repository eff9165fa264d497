"""What a trace computes of each pair, how much work that was, and the pairs that are finished."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from workbench.axes import Head, head_name
from workbench.models.hooked import HookedLVLM
from workbench.tracing.knock_out import Window, cut_window, windows
from workbench.tracing.lens import read_layers
from workbench.tracing.pairs import Pair
from workbench.tracing.passes import TwinPass
from workbench.tracing.patching import patched_heads, patched_layer
from workbench.tracing.paths import head_paths
from workbench.tracing.records import COMPONENTS, EFFECTS, FLOWS, empty
from workbench.tracing.stored import save_trace

KEPT_EVERY = 120  # seconds
_COUNTED = ("layer_tokens", "vision_passes", "readouts")
_Arrays = dict[str, np.ndarray]  # by variable, of one pair


@dataclass
class Job:
    """What is computed of each pair, and how much was."""

    model: HookedLVLM
    components: tuple[str, ...]
    heads: list[Head] | None
    width: int
    most_tokens: int = 1
    cuts: list[Window] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.cuts = windows(self.model.masked_layers, self.width) if self.width else []
        self.work, self.began = replace(self.model.work), time.perf_counter()
        self.before, self.done = dict[str, Any](), dict.fromkeys(("patches", "naive_layer_tokens"), 0)

    def count_on(self, attrs: Mapping[str, Any]) -> None:
        """Go on from the counts of a trace that was begun before."""
        self.before = {name: attrs[name] for name in (*_COUNTED, *self.done, "wall_s") if name in attrs}

    def counts(self) -> dict[str, Any]:
        """The work so far, that of sessions before included."""
        now: dict[str, Any] = {name: getattr(self.model.work, name) - getattr(self.work, name) for name in _COUNTED}
        now |= {**self.done, "wall_s": round(time.perf_counter() - self.began, 3)}
        return {name: value + self.before.get(name, 0) for name, value in now.items()}

    @property
    def steps(self) -> int:
        return self.model.n_layers + len(self.cuts)

    def count(self, rows: int, passes: TwinPass) -> None:
        """Patched passes, and the layer-tokens that a full forward for each would be."""
        self.done["patches"] += 2 * rows
        self.done["naive_layer_tokens"] += 2 * rows * self.model.n_layers * passes.base.n_pos

    def traced(self, twins: Pair, advance: Callable[[], None]) -> xr.Dataset:
        """Everything but the paths, of one pair."""
        passes = TwinPass(self.model, twins)
        part = empty(self.model, [twins.name], self.components, self.cuts, 0)
        into: _Arrays = {str(name): variable.values[0] for name, variable in part.data_vars.items()}
        into["tokens_in_group"][:] = [int(where.sum()) for where in twins.groups.values()]
        into["base_refusal"][:] = _numbers(passes.refusal)
        into["base_token"][:] = _tokens(self.model, passes.logits.argmax(-1))
        for name, values in read_layers(passes).items():
            if name == "token":
                into["lens_token"][:] = _tokens(self.model, values)
            else:
                into[name if name == "residual" else f"lens_{name}"][:] = _numbers(values)
        for layer in range(self.model.n_layers):
            if layer in passes.base.inputs:
                self._patch(passes, layer, into)
            advance()
        for place, window in enumerate(self.cuts):
            cut = cut_window(passes, window, self.most_tokens)
            for flow, found in cut.items():
                for name, values in found.items():
                    into[f"cut_{name}"][:, list(FLOWS).index(flow), place] = _numbers(values)
            self.count(len(cut), passes)
            advance()
        return part

    def _patch(self, passes: TwinPass, layer: int, into: _Arrays) -> None:
        heads = patched_heads(self.model, self.heads, layer)
        rows, there = 0, [c for c in COMPONENTS if c in self.components]
        for row, found in patched_layer(passes, layer, self.components, heads, self.most_tokens):
            group = list(passes.twins.groups).index(row.group)
            for name, values in found.items():
                if row.head is None:
                    into[f"patch_{name}"][:, there.index(row.component), layer, group] = _numbers(values)
                else:
                    into[f"head_{name}"][:, layer, row.head, group] = _numbers(values)
            rows += 1
        self.count(rows, passes)

    def paths(
        self, pairs: Sequence[partial[Pair]], sources: Sequence[Head], advance: Callable[[int], None]
    ) -> xr.Dataset:
        """Paths from the source heads to all later ones."""
        names = [head_name(*head) for head in sources]
        found = empty(self.model, [pair.args[1] for pair in pairs], (), [], len(sources))
        found = found[[name for name in map(str, found.data_vars) if name.startswith("path_")]]
        found = found.assign_coords(source=np.array(names, dtype=object))
        for place, pair in enumerate(pairs):
            passes = TwinPass(self.model, pair())
            for layer in sorted({layer for layer, _ in sources}):
                mine = [i for i, (at, _) in enumerate(sources) if at == layer]
                for later, effect, told in head_paths(passes, layer, [sources[i][1] for i in mine]):
                    for name, values in told.items():
                        found[f"path_{name}"].values[place, :, EFFECTS.index(effect), mine, later] = _numbers(
                            values.transpose(0, 1)
                        )
                advance(len(mine))
        return found


@dataclass
class Parts:
    """The pairs that are finished, by name, and where they are kept."""

    out: str | Path | None
    attrs: Mapping[str, Any]
    of: dict[str, xr.Dataset]
    kept: float = field(default_factory=time.monotonic)

    def add(self, part: xr.Dataset, name: str, counts: Mapping[str, Any]) -> None:
        """Take one more; every so often all are stored, so that a killed process loses minutes."""
        self.of[name] = part
        if self.out is not None and time.monotonic() - self.kept > KEPT_EVERY:
            self.keep(counts)

    def keep(self, counts: Mapping[str, Any]) -> None:
        """Store what is finished."""
        assert self.out is not None
        save_trace(self.joined(list(self.of)).assign_attrs({**self.attrs, **counts}), self.out)
        self.kept = time.monotonic()

    def stopped(self, counts: Mapping[str, Any]) -> str:
        """Store what is finished; what to say about it."""
        if self.out is None or not self.of:
            hint = "with out=PATH it could go on from there" if self.out is None else "no pair was finished"
            return f"The trace was interrupted. Nothing is stored: {hint}."
        self.keep(counts)
        many = f"{self.out} holds {len(self.of)} pairs"
        return f"The trace was interrupted. {many}; make the same call again to go on from there."

    def joined(self, names: Sequence[str]) -> xr.Dataset:
        return xr.concat([self.of[name] for name in names], "pair", data_vars="minimal", join="exact")


def _numbers(values: torch.Tensor) -> np.ndarray:
    return values.detach().cpu().to(torch.promote_types(values.dtype, torch.float32)).numpy()


def _tokens(model: HookedLVLM, ids: torch.Tensor) -> np.ndarray:
    """Token ids as text; empty for −1."""
    words = [model.tokenizer.decode([i]) if i >= 0 else "" for i in ids.flatten().tolist()]
    return np.array(words, dtype=object).reshape(ids.shape)
