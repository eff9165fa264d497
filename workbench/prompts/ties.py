"""Which prompts stay together: when prompts are dealt to splits or folds, resampled, or their labels shuffled.

A tie is what two prompts share: a pair, a picture, what they ask. Prompts tied through others stay together too.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from workbench.errors import PromptError
from workbench.prompts.pictures import image_hash, is_flat
from workbench.prompts.prompt import Prompt, text_key

MANY_TEXTS = 10  # a picture beside more different texts than this is a backdrop, and says nothing about any of them
DEFAULT_TIES = ("pair", "picture", "content")


def tied(*keys: Sequence[str] | np.ndarray) -> list[list[int]]:
    """Positions that belong together: they share a value under one of the keys, directly or through others.

    Args:
        keys: [position] each; an empty string ties nothing.

    Examples:
        >>> tied(["a", "", "a", ""], ["", "x", "y", "x"])
        [[0, 2], [1, 3]]
    """
    parent = list(range(len(keys[0])))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    for values in keys:
        first: dict[str, int] = {}
        for i, value in enumerate(values):
            if value:
                parent[root(i)] = root(first.setdefault(value, i))
    groups: dict[int, list[int]] = defaultdict(list)
    for i in range(len(parent)):
        groups[root(i)].append(i)
    return list(groups.values())


def tie_names(*keys: Sequence[str] | np.ndarray) -> np.ndarray:
    """`tied` as a name for each position, [position]; empty for what is alone."""
    names = np.full(len(keys[0]), "", dtype=object)
    for number, members in enumerate(tied(*keys)):
        if len(members) > 1:
            names[members] = f"tie {number}"
    return names


def strata(ties: Sequence[str] | np.ndarray, kinds: Sequence) -> list[list[np.ndarray]]:
    """Prompts that stay together, and the sets of them grouped so that those of a stratum are alike.

    Args:
        ties: [prompt], a name that tied prompts share; a prompt with an empty string is alone.
        kinds: [prompt], hashable and sortable; sets are alike when they hold the same kinds, each as often.

    Returns:
        Strata in a fixed order; each a list of sets of tied prompts; each set the indices of its prompts.
    """
    groups: dict[tuple, list[np.ndarray]] = defaultdict(list)
    for members in tied(ties):
        groups[tuple(sorted(kinds[i] for i in members))].append(np.array(members))
    return [groups[kind] for kind in sorted(groups)]


def tie_keys(prompts: Sequence[Prompt], ties: Sequence[str] = DEFAULT_TIES) -> tuple[dict[str, list[str]], list[str]]:
    """What ties prompts, by the name of the tie: a value for each prompt, empty where it ties nothing.

    A picture of one flat colour shows nothing and ties nothing; nor does one beside more than `MANY_TEXTS` texts.

    Returns:
        The keys, and sentences about pictures that were too common to tie anything.
    """
    if unknown := [name for name in ties if name not in TIES]:
        raise PromptError(f"Prompts are tied by {', '.join(TIES)}; got {', '.join(map(repr, unknown))}.")
    keys = {name: [TIES[name](prompt) for prompt in prompts] for name in ties}
    said: list[str] = []
    if "picture" in keys:
        keys["picture"], said = _telling(prompts, keys["picture"])
    return keys, said


def _telling(prompts: Sequence[Prompt], hashes: list[str]) -> tuple[list[str], list[str]]:
    """The pictures that tie prompts, [prompt]; and which were left out for standing beside too many texts."""
    beside: dict[str, list[int]] = defaultdict(list)
    for i, value in enumerate(hashes):
        if value:
            beside[value].append(i)
    quiet: set[str] = set()
    said = []
    for value, members in beside.items():
        image = prompts[members[0]].image
        if len(members) < 2 or image is None:
            continue
        if is_flat(image):
            quiet.add(value)
        elif (texts := len({text_key(prompts[i].text) for i in members})) > MANY_TEXTS:
            quiet.add(value)
            said.append(
                f"The picture {value} (of prompt {prompts[members[0]].id!r}) stands beside {texts} different texts in "
                f"{len(members)} prompts; it does not tie them together."
            )
    return ["" if value in quiet else value for value in hashes], said


TIES: dict[str, Callable[[Prompt], str]] = {
    "id": lambda prompt: prompt.id,
    "pair": lambda prompt: prompt.pair_id,
    "picture": lambda prompt: image_hash(prompt.image),
    "content": lambda prompt: prompt.content_key(),
    "text": lambda prompt: text_key(prompt.text),
}


def repeats(contents: Sequence[str] | np.ndarray) -> Iterator[list[int]]:
    """Positions of prompts that ask the same, group by group."""
    yield from (members for members in tied(contents) if len(members) > 1)
