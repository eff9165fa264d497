"""`Prompt` and `PromptSet`: what is asked of a model, with its label and where it came from."""

import hashlib
import json
import logging
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Annotated, Any, overload

import pandas as pd
from PIL import Image

from workbench.axes import LABELS, SPLITS
from workbench.checking import Converted, plainly
from workbench.errors import PromptError
from workbench.prompts.pictures import as_rgb, image_hash
from workbench.prompts.variants import CARRIER, VARIANTS, Given, Print, Words, make_variant

log = logging.getLogger(__name__)

ROLES = ("system", "user", "assistant")
LONGEST_LABEL = 300  # characters of an id, a source, a family, …: they become labels, names of files, cells of tables
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, eq=False, repr=False)
class Prompt:
    """One question put to a model: text, an optional image, and what is known about it.

    Attributes:
        id: Unique within its set.
        text: What the user says. It goes through the model's own chat template, after the image.
        image: A PIL image, or None for a text-only prompt. It becomes upright RGB, transparency laid on white.
        label: `"safe"` or `"unsafe"`.
        source: The data set or generator it came from.
        family: The attack (or benign twin) family; Pocket's are text, typographic, icon, wrapper, question.
        category: A finer grouping within the family, such as the topic of harm.
        pair_id: Shared by an unsafe prompt and its matched safe twin; empty when there is none.
        split: `"selection"`, `"threshold"`, `"test"`, or empty when the set declares none.
        variant: `"as given"`, `"no image"`, `"blank image"`, `"caption"`, `"text only"`, … (`PromptSet.variants`).
        expected: The reply that counts as complying, where the world is ours and it is known; else empty.
        system: The system prompt; empty for the template's own, or none.
        prefill: How the reply begins; the prompt's last position is then its last token.
        turns: Earlier turns as (role, text), role `"user"` or `"assistant"`, before this one.

    Examples:
        >>> import workbench as wb
        >>> from PIL import Image
        >>> picture = Image.new("RGB", (32, 32), "white")
        >>> wb.Prompt("p1", "what is in the picture?", picture, label="safe", family="question")
        Prompt('p1', safe, question, 23 characters, 32x32 image)
    """

    id: str
    text: str
    image: Image.Image | None = None
    label: str = "safe"
    source: str = ""
    family: str = ""
    category: str = ""
    pair_id: str = ""
    split: str = ""
    variant: str = "as given"
    expected: str = ""
    system: str = ""
    prefill: str = ""
    turns: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id:
            raise PromptError(
                f"A prompt needs a non-empty text id; got {plainly(self.id)}. Number the prompts if they have no names."
            )
        where = f"prompt {plainly(self.id)}"
        for name in _TEXTS:
            value = getattr(self, name)
            if not isinstance(value, str):
                hint = " Use '' for an image without words." if name == "text" else ""
                raise PromptError(f"{where}: {name} must be a string; got {type(value).__name__}.{hint}")
            if not value.isascii() and _SURROGATE.search(value):
                raise PromptError(f"{where}: {name} holds half of a character (a lone surrogate), which is no text.")
            if len(value) > LONGEST_LABEL and name not in _LONG:
                raise PromptError(f"{where}: {name} has {len(value)} characters; at most {LONGEST_LABEL} are taken.")
        if self.image is not None:
            if not isinstance(self.image, Image.Image):
                raise PromptError(
                    f"{where}: image must be a PIL image or None; got {type(self.image).__name__}. "
                    "Open files with PIL.Image.open."
                )
            try:
                object.__setattr__(self, "image", as_rgb(self.image))
            except PromptError as error:
                raise PromptError(f"{where}: {error}") from error
        if self.label not in LABELS:
            raise PromptError(f"{where}: label must be one of {', '.join(LABELS)}; got {plainly(self.label)}.")
        if self.split and self.split not in SPLITS:
            raise PromptError(f"{where}: split must be empty or one of {', '.join(SPLITS)}; got {plainly(self.split)}.")
        if self.image is None and not self.text.strip():
            raise PromptError(
                f"{where} has neither text nor image, so there is nothing to ask. Give it at least one of them."
            )
        if self.turns:
            object.__setattr__(self, "turns", _checked_turns(self.turns, where))

    def __repr__(self) -> str:
        picture = f"{self.image.width}x{self.image.height} image" if self.image is not None else "no image"
        return (
            f"Prompt({self.id!r}, {self.label}, {self.family or 'no family'}, {len(self.text)} characters, {picture})"
        )

    def content_hash(self) -> str:
        """SHA-256 of what the model sees (all texts and the image) and of the label; 16 hex digits."""
        digest = hashlib.sha256(f"{self.label}\0{self.text}\0".encode())
        digest.update(image_hash(self.image).encode())
        if self.system or self.prefill or self.turns:
            digest.update(json.dumps([self.system, self.prefill, self.turns]).encode())
        return digest.hexdigest()[:16]

    def content_key(self) -> str:
        """SHA-256 of what is asked: all texts, but for case, punctuation and spaces, and the image; 16 hex digits.

        Two prompts of one key are the same question, whatever their ids and labels.
        """
        asked = [text_key(text) for text in (self.text, self.system, self.prefill, *(t for _, t in self.turns))]
        return hashlib.sha256(json.dumps([image_hash(self.image), *asked]).encode()).hexdigest()[:16]


