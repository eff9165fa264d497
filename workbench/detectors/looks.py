"""What detectors see of prompts: readings of the unmasked pass, and what masking heads changes.

A detector says what it wants (`Wants`), and `look` sees it. What several detectors want is joined and seen once.
"""

import hashlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from torch import Tensor

from workbench.axes import Head
from workbench.criteria import score
from workbench.errors import DetectorError
from workbench.models.encodings import Encodings
from workbench.models.hooked import HookedLVLM
from workbench.models.masks import Mask
from workbench.models.walk import BasePass, base_pass
from workbench.prompts.prompt import Prompt, PromptSet
from workbench.runs.job import MEASURES
from workbench.sweeps.execution import progress_bar
from workbench.sweeps.plan import batches
from workbench.sweeps.sweep import sweep

ROWS = 32  # prompts of one unmasked pass
BLOCK = 1024  # prompts seen at once when they are scored; what was seen of them is let go before the next come

CHEAPEST = ("deflection",)  # where no measure of masked cells is wanted

COORDINATES = ("label", "source", "family", "category", "pair_id", "split")

# Of an unmasked pass: the names of the dimensions after `prompt`, and the numbers, [prompt, …].
Reading = tuple[tuple[str, ...], np.ndarray]
Reader = Callable[[HookedLVLM, BasePass], Reading]


@dataclass(frozen=True)
class Wants:
    """What a detector has to see of each prompt.

    Attributes:
        reads: Readings of one unmasked pass, by the name of the variable; equal names mean equal readings.
        outputs: Whether z of every head is wanted, the variable `head_output` of a run.
        projections: What of heads is masked; none where no mask is wanted.
        heads: The heads masked; None for all of them.
        mask: How.
        measures: Which variables of a masked cell are wanted, among `workbench.runs.job.MEASURES`.
        states: Whether the masked final states are wanted, for angles between sets of them.
    """

    reads: Mapping[str, Reader] = field(default_factory=lambda: MappingProxyType({}))
    outputs: bool = False
    projections: tuple[str, ...] = ()
    heads: tuple[Head, ...] | None = ()
    mask: Mask | None = None
    measures: tuple[str, ...] = ()
    states: bool = False


@dataclass(frozen=True, eq=False)
class Request:
    """A detector that is being fitted asks to see prompts.

    Attributes:
        prompts: Which ones.
        choosing: Whether it looks in order to choose.
    """

    prompts: PromptSet
    choosing: bool


def next_request(talk: Generator[Request, xr.Dataset, None], seen: xr.Dataset | None) -> Request | None:
    """What a detector asks to see next, once it was sent what it asked for before; None when it is fitted."""
    try:
        return next(talk) if seen is None else talk.send(seen)
    except StopIteration:
        return None


def joined(wants: Sequence[Wants]) -> Wants:
    """What several detectors want, together; their masks must be one."""
    masked = [w for w in wants if w.projections]
    if len({w.mask for w in masked}) > 1:
        raise DetectorError("Detectors that mask heads in different ways cannot look at prompts together.")
    every = any(w.heads is None for w in masked)
    return Wants(
        reads={name: read for w in wants for name, read in w.reads.items()},
        outputs=any(w.outputs for w in wants),
        projections=tuple(dict.fromkeys(p for w in masked for p in w.projections)),
        heads=None if every else tuple(dict.fromkeys(h for w in masked for h in w.heads or ())),
        mask=masked[0].mask if masked else None,
        measures=tuple(name for name in MEASURES if any(name in w.measures for w in masked)),
        states=any(w.states for w in masked),
    )


def look(
    model: HookedLVLM,
    prompts: Sequence[Prompt],
    wants: Wants,
    *,
    progress: bool = False,
    out: Path | None = None,
    run: xr.Dataset | None = None,
) -> xr.Dataset:
    """See what is wanted of prompts: a run where heads are masked or their outputs wanted, and readings beside it.

    Args:
        model: The model to watch.
        prompts: What it is asked.
        wants: What to see.
        progress: Show the progress of masking.
        out: A folder where runs are stored, so that an interrupted one goes on.
        run: A run of these prompts and others; what it holds is not swept again.
    """
    about = {name: ("prompt", [getattr(p, name) for p in prompts]) for name in COORDINATES}
    seen = xr.Dataset(coords={"prompt": [p.id for p in prompts], **about})
    store = None if out is None else out / f"seen-{_key(prompts, wants)}.zarr"
    if run is not None and (wants.projections or wants.outputs) and _holds(run, wants):
        held = run if wants.states else run.drop_vars("state", errors="ignore")
        seen = held.sel(prompt=[p.id for p in prompts])
    elif wants.projections:
        heads = None if wants.heads is None else list(wants.heads)
        options: dict[str, Any] = {
            "heads": heads,
            "mask": wants.mask,
            "measures": wants.measures or CHEAPEST,
            "keep_states": wants.states,
            "progress": progress,
            "out": store,
        }
        seen = sweep(model, prompts, projections=wants.projections, **options)
    elif wants.outputs:
        last = (model.masked_layers[-1], 0)  # at the least cost: only what the unmasked pass shows is read
        least: dict[str, Any] = {"projections": ("value",), "heads": [last], "measures": CHEAPEST, "keep_states": False}
        seen = sweep(model, prompts, progress=False, out=store, **least)
    return seen.assign(
        {name: (("prompt", *dims), values) for name, dims, values in _read(model, prompts, wants.reads, progress)}
    )


