"""What a head writes: its direct contribution to refusing."""

import xarray as xr

from workbench.criteria.registry import PER_PROMPT, Criterion


def _refusal_write(run: xr.Dataset) -> xr.DataArray:
    return run["refusal_write"]


CRITERIA = (
    Criterion(
        name="refusal_write",
        kind=PER_PROMPT,
        values=_refusal_write,
        needs=("refusal_write",),
        unit="log-odds",
        label="Direct write to refusal",
        direction="unmasked; positive = what the head writes at the last position speaks for refusing",
        source="after ReD-LLM's refusal heads: a head's write z·W_O against the layer's refusal direction",
        quirks="Direct path only: what later layers make of the write is not in it. ReD-LLM averages over the "
        "response; this is the last prompt position.",
    ),
)
