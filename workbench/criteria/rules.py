"""The rules: how heads are ranked under a criterion, and the controls that a claim about them has to beat.

All read strengths: where a criterion says that smaller, or further from 1, is the stronger (see its `direction`), its
values are turned first, and so is the `value` that `top_heads` returns.

A rule is added by one record, and then is in every table, list and help text:

    from workbench.criteria import Rule, register_rule

    register_rule(
        Rule(
            name="contrast",
            kinds=("per prompt", "per data set"),
            says="(unsafe - safe) / (unsafe + safe), among heads that act on unsafe prompts",
            source="this file",
            value=lambda of: (of["unsafe"] - of["safe"]) / (of["unsafe"] + of["safe"]),
            keeps=lambda of, percentile: (of["unsafe"] > 0) & (of["safe"] >= 0),
        )
    )
"""

from typing import Any

import numpy as np
import pandas as pd

from workbench.criteria.registry import KINDS, PER_DATA_SET, PER_PROMPT, TRAINED, Columns, Rule, register_rule

SAFE_PERCENTILE = 80.0
NEAREST = 5  # magnitude_matched draws among this many heads of the closest safe value
COMPARED = (PER_PROMPT, PER_DATA_SET)  # the kinds with a value on safe prompts and one on unsafe ones


def difference(of: Columns) -> Any:
    """Unsafe − safe."""
    return of["unsafe"] - of["safe"]


def percentile_ranks(values: np.ndarray) -> np.ndarray:
    """The percentile at which each value lies, 0-100: under p just where the value is under the p-th percentile."""
    known = np.sort(values[~np.isnan(values)])
    ranks = 100 * (np.searchsorted(known, values, side="right") - 1) / max(1, len(known) - 1)
    return np.where(np.isnan(values), np.nan, ranks if len(known) > 1 else 100.0)


def _few_under_the_bound(rows: pd.DataFrame, unit: str, percentile: float) -> str:
    bound, smallest = float(np.percentile(rows["safe"], percentile)), rows["safe"].min()
    if bound <= smallest:
        return (
            f"The rule keeps heads whose safe value is strictly under its {percentile:g}th percentile, which is "
            f"{bound:.4g} {unit} here, the smallest value there is: {int((rows['safe'] <= smallest).sum())} of "
            f"{len(rows)} heads share it{' (they do nothing on safe prompts)' if bound == 0 else ''}. Use auroc, "
            "effect_size or sensitivity, or a higher percentile."
        )
    under = f"{bound:.4g} {unit}"
    if not np.array_equal(percentile_ranks(rows["safe"].to_numpy()), rows["safe_rank"]):
        under = f"the {percentile:g}th percentile of all heads, most of which this run did not score exactly"
    return f"It keeps those with a safe value under {under}. Ask for fewer, or raise percentile."


def _ratio(of: Columns) -> Any:
    """Infinite for heads that do nothing on safe prompts; a head that does next to nothing on either may rank high."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(of["unsafe"]) / np.asarray(of["safe"])


for _rule in (
    Rule("sensitivity", KINDS, "unsafe; for a probe its held-out accuracy", "Ships, SAHs"),
    Rule(
        "selectivity",
        COMPARED,
        "unsafe - safe, among heads whose safe value is under the 80th percentile of all heads",
        "Oh Defense, Eq. 6 and released code",
        value=difference,
        keeps=lambda of, percentile: of["safe_rank"] < percentile,
        why_few=_few_under_the_bound,
    ),
    Rule(
        "auroc",
        (PER_PROMPT, TRAINED),
        "chance that an unsafe prompt is the stronger one",
        "this project",
        value=lambda of: of["auroc"],
    ),
    Rule("effect_size", (PER_PROMPT,), "Cohen's d", "this project", value=lambda of: of["effect_size"]),
    Rule(
        "ratio",
        COMPARED,
        "unsafe / safe",
        "this project",
        value=_ratio,
        keeps=lambda of, percentile: (of["unsafe"] > 0) & (of["safe"] >= 0),
        why_few=lambda rows, unit, percentile: (
            "It needs heads that act on unsafe prompts (a value above 0) and are not negative on safe ones."
        ),
    ),
    Rule("random", KINDS, "heads drawn at random", "control", is_control=True),
    Rule(
        "layer_matched",
        KINDS,
        "for each head that selectivity picks (sensitivity, for a probe), another head of its layer",
        "control",
        is_control=True,
        candidates=lambda rest, like: rest.index[rest["layer"] == like.layer],
    ),
    Rule(
        "magnitude_matched",
        COMPARED,
        f"for each head that selectivity picks, one of the {NEAREST} heads whose safe value is closest",
        "control",
        is_control=True,
        candidates=lambda rest, like: (rest["safe"] - like.safe).abs().sort_values(kind="stable").index[:NEAREST],
    ),
):
    register_rule(_rule)