def _holds(run: xr.Dataset, wants: Wants) -> bool:
    """Whether a run of all heads holds what a sweep for this would."""
    mask = (wants.mask or Mask()).describe()
    return (
        run.attrs.get("heads") == "all"
        and "readout" not in run.dims
        and set(wants.projections) <= set(map(str, run["projection"].values))
        and set(wants.measures) <= set(run.data_vars)
        and (not wants.projections or mask == {name: of for name, of in run.attrs.items() if name.startswith("mask_")})
        and (not wants.states or "state" in run)
        and (not wants.outputs or "head_output" in run)
    )


def _key(prompts: Sequence[Prompt], wants: Wants) -> str:
    """Another one for each sweep that a folder may hold."""
    swept = ([p.id for p in prompts], wants.projections, wants.heads, wants.mask, wants.measures, wants.states)
    return hashlib.sha256(repr(swept).encode()).hexdigest()[:8]


def _read(
    model: HookedLVLM, prompts: Sequence[Prompt], reads: Mapping[str, Reader], progress: bool
) -> Iterator[tuple[str, tuple[str, ...], np.ndarray]]:
    if not reads:
        return
    encoded = Encodings(model, prompts)
    found: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}
    with progress_bar(progress) as bar:
        line = bar.add_task("prompts seen", total=len(prompts))
        for batch in batches(encoded, ROWS):
            base = base_pass(model, [encoded[i] for i in batch])
            for name, read in reads.items():
                dims, values = read(model, base)
                if name not in found:
                    found[name] = dims, np.full((len(prompts), *values.shape[1:]), np.nan, values.dtype)
                found[name][1][batch] = values
            bar.advance(line, len(batch))
    for name, (dims, values) in found.items():
        yield name, dims, values


@xr.register_dataset_accessor("scores_of_detectors")
class _Scores:
    """Score tables of what was seen, kept as long as that is: detectors that look together ask for the same ones."""

    def __init__(self, seen: xr.Dataset) -> None:
        self.seen, self.known = seen.drop_vars("split"), dict[tuple[str, int], pd.DataFrame]()

    def of(self, criterion: str, seed: int) -> pd.DataFrame:
        if (criterion, seed) not in self.known:
            self.known[criterion, seed] = score(self.seen, (criterion,), bootstrap=0, permutations=0, seed=seed)
        return self.known[criterion, seed]


def scores_of(seen: xr.Dataset, criterion: str, seed: int) -> pd.DataFrame:
    """Every head's score by one criterion on all prompts that were seen, as `wb.score` gives it."""
    return seen.scores_of_detectors.of(criterion, seed)


def after_layer(base: BasePass, layer: int) -> Tensor:
    """The residual stream after a layer at the last prompt position, [prompt, d_model]."""
    above = [number for number in base.inputs if number > layer]  # what the next layer that ran was given
    return base.inputs[min(above)][:, -1] if above else base.residual


def residuals(model: HookedLVLM, base: BasePass) -> Reading:
    """The residual stream after every layer at the last prompt position: layer, d_model; float32."""
    layers = [after_layer(base, layer).float().cpu().numpy() for layer in range(model.n_layers)]
    return ("layer", "d_model"), np.stack(layers, axis=1)


def final_state(model: HookedLVLM, base: BasePass) -> Reading:
    """The final state at the last prompt position, after the final norm: d_model; float32."""
    return ("d_model",), base.state.float().cpu().numpy()


def first_logits(model: HookedLVLM, base: BasePass) -> Reading:
    """Logits of the first token of the reply: vocab; float32."""
    return ("vocab",), base.logits.float().cpu().numpy()
