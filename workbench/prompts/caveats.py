"""What is to be known of a set before a rate on it is believed: what its parts share, and how few questions it asks.

The papers' own released data shows why: rows that heads were chosen on lie inside the sets that are then scored, and
500 safe rows ask 11 different questions, so that a rate on them speaks of one template.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from workbench.prompts.pictures import image_hash
from workbench.prompts.prompt import Prompt, text_key

FEW_TEXTS = 30  # different texts of a label: fewer, and a rate on them says how one template fares


def caveats(prompts: Sequence[Prompt]) -> list[str]:
    """Sentences about what a set's sources and splits share, and about labels with few different texts; none is told.

    Examples:
        >>> import workbench as wb
        >>> twice = [wb.Prompt(f"p{i}", "what is this?", split=split) for i, split in enumerate(("selection", "test"))]
        >>> caveats(twice)[0]
        'the splits selection and test share 1 texts'
    """
    told = []
    for what, name_of in (("sources", lambda p: p.source), ("splits", lambda p: p.split)):
        parts: dict[str, list[Prompt]] = defaultdict(list)
        for prompt in prompts:
            if name_of(prompt):
                parts[name_of(prompt)].append(prompt)
        told += [f"the {what} {sentence}" for sentence in overlaps(parts)]
    sources = sorted({p.source for p in prompts})
    for source in sources:
        front = f"{source}: " if len(sources) > 1 else ""
        told += [front + sentence for sentence in few_texts([p for p in prompts if p.source == source], "prompts")]
    return told


def overlaps(parts: Mapping[str, Sequence[Prompt]]) -> list[str]:
    """Sentences about pictures and texts that two parts share; a text counts without case and punctuation."""
    known = [
        (name, {image_hash(p.image) for p in part} - {""}, {text_hash(p.text) for p in part if p.text.strip()})
        for name, part in parts.items()
    ]
    told = []
    for place, (name, pictures, texts) in enumerate(known):
        for other, their_pictures, their_texts in known[place + 1 :]:
            shared = [
                f"{len(mine & theirs)} {what}"
                for what, mine, theirs in (("pictures", pictures, their_pictures), ("texts", texts, their_texts))
                if mine & theirs
            ]
            if shared:
                told.append(f"{name} and {other} share {' and '.join(shared)}")
    return told


def few_texts(prompts: Sequence[Prompt], what: str) -> list[str]:
    """A sentence for each label whose prompts (or what `what` calls them) ask the same few texts again and again."""
    told = []
    for label, count in Counter(p.label for p in prompts).items():
        different = len({text_key(p.text) for p in prompts if p.label == label})
        if different < FEW_TEXTS and 2 * different <= count:
            told.append(
                f"the {count} {label} {what} ask {different} different texts: a rate on them tests few questions"
            )
    return told


def text_hash(text: str) -> str:
    """What stands for a text where none is shown: a hash of it without case and punctuation, 12 hex digits."""
    return hashlib.sha256(text_key(text).encode()).hexdigest()[:12]
