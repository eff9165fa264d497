"""One set out of several: unsafe prompts from these, safe ones from those, capped, balanced, dealt to splits."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

import numpy as np

from workbench.axes import LABELS
from workbench.checking import Converted, Whole, checked
from workbench.errors import PromptError
from workbench.prompts.caveats import overlaps
from workbench.prompts.prompt import Prompt, PromptSet
from workbench.prompts.splits import split_prompts
from workbench.prompts.ties import tied

log = logging.getLogger(__name__)

Cap = Annotated[int, Whole(1)] | None
# By name of the cap: the fields in whose every combination it allows so many prompts.
CAPS = {
    "per_source": ("source",),
    "per_family": ("source", "family"),
    "per_category": ("source", "family", "category"),
}


def _as_sets(value: Any) -> list[PromptSet]:
    """Sets of prompts out of sequences of them, their names kept."""
    if not isinstance(value, Sequence) or any(isinstance(s, Prompt) or not isinstance(s, Sequence) for s in value):
        raise ValueError("must be a list of sets of prompts")
    return [s if isinstance(s, PromptSet) else PromptSet(s) for s in value]


Sets = Annotated[Sequence[PromptSet], Converted(_as_sets)]


@checked
def mix(
    *sets: Sequence[Prompt],
    unsafe: Sets = (),
    safe: Sets = (),
    per_source: Cap = None,
    per_family: Cap = None,
    per_category: Cap = None,
    balanced: bool = False,
    fractions: Mapping[str, float] | None = None,
    seed: Annotated[int, Whole(0)] = 0,
) -> PromptSet:
    """One set out of several; each prompt keeps its source, so that tables can be grouped by it.

    Prompts of a pair are taken or left together. What two sets share, by picture or by text, is logged as a warning.

    Args:
        *sets: Sets that are taken with both labels.
        unsafe: Sets of which only the unsafe prompts are taken.
        safe: Sets of which only the safe prompts are taken.
        per_source: Most prompts of one source.
        per_family: Most prompts of one family of one source.
        per_category: Most prompts of one category of one family of one source.
        balanced: Thin the label that has more prompts, evenly over its sources.
        fractions: Deal the prompts to splits, such as `{"selection": 0.5, "test": 0.5}`, so that no two splits share a
            pair, a picture or a text; by default the splits that the prompts declare stay.
        seed: The same sets and seed give the same mix.

    Raises:
        PromptError: Nothing to mix, two sets of one source, or fractions that cannot be met.

    Examples:
        >>> import workbench as wb
        >>> wb.mix(unsafe=[wb.load_prompts("planted", n=40)], safe=[wb.load_prompts("pocket", n=40)], per_source=8)
        PromptSet('planted + pocket', 16 prompts: 8 safe, 8 unsafe)
    """
    parts = _as_sets(sets)
    for label, wanted in (("unsafe", unsafe), ("safe", safe)):
        parts += [PromptSet(part.where(label=label), name=part.name) for part in wanted]
    if not sum(map(len, parts)):
        raise PromptError("There is nothing to mix: give sets, or unsafe=[…] and safe=[…].")
    names = [part.name or "a set" for part in parts]
    named = {f"{name} ({k})" if names.count(name) > 1 else name: parts[k - 1] for k, name in enumerate(names, 1)}
    for sentence in overlaps(named):
        log.warning("%s. Deal them with fractions=… so that no two splits share them.", sentence)
    prompts = _named_apart(parts)
    rng = np.random.default_rng(seed)
    most = {"per_source": per_source, "per_family": per_family, "per_category": per_category}
    prompts = _capped(prompts, {name: cap for name, cap in most.items() if cap is not None}, rng)
    if balanced:
        prompts = _balanced(prompts, rng)
    name = " + ".join(dict.fromkeys(p.name or "prompts" for p in parts))
    if fractions is None:
        return PromptSet(prompts, name=name)
    dealt = split_prompts(prompts, fractions=fractions, seed=seed, ties=("pair", "picture", "content", "text"))
    split_of = {p.id: p for part in dealt.values() for p in part}
    return PromptSet((split_of[p.id] for p in prompts), name=name)


def _named_apart(parts: Sequence[PromptSet]) -> list[Prompt]:
    """The prompts of all sets; where two sets use one id or pair, both get the name of their set in front."""
    ids = Counter(p.id for part in parts for p in part)
    pairs = Counter(pair for part in parts for pair in {p.pair_id for p in part} - {""})
    prompts = []
    for number, part in enumerate(parts):
        front = f"{part.name or number}/"
        for p in part:
            id_ = front + p.id if ids[p.id] > 1 else p.id
            prompts.append(replace(p, id=id_, pair_id=front + p.pair_id if pairs[p.pair_id] > 1 else p.pair_id))
    if twice := [id_ for id_, count in Counter(p.id for p in prompts).items() if count > 1]:
        raise PromptError(
            f"Two sets of one name hold the id {twice[0]!r}: was a set given twice? Else give one another name."
        )
    return prompts


def _capped(prompts: list[Prompt], caps: Mapping[str, int], rng: np.random.Generator) -> list[Prompt]:
    """Pairs and single prompts, in random order, each taken while no cap is reached; then in the order given."""
    if not caps:
        return prompts
    groups = tied([p.pair_id for p in prompts])
    taken: Counter[tuple[str, ...]] = Counter()
    kept: set[int] = set()
    for k in rng.permutation(len(groups)):
        adds = Counter((cap, *(getattr(prompts[i], field) for field in CAPS[cap])) for i in groups[k] for cap in caps)
        if all(taken[cell] + count <= caps[cell[0]] for cell, count in adds.items()):
            taken += adds
            kept.update(groups[k])
    return [p for i, p in enumerate(prompts) if i in kept]


def _balanced(prompts: list[Prompt], rng: np.random.Generator) -> list[Prompt]:
    """As many prompts of either label: of the label with more, the largest sources give first."""
    by_label = {label: [i for i, p in enumerate(prompts) if p.label == label] for label in LABELS}
    less, more = sorted(by_label.values(), key=len)
    by_source: dict[str, list[int]] = {}
    for i in rng.permutation(more):
        by_source.setdefault(prompts[i].source, []).append(int(i))
    while sum(map(len, by_source.values())) > len(less):
        max(by_source.values(), key=len).pop()
    kept = {*less, *(i for members in by_source.values() for i in members)}
    return [p for i, p in enumerate(prompts) if i in kept]
