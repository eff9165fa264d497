"""Heads that act together: Sahara's greedy group search, and how much more pairs of heads do than each alone."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from workbench.axes import head_name
from workbench.criteria.registry import list_criteria
from workbench.criteria.statistics import percentile_interval
from workbench.criteria.subspace import first_left_singular, line_angle_deg
from workbench.errors import DetectorError
from workbench.models.encodings import Encodings
from workbench.models.hooked import HookedLVLM
from workbench.models.masks import Mask
from workbench.prompts.prompt import Prompt
from workbench.runs.effects import MEASURES
from workbench.runs.job import check_groups
from workbench.sweeps.engines.head_sets import group_states
from workbench.sweeps.plan import batches, plan
from workbench.sweeps.sweep import sweep

Head = tuple[int, int]
SUBSPACE = "subspace"
STATES_AT_ONCE = 2**25  # numbers of float64 held at a time: 256 MB


def greedy_groups(
    model: HookedLVLM,
    prompts: Sequence[Prompt],
    *,
    objective: str = "kl",
    steps: int = 3,
    projection: str = "query",
    mask: Mask | None = None,
) -> pd.DataFrame:
    """Grow a group of heads, one a step: the head whose masking, with the group, has the largest mean effect.

    Args:
        model: The model.
        prompts: Only the unsafe ones are used, as published (harmful queries).
        objective: A measure of the sweep (kl, deflection, refusal_change, ...), turned so that larger is stronger; or
            `"subspace"`, the published one: the angle between the first left singular vectors of the prompts' final
            states without and with the group masked, in degrees, 0 to 90 (`svd_left`, r_main = 1).
        steps: Size of the group; the paper stops at 5 at most.
        projection: What of the heads is masked.
        mask: How.

    Returns:
        One row a step: step (1-based), layer, head, `value` (effect of the whole group, in the objective's unit),
        `gain` over the step before, and `runner_up`, the head that came second, with `runner_up_value`.
        `.attrs["group"]` is the group.

    Source:
        Sahara, arXiv 2410.13708, section 4; ydyjya/SafetyHeadAttribution, lib/Sahara/attribution.py.

    Differs:
        Theirs scores a group by the angle over the data set (`"subspace"`); the other objectives are means over prompts
        of a per-prompt measure. Their paper sums over r_main principal angles; their code takes the first, as here.
    """
    unsafe = _unsafe(prompts)
    left = [(layer, head) for layer in model.masked_layers for head in range(model.n_heads)]
    if not 1 <= steps <= len(left):
        raise DetectorError(f"steps is the size of the group, 1 to {len(left)} heads; got {steps}.")
    group: list[Head] = []
    rows = []
    for step in range(1, steps + 1):
        groups = [[*group, head] for head in left]
        how: dict[str, Any] = {"projection": projection, "mask": mask}
        if objective == SUBSPACE:
            effects = subspace_angles(model, unsafe, groups, **how)
        else:
            effects = group_effects(model, unsafe, groups, measure=objective, **how).mean(0)
        best, *others = (int(i) for i in np.argsort(-effects, kind="stable"))
        runner_up = (head_name(*left[others[0]]), float(effects[others[0]])) if others else ("", np.nan)
        group.append(left.pop(best))
        rows.append((step, *group[-1], float(effects[best]), *runner_up))
    table = pd.DataFrame(rows, columns=["step", "layer", "head", "value", "runner_up", "runner_up_value"])
    table.insert(4, "gain", table["value"].diff().fillna(table["value"]))
    table.attrs = {"group": tuple(group), "objective": objective, "projection": projection, "n_prompts": len(unsafe)}
    return table


def head_interactions(
    model: HookedLVLM,
    prompts: Sequence[Prompt],
    heads: Sequence[Head],
    *,
    measure: str = "kl",
    projection: str = "query",
    mask: Mask | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Joint effect of each pair of heads against the sum of their single effects, on the unsafe prompts.

    Returns:
        One row a pair: `a`, `b` (written L3H1), `value_a`, `value_b`, `joint` (means, in the measure's unit),
        `interaction` = joint − value_a − value_b (positive: together they do more than the sum; two heads that stand in
        for each other are positive), and its 95 % bootstrap interval over prompts, `low` and `high`.
    """
    unsafe = _unsafe(prompts)
    heads = [(int(layer), int(head)) for layer, head in heads]
    if len(set(heads)) < max(2, len(heads)):
        raise DetectorError(f"Interactions need two heads or more, each once; got {len(heads)}.")
    pairs = list(combinations(range(len(heads)), 2))
    groups = [[head] for head in heads] + [[heads[i], heads[j]] for i, j in pairs]
    effects = group_effects(model, unsafe, groups, measure=measure, projection=projection, mask=mask)
    drawn = np.random.default_rng(seed).integers(len(unsafe), size=(bootstrap, len(unsafe)))
    rows = []
    for (i, j), joint in zip(pairs, effects[:, len(heads) :].T, strict=True):
        extra = joint - effects[:, i] - effects[:, j]
        means = [of.mean() for of in (effects[:, i], effects[:, j], joint, extra)]
        rows.append((head_name(*heads[i]), head_name(*heads[j]), *means, *percentile_interval(extra[drawn].mean(1))))
    return pd.DataFrame(rows, columns=["a", "b", "value_a", "value_b", "joint", "interaction", "low", "high"])


def group_effects(
    model: HookedLVLM,
    prompts: Sequence[Prompt],
    groups: Sequence[Sequence[Head]],
    *,
    measure: str,
    projection: str = "query",
    mask: Mask | None = None,
) -> np.ndarray:
    """A measure of each group masked together, turned so that larger is stronger: [prompt, group]."""
    if measure not in MEASURES:
        raise DetectorError(f"A measure of the sweep is one of {', '.join(MEASURES)}; got {measure!r}.")
    run = sweep(model, prompts, projections=(projection,), mask=mask, groups=groups, progress=False)
    values = run[measure].sel(projection=projection).transpose("prompt", "group").values.astype(np.float64)
    if not np.isfinite(values).all():
        raise DetectorError(f"Masking groups gave {measure} that is NaN or infinite for some prompts. Use float32.")
    return next((c.strength(values) for c in list_criteria() if c.needs == (measure,)), values)


def subspace_angles(
    model: HookedLVLM,
    prompts: Sequence[Prompt],
    groups: Sequence[Sequence[Head]],
    *,
    projection: str = "query",
    mask: Mask | None = None,
) -> np.ndarray:
    """Ships' published effect of each group on a data set: degrees, 0 to 90, [group].

    The final states of all prompts make a matrix, without the mask and with it; what is measured is the angle between
    the first left singular vectors of the two.

    Source:
        Ships (arXiv 2410.13708), generalised to data sets; ydyjya/SafetyHeadAttribution, lib/Sahara/svd.py, r_main = 1.
    """
    mask = mask or Mask()
    wanted = check_groups(model, groups, mask)
    encoded = Encodings(model, prompts)
    rows = plan(model, max(e.n_tokens for e in encoded)).rows
    at_once = max(1, STATES_AT_ONCE // (len(encoded) * model.d_model))
    angles = []
    for start in range(0, len(wanted), at_once):
        some = wanted[start : start + at_once]
        base, masked = np.empty((len(encoded), model.d_model)), np.empty((len(some), len(encoded), model.d_model))
        for batch in batches(encoded, max(1, rows // len(some))):
            states = group_states(model, [encoded[i] for i in batch], some, projection, mask, rows)
            base[batch], masked[:, batch] = states[0].double().cpu(), states[1].double().cpu().transpose(0, 1)
        first = first_left_singular(base)
        angles += [float(line_angle_deg(first, first_left_singular(of))) for of in masked]
    return np.array(angles)


def _unsafe(prompts: Sequence[Prompt]) -> list[Prompt]:
    found = [p for p in prompts if p.label == "unsafe"]
    if not found:
        raise DetectorError(f"Groups of safety heads are sought on unsafe prompts; these {len(prompts)} hold none.")
    return found
