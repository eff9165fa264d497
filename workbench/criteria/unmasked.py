"""What a head does unmasked: how much it looks at the image, and what it writes for refusing."""

import numpy as np
import xarray as xr

from workbench.criteria.registry import Criterion
from workbench.errors import CriterionError
from workbench.runs.reading import prompt_coord


def _image_attention(run: xr.Dataset) -> xr.DataArray:
    """Attention mass on the image, prompt, layer, head; the prompts without an image are left out."""
    if "has_image" not in run.coords:
        return run["image_attention"]
    with_image = np.flatnonzero(np.char.lower(prompt_coord(run, "has_image").astype(str)) == "true")
    if not with_image.size:
        raise CriterionError("Criterion 'image_attention' needs prompts with an image, and this run has none.")
    return run["image_attention"].isel(prompt=with_image)


CRITERIA = (
    Criterion.stored(
        "refusal_write",
        unit="log-odds",
        label="Direct write to refusal",
        direction="unmasked; positive = what the head writes at the last position speaks for refusing",
        source="after ReD-LLM's refusal heads: a head's write z·W_O against the layer's refusal direction",
        quirks="Direct path only: what later layers make of the write is not in it. ReD-LLM averages over the "
        "response; this is the last prompt position.",
    ),
    Criterion.stored(
        "image_attention",
        values=_image_attention,
        label="Attention on the image",
        direction="0 to 1, unmasked; larger = the last position looks at the image more",
        source="this project",
        quirks="What is looked at need not be used. Only prompts with an image count.",
    ),
)
