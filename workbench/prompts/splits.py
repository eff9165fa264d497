"""Splits that do not leak: made with pairs and pictures kept together, and refused when they overlap."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from workbench.axes import LABELS, SPLITS
from workbench.errors import PromptError
from workbench.prompts.prompt import Prompt, PromptSet, image_hash

DEFAULT_FRACTIONS = {"selection": 0.5, "threshold": 0.25, "test": 0.25}


def split_prompts(
    prompts: Sequence[Prompt], *, fractions: Mapping[str, float] = DEFAULT_FRACTIONS, seed: int = 0
) -> dict[str, PromptSet]:
    """Share the prompts out over splits, evenly for every label and family, so that no split knows another.

    Prompts of one pair, or with the same picture, go together; what is left over goes where most is lacking.

    Args:
        prompts: Any prompts; the splits they declare are overwritten.
        fractions: Share of each split, no unit, over 0 and summing to 1. Any of selection, threshold and test.
        seed: The same prompts and seed give the same splits.

    Returns:
        A `PromptSet` for each split, in the order of `prompts`, every prompt declaring its split.

    Raises:
        PromptError: If the fractions are no shares, or a split would be left empty.
    """
    _check_fractions(fractions)
    rng = np.random.default_rng(seed)
    names = list(fractions)
    share = np.array([fractions[name] for name in names])
    strata: dict[tuple, list[list[int]]] = defaultdict(list)
    for group in _inseparable(prompts):
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
            f"{len(prompts)} prompts are too few, or too closely tied by pairs and pictures, for the splits "
            f"{', '.join(names)}: nothing is left for {', '.join(empty)}. Give more prompts or fewer splits."
        )
    return parts


def check_splits(prompts: Iterable[Prompt]) -> None:
    """Refuse prompts whose declared splits overlap: an id, a picture or a pair that two splits share.

    A picture of one flat colour shows nothing, so many prompts may share it. Prompts that declare no split are
    not looked at, and the same words may be asked in two splits: it is the picture or the pair that tells.

    Raises:
        PromptError: If there are any; it names the splits, and the first of the shared ids, pictures and pairs.
    """
    declared = [p for p in prompts if p.split]
    overlaps = []
    for what, key in KEYS.items():
        used: dict[str, dict[str, str]] = defaultdict(dict)
        for prompt in declared:
            if value := key(prompt):
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


def _telling_image(prompt: Prompt) -> str:
    """The hash of a picture that shows something; empty for none, and for one flat colour."""
    if prompt.image is None:
        return ""
    lowest_highest = np.array(prompt.image.getextrema()).reshape(-1, 2)  # one row a colour channel
    return "" if (lowest_highest[:, 0] == lowest_highest[:, 1]).all() else image_hash(prompt.image)


KEYS: dict[str, Callable[[Prompt], str]] = {
    "id": lambda prompt: prompt.id,
    "pair": lambda prompt: prompt.pair_id,
    "picture": _telling_image,
}


def _inseparable(prompts: Sequence[Prompt]) -> Iterator[list[int]]:
    """Positions of the prompts that a pair or a picture ties together, directly or through others."""
    parent = list(range(len(prompts)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    first: dict[tuple[str, str], int] = {}
    for i, prompt in enumerate(prompts):
        for what in ("pair", "picture"):
            if value := KEYS[what](prompt):
                parent[root(i)] = root(first.setdefault((what, value), i))
    groups: dict[int, list[int]] = defaultdict(list)
    for i in range(len(prompts)):
        groups[root(i)].append(i)
    yield from groups.values()


def _check_fractions(fractions: Mapping[str, float]) -> None:
    if unknown := [name for name in fractions if name not in SPLITS]:
        raise PromptError(f"The splits are {', '.join(SPLITS)}; got {', '.join(map(repr, unknown))}.")
    if not fractions or any(not f > 0 for f in fractions.values()) or abs(sum(fractions.values()) - 1) > 1e-6:
        raise PromptError(f"The fractions must each be over 0 and sum to 1; got {dict(fractions)}.")