_TEXTS = tuple(field.name for field in fields(Prompt) if field.name not in ("image", "turns"))
_LONG = ("text", "expected", "system", "prefill")


def text_key(text: str) -> str:
    """A text without case, punctuation and repeated spaces: what two askings of one question have in common."""
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().translate(_punctuation()).split())
    return plain or text


@cache
def _punctuation() -> dict[int, str]:
    every = map(chr, range(sys.maxunicode + 1))
    return {ord(letter): " " for letter in every if unicodedata.category(letter).startswith("P")}


def _checked_turns(turns: object, where: str) -> tuple[tuple[str, str], ...]:
    """Turns as a tuple of (role, text), or a PromptError."""
    try:
        pairs = tuple((role, text) for role, text in turns)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        pairs = ((None, None),)
    if not all(role in ROLES[1:] and isinstance(text, str) and not _SURROGATE.search(text) for role, text in pairs):
        raise PromptError(
            f"{where}: turns must be pairs of a role, user or assistant, and a text; got {plainly(turns)}. "
            "The system prompt has a field of its own."
        )
    return pairs


def as_prompt(value: Any) -> Prompt:
    """A prompt; ValueError for anything else."""
    if not isinstance(value, Prompt):
        raise ValueError("must be a workbench.Prompt")
    return value


OnePrompt = Annotated[Prompt, Converted(as_prompt)]


