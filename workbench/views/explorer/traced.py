"""A trace beside the maps of a run: its maps for the browser, packed once."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from workbench.errors import RunError
from workbench.plain import plain
from workbench.tracing.records import COMPONENTS, DIRECTIONS, HEADS
from workbench.tracing.stored import as_trace
from workbench.views import traces
from workbench.views.explorer.packing import Packed
from workbench.views.explorer.stored import Stored

VALUES = ("recovered", "refusal_change", "top1_change")


def pack_trace(packed: Packed, trace: Any, runs: Sequence[Stored]) -> dict[str, Any]:
    """Maps of a trace as arrays, and what the browser is told beside them.

    Args:
        packed: Gets the arrays: of every component `trace/VALUE/COMPONENT/DIRECTION`, `[layer, token_group, 3]` (mean,
            and the ends of its interval), and of single heads `[layer, head, token_group]`.
        trace: From `wb.trace`, or the path of a stored one.
        runs: Those that are shown; the trace is of the model of one of them.

    Raises:
        RunError: For a trace of another model.
    """
    found: xr.Dataset = as_trace(trace)
    weights = found.attrs["weight_hash"]
    if weights not in [str(stored.run.attrs.get("weight_hash", "")) for stored in runs]:
        names = ", ".join(plain(stored.label) for stored in runs)
        raise RunError(
            f"The trace is of the weights {plain(weights)} of {plain(found.attrs.get('model'))!r}, and the runs shown "
            f"are of others ({names}). Give the trace of the model that was swept, or sweep the one that was traced."
        )
    components = [c for c in COMPONENTS if "component" in found.coords and c in found["component"].values]
    groups = [str(g) for g in found["token_group"].values]
    kept = [i for i, g in enumerate(groups) if float(found["tokens_in_group"].values[:, i].max()) > 0]
    for value in VALUES:
        for component in components:
            _pack(packed, found, f"patch_{value}", component, value, kept)
        if f"head_{value}" in found:
            _pack(packed, found, f"head_{value}", HEADS, value, kept)
    return {
        "about": f"{found.sizes['pair']} pairs, {plain(found.attrs.get('model', ''))}",
        "values": [[value, traces.WORDS[value]] for value in VALUES],
        "directions": [[name, traces.DIRECTION_WORDS[name]] for name in DIRECTIONS],
        "components": [[name, traces.TITLES[name]] for name in components],
        "groups": [plain(groups[i]) for i in kept],
        "layers": found.sizes["layer"],
        "heads": found.sizes.get("head", 0),
    }


def _pack(packed: Packed, found: xr.Dataset, name: str, component: str, value: str, kept: list[int]) -> None:
    of_heads = component == HEADS
    table = traces.means(found, name, resamples=0 if of_heads else traces.RESAMPLES)
    sizes = [found.sizes[dim] for dim in found[name].dims[1:]]
    columns = ["value"] if of_heads else ["value", "ci_low", "ci_high"]
    cells = table[columns].to_numpy(np.float32).reshape(*sizes, len(columns))
    for place, direction in enumerate(DIRECTIONS):
        part = cells[place] if of_heads else cells[place, list(found["component"].values).index(component)]
        key = f"trace/{value}/{component}/{direction}"
        part = part[..., kept, :]
        packed.add(key, part[..., 0] if of_heads else part)
        if not of_heads:
            packed.scale(key, traces.scale_of(part[..., 0].astype(float), value), traces.WORDS[value])
