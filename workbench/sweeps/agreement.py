"""How much a cheaper mask agrees with the canonical one."""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
from scipy.stats import spearmanr

from workbench.models.hooked import HookedLVLM
from workbench.models.masks import Mask, Positions
from workbench.prompts.prompt import Prompt, PromptSet
from workbench.shapes import PROJECTIONS
from workbench.sweeps.run import sweep

TOP = 5


def positions_agreement(
    model: HookedLVLM,
    prompts: Sequence[Prompt],
    *,
    positions: Sequence[Positions] = ("after_image", "last"),
    mask: Mask | None = None,
    projections: Sequence[str] = PROJECTIONS,
    progress: bool = False,
) -> pd.DataFrame:
    """Sweep with masks at fewer positions, and hold the heads' mean deflections against `positions="all"`.

    Masks after the image, or at the last position alone, reuse the unmasked cache of everything before, so they are
    cheaper; whether they rank heads alike is a question about the model, which this answers.

    Args:
        prompts: Those without an image are left out where `after_image` is asked for.
    Returns: One row a (positions, projection): `spearman` over heads, `top_shared` (of the first five heads), `work`
        (layer-tokens against `all`).
    Raises: as `sweep`.
    """
    mask = mask or Mask()
    if "after_image" in positions:
        prompts = PromptSet(p for p in prompts if p.image is not None)
    whole = sweep(
        model,
        prompts,
        mask=replace(mask, positions="all"),
        projections=projections,
        keep_states=False,
        progress=progress,
    )
    rows = []
    for where in positions:
        part = sweep(
            model,
            prompts,
            mask=replace(mask, positions=where),
            projections=projections,
            keep_states=False,
            progress=progress,
        )
        for projection in projections:
            one, other = (r.deflection.sel(projection=projection).mean("prompt").values.ravel() for r in (whole, part))
            shared = set(one.argsort()[-TOP:]) & set(other.argsort()[-TOP:])
            work = part.attrs["layer_tokens"] / whole.attrs["layer_tokens"]
            spearman = float(spearmanr(one, other, nan_policy="omit").statistic)
            rows.append((where, projection, spearman, len(shared), work))
    return pd.DataFrame(rows, columns=["positions", "projection", "spearman", "top_shared", "work"])
