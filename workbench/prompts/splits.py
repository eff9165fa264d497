"""Splits that do not leak: made with what is tied kept together, and refused when they overlap."""

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from workbench.axes import LABELS, SPLITS
from workbench.checking import Seed, checked
from workbench.errors import PromptError
from workbench.prompts.prompt import Prompt, PromptSet, SomePrompts
from workbench.prompts.ties import DEFAULT_TIES, tie_keys, tied

log = logging.getLogger(__name__)

DEFAULT_FRACTIONS = {"selection": 0.5, "threshold": 0.25, "test": 0.25}


@checked
def split_prompts(
    prompts: SomePrompts,
    *,
    fractions: Mapping[str, float] = DEFAULT_FRACTIONS,
    seed: Seed = 0,
    ties: Sequence[str] = DEFAULT_TIES,
) -> dict[str, PromptSet]:
    """Share the prompts out over splits, evenly for every label and family, so that no split knows another.

    Prompts of one pair, with the same picture, or that ask the same go together; what is left over goes where most is
    lacking. A picture of one flat colour, or beside more than ten different texts, ties nothing; the latter is logged.

    Args:
        prompts: Any prompts; the splits they declare are overwritten.
        fractions: Share of each split, no unit, over 0 and summing to 1. Any of selection, threshold and test.
        seed: The same prompts and seed give the same splits.
        ties: What keeps prompts together, of pair, picture, content (text and picture), text (whatever the picture).

    Returns:
        A `PromptSet` for each split, in the order of `prompts`, every prompt declaring its split.

    Raises:
        PromptError: The fractions are no shares, or a split would be left empty.
    """
    _check_fractions(fractions)
    rng = np.random.default_rng(seed)
    names = list(fractions)
    share = np.array([fractions[name] for name in names])
    keys, said = tie_keys(prompts, ties)
    for sentence in said:
        log.warning(sentence)
    strata: dict[tuple, list[list[int]]] = defaultdict(list)
    for group in tied(*keys.values()) if keys else [[i] for i in range(len(prompts))]:
        strata[tuple(sorted({(prompts[i].label, prompts[i].family) for i in group}))].append(group)

    chosen: dict[int, str] = {}
    lacking = np.zeros(len(names))  # over all strata, so that small ones do not all round the same way
    for stratum in sorted(strata):
        groups = [strata[stratum][k] for k in rng.permutation(len(strata[stratum]))]
        groups.sort(key=len, reverse=True)  # the largest first, while there is room everywhere
        lacking += share * sum(map(len, groups))
        for group in groups:
            winner = int(np.argmax(lacking))
            lacking[winner] -= len(group)
            chosen.update(dict.fromkeys(group, names[winner]))

    parts = {
        name: PromptSet((replace(p, split=name) for i, p in enumerate(prompts) if chosen[i] == name), name=name)
        for name in names
    }
    if empty := [name for name, part in parts.items() if not len(part)]:
        raise PromptError(
            f"{len(prompts)} prompts are too few, or too closely tied by pairs and pictures (ties: {', '.join(ties)}), "
            f"for the splits {', '.join(names)}: nothing is left for {', '.join(empty)}. Give more prompts, fewer "
            'splits, or fewer ties, such as ties=("pair", "text").'
        )
    return parts


def check_splits(prompts: Iterable[Prompt], *, ties: Sequence[str] = DEFAULT_TIES) -> None:
    """Refuse prompts whose declared splits overlap: an id, or what ties prompts, that two splits share.

    A picture of one flat colour shows nothing, so many prompts may share it, and so they may one beside more than ten
    different texts, as a log line says. Prompts that declare no split are not looked at, and the same words may be
    asked of different pictures in two splits.

    Raises:
        PromptError: Naming the splits, and the first of the shared ids, pairs, pictures and contents.
    """
    declared = [p for p in prompts if p.split]
    if len({p.split for p in declared}) < 2:
        return
    keys, said = tie_keys(declared, ("id", *ties))
    for sentence in said:
        log.warning(sentence)
    overlaps = []
    for what, values in keys.items():
        used: dict[str, dict[str, str]] = defaultdict(dict)
        for prompt, value in zip(declared, values, strict=True):
            if value:
                used[value].setdefault(prompt.split, prompt.id)
        shared = [(value, splits) for value, splits in used.items() if len(splits) > 1]
        if shared:
            value, splits = shared[0]
            where = ", ".join(f"{split} (prompt {id_!r})" for split, id_ in splits.items())
            more = f", and {len(shared) - 1} more like it" if len(shared) > 1 else ""
            overlaps.append(f"the {what} {value!r} is in {where}{more}")
    if overlaps:
        raise PromptError(
            f"The splits overlap: {'; '.join(overlaps)}. What is measured on one split would be known from another. "
            "Mend the split column, or let workbench.prompts.split_prompts make the splits."
        )


def sample_prompts(prompts: PromptSet, n: int, *, seed: int) -> PromptSet:
    """`n` of the prompts, drawn without replacement, as even over the labels as there are prompts; order kept."""
    if n > len(prompts):
        raise PromptError(f"n={n} prompts were wanted, but there are {len(prompts)}. Ask for that many at most.")
    rng = np.random.default_rng(seed)
    by_label = {label: [i for i, p in enumerate(prompts) if p.label == label] for label in LABELS}
    take = {label: min(len(by_label[label]), n // 2) for label in LABELS}
    for label in sorted(LABELS, key=lambda label: len(by_label[label]) - take[label], reverse=True):
        take[label] = min(len(by_label[label]), n - sum(take[other] for other in LABELS if other != label))
    kept = {i for label in LABELS for i in rng.choice(by_label[label], size=take[label], replace=False)}
    return PromptSet((p for i, p in enumerate(prompts) if i in kept), name=prompts.name)


def _check_fractions(fractions: Mapping[str, float]) -> None:
    if unknown := [name for name in fractions if name not in SPLITS]:
        raise PromptError(f"The splits are {', '.join(SPLITS)}; got {', '.join(map(repr, unknown))}.")
    if not fractions or any(not f > 0 for f in fractions.values()) or abs(sum(fractions.values()) - 1) > 1e-6:
        raise PromptError(f"The fractions must each be over 0 and sum to 1; got {dict(fractions)}.")


def split_shares(world: str, split: str | None, n: int) -> dict[str, int]:
    """How many of `n` prompts that are drawn each split gets: all of them for one that is named, else equal shares.

    Raises:
        PromptError: A split that there is not, or no prompts at all.
    """
    if split is not None and split not in SPLITS:
        splits = ", ".join(SPLITS)
        raise PromptError(f"{world.capitalize()} has the splits {splits}; got {split!r}. Leave it out for all three.")
    if n < 1:
        raise PromptError(f"At least 1 prompt was wanted of {world}; got n={n}.")
    wanted = SPLITS if split is None else (split,)
    return {name: n // len(wanted) + (k < n % len(wanted)) for k, name in enumerate(wanted)}