class PromptSet(Sequence[Prompt]):
    """An immutable sequence of prompts with unique ids; slices and filters give a `PromptSet` again.

    Examples:
        >>> import workbench as wb
        >>> prompts = wb.load_prompts("planted", n=12)
        >>> prompts
        PromptSet('planted', 12 prompts: 6 safe, 6 unsafe)
        >>> len(prompts.where(label="unsafe")), len(prompts[:3])
        (6, 3)
        >>> sorted(set(prompts.frame()["split"]))
        ['selection', 'test', 'threshold']
    """

    def __init__(
        self, prompts: Iterable[Prompt] | Prompt, *, name: str = "", recipe: Mapping[str, object] | None = None
    ) -> None:
        if not isinstance(prompts, Iterable | Prompt) or isinstance(prompts, str):
            raise PromptError(f"A PromptSet is made of prompts; got {plainly(prompts)}.")
        self._prompts = (prompts,) if isinstance(prompts, Prompt) else tuple(prompts)
        self.name = name
        # How `load_prompts` can make this very set again; empty for anything filtered, cut or built by hand.
        self.recipe = dict(recipe or {})
        seen: set[str] = set()
        for position, prompt in enumerate(self._prompts):
            if not isinstance(prompt, Prompt):
                raise PromptError(
                    f"Item {position} of the prompts is a {type(prompt).__name__}, not a Prompt. "
                    "Build one with workbench.Prompt(id=…, text=…, image=…, label=…) "
                    "or read a file with wb.load_prompts."
                )
            if prompt.id in seen:
                raise PromptError(
                    f"Two prompts share the id {prompt.id!r} (the second is item {position}). Ids must be unique."
                )
            seen.add(prompt.id)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> "PromptSet": ...
    def __getitem__(self, index: int | slice) -> "Prompt | PromptSet":
        if isinstance(index, slice):
            return PromptSet(self._prompts[index], name=self.name)
        return self._prompts[index]

    def __len__(self) -> int:
        return len(self._prompts)

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self._prompts)

    def __repr__(self) -> str:
        unsafe = sum(p.label == "unsafe" for p in self)
        return f"PromptSet({self.name!r}, {len(self)} prompts: {len(self) - unsafe} safe, {unsafe} unsafe)"

    def where(self, keep: Callable[[Prompt], bool] | None = None, **equal: str) -> "PromptSet":
        """The prompts for which `keep(prompt)` is true and every named field equals the given value."""
        known = {f.name for f in fields(Prompt)}
        if unknown := set(equal) - known:
            raise PromptError(
                f"A prompt has no field {', '.join(sorted(unknown))}. Its fields are {', '.join(sorted(known))}."
            )
        kept = (p for p in self if all(getattr(p, k) == v for k, v in equal.items()) and (keep is None or keep(p)))
        return PromptSet(kept, name=self.name)

    def variants(
        self,
        *names: str,
        captions: Words | None = None,
        words: Words | None = None,
        carrier: str = "",
        layout: Print | None = None,
        seed: int = 0,
    ) -> "PromptSet":
        """The same prompts otherwise; what is made of one prompt shares a pair, so that tables can be paired by it.

        Args:
            *names: Of "as given", "no image", "blank image" (white, of the same size), "noise image", "caption" (in
                place of the picture, before the text), "text only", "typographic" (the text drawn into a picture). A
                prompt that has no such variant, as a text-only prompt has no blank picture, is left out and counted.
            captions: What the picture shows: a function of the prompt, or a mapping by its id.
            words: For "text only" and "typographic", the request in words, likewise; by default the text.
            carrier: The text beside a typographic picture; a sentence of ours by default.
            layout: Size, letters and lines of a typographic picture.
            seed: Of the noise.

        Raises:
            PromptError: An unknown variant, or words that are missing for a prompt.

        Examples:
            >>> import workbench as wb
            >>> both = wb.load_prompts("planted", n=4).variants("as given", "blank image")
            >>> sorted({p.variant for p in both})
            ['as given', 'blank image']
        """
        if unknown := [name for name in names if name not in VARIANTS]:
            raise PromptError(f"The variants are {', '.join(VARIANTS)}; got {', '.join(map(plainly, unknown))}.")
        if not names:
            raise PromptError(f"No variant was named. There are {', '.join(VARIANTS)}.")
        given = Given(captions, words, carrier or CARRIER, layout or Print(), seed)
        made = [(name, make_variant(name, p, given)) for p in self for name in dict.fromkeys(names)]
        for name in names:
            if count := sum(variant is None for other, variant in made if other == name):
                log.warning(
                    "%s: %d of %d prompts have no variant %r and are left out", self.name, count, len(self), name
                )
        return PromptSet((variant for _, variant in made if variant is not None), name=self.name)

    def with_split(self, split: str) -> "PromptSet":
        """The same prompts, all declared to belong to `split`."""
        return PromptSet((replace(p, split=split) for p in self), name=self.name)

    def frame(self) -> pd.DataFrame:
        """One row a prompt: every field but the pixels, `has_image`, and `content`, equal where the same is asked."""
        names = [f.name for f in fields(Prompt) if f.name != "image"]
        table = pd.DataFrame([[getattr(p, n) for n in names] for p in self], columns=names)
        return table.assign(has_image=[p.image is not None for p in self], content=[p.content_key() for p in self])

    def content_hash(self) -> str:
        """SHA-256 over ids and contents in order, 16 hex digits: two sets with the same hash ask the same."""
        digest = hashlib.sha256()
        for prompt in self:
            digest.update(f"{prompt.id}\0{prompt.content_hash()}\n".encode())
        return digest.hexdigest()[:16]


def as_prompts(value: Any) -> PromptSet:
    """The prompts that are meant: a PromptSet, any sequence of prompts, or one prompt.

    Raises:
        PromptError: None, or no prompts.
    """
    prompts = value if isinstance(value, PromptSet) else PromptSet(value)
    if not len(prompts):
        raise PromptError("There are no prompts here. Load some with workbench.load_prompts('pocket').")
    return prompts


SomePrompts = Annotated[Sequence[Prompt], Converted(as_prompts)]
