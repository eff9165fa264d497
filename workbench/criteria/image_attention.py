"""Where a head looks: the attention that the last prompt position gives to the image."""

import numpy as np
import xarray as xr

from workbench.criteria.registry import PER_PROMPT, Criterion
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
    Criterion(
        name="image_attention",
        kind=PER_PROMPT,
        values=_image_attention,
        needs=("image_attention",),
        unit="",
        label="Attention on the image",
        direction="0 to 1, unmasked; larger = the last position looks at the image more",
        source="this project",
        quirks="What is looked at need not be used. Only prompts with an image count.",
    ),
)
