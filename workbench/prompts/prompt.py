"""`Prompt` and `PromptSet`: what is asked of a model, with its label and where it came from."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import overload

import pandas as pd
from PIL import Image

from workbench.axes import LABELS, SPLITS
from workbench.errors import PromptError


@dataclass(frozen=True, eq=False, repr=False)
class Prompt:
    """One question put to a model: text, an optional image, and what is known about it.

    Attributes:
        id: Unique within its set.
        text: What the user says. It goes through the model's own chat template, after the image.
        image: A PIL image, or None for a text-only prompt.
        label: `"safe"` or `"unsafe"`.
        source: The data set or generator it came from.
        family: The attack (or benign twin) family; Pocket's are text, typographic, icon, wrapper, question.
        category: A finer grouping within the family, such as the topic of harm.
        pair_id: Shared by an unsafe prompt and its matched safe twin; empty when there is none.
        split: `"selection"`, `"threshold"`, `"test"`, or empty when the set declares none.
        variant: `"as given"`, `"no image"`, `"blank image"`, `"caption"` or `"text only"`.
        expected: The reply that counts as complying, where the world is ours and it is known; else empty.

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

    def __post_init__(self) -> None:
        where = f"prompt {self.id!r}"
        if not isinstance(self.id, str) or not self.id:
            raise PromptError(
                f"A prompt needs a non-empty text id; got {self.id!r}. Number the prompts if they have no names."
            )
        if not isinstance(self.text, str):
            raise PromptError(
                f"{where}: text must be a string; got {type(self.text).__name__}. Use '' for an image without words."
            )
        if self.image is not None and not isinstance(self.image, Image.Image):
            raise PromptError(
                f"{where}: image must be a PIL image or None; got {type(self.image).__name__}. "
                "Open files with PIL.Image.open."
            )
        if self.label not in LABELS:
            raise PromptError(f"{where}: label must be one of {', '.join(LABELS)}; got {self.label!r}.")
        if self.split and self.split not in SPLITS:
            raise PromptError(f"{where}: split must be empty or one of {', '.join(SPLITS)}; got {self.split!r}.")
        if self.image is None and not self.text.strip():
            raise PromptError(
                f"{where} has neither text nor image, so there is nothing to ask. Give it at least one of them."
            )

    def __repr__(self) -> str:
        picture = f"{self.image.width}x{self.image.height} image" if self.image is not None else "no image"
        return (
            f"Prompt({self.id!r}, {self.label}, {self.family or 'no family'}, {len(self.text)} characters, {picture})"
        )

    def content_hash(self) -> str:
        """SHA-256 of what the model sees (text and pixels) and of the label; 16 hex digits."""
        digest = hashlib.sha256(f"{self.label}\0{self.text}\0".encode())
        digest.update(image_hash(self.image).encode())
        return digest.hexdigest()[:16]


def image_hash(image: Image.Image | None) -> str:
    """SHA-256 of an image's mode, size and pixels, 16 hex digits; empty for no image."""
    if image is None:
        return ""
    digest = hashlib.sha256(f"{image.mode} {image.size}".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()[:16]


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
        self, prompts: Iterable[Prompt], *, name: str = "", recipe: Mapping[str, object] | None = None
    ) -> None:
        self._prompts = tuple(prompts)
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

    def with_split(self, split: str) -> "PromptSet":
        """The same prompts, all declared to belong to `split`."""
        return PromptSet((replace(p, split=split) for p in self), name=self.name)

    def frame(self) -> pd.DataFrame:
        """One row a prompt, every field but the pixels; `has_image` says whether there are any."""
        names = [f.name for f in fields(Prompt) if f.name != "image"]
        table = pd.DataFrame([[getattr(p, n) for n in names] for p in self], columns=names)
        return table.assign(has_image=[p.image is not None for p in self])

    def content_hash(self) -> str:
        """SHA-256 over ids and contents in order, 16 hex digits: two sets with the same hash ask the same."""
        digest = hashlib.sha256()
        for prompt in self:
            digest.update(f"{prompt.id}\0{prompt.content_hash()}\n".encode())
        return digest.hexdigest()[:16]
