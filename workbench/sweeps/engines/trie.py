"""Which prompts begin alike, and for how long: a trie over token ids, image contents and tables of positions.

A symbol is a token id together with, at image positions, the hash of the pixels, and with what the position is to the
model (`workbench.sweeps.engines.shared_passes.position_marks`); so two prompts share an image only
if they show the same one, and a cut never falls inside an image (pictures differ from their first token on or not at
all).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from workbench.models.encode import Encoded

# A shared beginning shorter than this is computed for each prompt: a pass over a few tokens costs more than it saves.
FEWEST_SHARED = 8

Symbol = tuple[int, str, bytes]


@dataclass(eq=False)
class Node:
    """Positions `start:stop`, which the prompts beneath (indices) have in common with all that is before them."""

    start: int
    stop: int
    prompts: list[int]
    parent: "Node | None" = None
    children: list["Node"] = field(default_factory=list)

    @property
    def depth(self) -> int:
        """0 for a root."""
        return self.parent.depth + 1 if self.parent else 0


def symbols(encoded: Encoded, marks: Sequence[bytes]) -> list[Symbol]:
    """What each position shows, and what the position itself is."""
    image = encoded.image_positions.tolist()
    ids = encoded.input_ids[0].tolist()
    return [
        (token, encoded.image_key if seen else "", mark) for token, seen, mark in zip(ids, image, marks, strict=True)
    ]


def build_trie(encoded: Sequence[Encoded], marks: Sequence[Sequence[bytes]] | None = None) -> list[Node]:
    """The roots. Leaves are single prompts, and keep at least their last position to themselves.

    Args:
        marks: What each position of each prompt is, besides what it shows; by default the same in all.
    """
    marks = marks or [[b""] * e.n_tokens for e in encoded]
    written = [symbols(e, own) for e, own in zip(encoded, marks, strict=True)]
    roots: list[Node] = []
    _grow(written, list(range(len(encoded))), 0, 0, None, roots)
    return roots


def _grow(
    written: list[list[Symbol]], prompts: list[int], start: int, at: int, parent: Node | None, into: list[Node]
) -> None:
    """Add to `into` what covers `prompts` from `start` on, knowing that they agree before `at`."""
    if len(prompts) == 1:
        into.append(Node(start, len(written[prompts[0]]), prompts, parent))
        return
    end = _agree(written, prompts, at)
    if end - start >= FEWEST_SHARED:
        node = Node(start, end, prompts, parent)
        into.append(node)
        start, parent, into = end, node, node.children
    by_symbol: dict[object, list[int]] = {}
    for prompt in prompts:
        # A prompt that ends here, or says the same as another, goes on alone.
        alone = end >= len(written[prompt]) - 1
        by_symbol.setdefault((prompt,) if alone else written[prompt][end], []).append(prompt)
    for group in by_symbol.values():
        _grow(written, group, start, end, parent, into)


def _agree(written: list[list[Symbol]], prompts: list[int], at: int) -> int:
    """The first position from `at` on where the prompts differ, or one of them has its last token."""
    first = written[prompts[0]]
    most = min(len(written[p]) for p in prompts) - 1
    while at < most and all(written[p][at] == first[at] for p in prompts):
        at += 1
    return at
