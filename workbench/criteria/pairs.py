"""What a head carries between a prompt and its matched twin, from runs with `mask="interchange"`."""

import numpy as np
import xarray as xr

from workbench.criteria.registry import Criterion
from workbench.runs.reading import prompt_coord


def _towards_the_twin(run: xr.Dataset) -> xr.DataArray:
    """The change of the refusal log-odds in the direction in which the twins differ by their labels."""
    towards = np.where(prompt_coord(run, "label") == "unsafe", -1.0, 1.0)
    return run["refusal_change"] * xr.DataArray(towards, dims="prompt", coords={"prompt": run["prompt"]})


CRITERIA = (
    Criterion(
        name="interchange",
        kind="per prompt",
        values=_towards_the_twin,
        needs=("refusal_change", "twin_gap"),
        unit="log-odds",
        label="Refusal moved towards the twin's",
        direction="unsafe: necessity, how much refusing is lost with the safe twin's z; safe: sufficiency, how much is "
        "gained with the unsafe twin's",
        source="interchange of z: How Alignment Routes (arXiv 2604.04385; gregfrank/how-alignment-routes)",
        quirks="Needs pairs, and a sweep with mask='interchange'; both directions are one sweep. Held against "
        "run.twin_gap, it is a share of what the twins differ by. Theirs aligns no tokens and swaps some heads only.",
    ),
)
