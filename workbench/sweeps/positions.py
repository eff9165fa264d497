"""How much masks at fewer positions agree with masks at all of them, on a few prompts of the same sweep.

Masks after the image, or at the last position alone, reuse the unmasked cache of everything before, so they are
cheaper; whether they rank heads alike is a question about the model, which every such sweep answers for itself.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from workbench.runs.job import FINAL, by_layer
from workbench.sweeps.engines.exact import ExactBlock
from workbench.sweeps.tasks import Sweep

PROMPTS = 8
TOP = 5


def agreement_with_all(sweep: Sweep, tick: Callable[[], Any]) -> dict[str, Any]:
    """Mean deflections of a finished sweep's cells against those under the same mask at all positions.

    Args:
        sweep: A sweep whose mask acts at fewer positions.
        tick: Called after each layer.

    Returns:
        `prompts` (how many, spread evenly over the sweep's); by projection `spearman` over heads, and `top_shared`, the
        share of the first five heads that are the same. A projection with fewer than three heads is left out.
    """
    from scipy.stats import spearmanr

    known = [i for i in range(len(sweep.prompts)) if i not in sweep.encode.left_out]
    sample = sorted({known[int(i)] for i in np.linspace(0, len(known) - 1, min(len(known), PROMPTS))})
    part = sweep.sink.read("deflection")[sample]
    read = sweep.job.readout
    if read:
        at = read.index(FINAL) if FINAL in read else len(read) - 1
        part, read = part[..., at], read[at : at + 1]
    known = ~np.isnan(part).any(0)
    cells = by_layer((number, layer, head) for number, layer, head in np.argwhere(known).tolist())
    everywhere = replace(sweep.job.mask, positions="all")
    job = replace(sweep.job, mask=everywhere, cells=cells, keep_states=False, readout=read)
    block = ExactBlock(sweep.model, [sweep.encode(i) for i in sample], job, sweep.sink.partition.rows)
    whole = np.full_like(part, np.nan)
    for layer in cells:
        found = block.layer_arrays(layer)["deflection"].reshape(part[:, :, layer].shape)
        whole[:, :, layer] = np.where(known[:, layer], found, np.nan)
        tick()
    spearman, shared = {}, {}
    for number, name in enumerate(sweep.job.projections):
        one, other = (values[:, number][:, known[number]].mean(0) for values in (whole, part))
        if len(one) > 2 and np.ptp(one) > 0 and np.ptp(other) > 0:
            spearman[name] = round(float(spearmanr(one, other).statistic), 4)
            top = min(TOP, len(one))
            shared[name] = len(set(one.argsort()[-top:]) & set(other.argsort()[-top:])) / top
    return {"prompts": len(sample), "spearman": spearman, "top_shared": shared}


def report(attrs: Mapping[str, Any]) -> str:
    """The agreement in one line; empty for a sweep that masked all positions."""
    found = attrs.get("positions_agreement")
    if not found:
        return ""
    parts = [
        f"{name}: rank correlation {rank:.2f}, {found['top_shared'][name]:.0%} of the first {TOP} heads the same"
        for name, rank in found["spearman"].items()
    ]
    return (
        f"positions={attrs['mask_positions']!r} against positions='all', on {found['prompts']} prompts: "
        f"{'; '.join(parts) or 'too few heads to compare'}."
    )
