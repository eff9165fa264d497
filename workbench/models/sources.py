"""Where a mask takes what it puts into heads: other prompts, vectors, or the keys that it makes more of.

Positions of two prompts are alike in one of two ways. *Twins* (interchange) are aligned place by place; see `aligned`.
Any other prompts are compared by kind of position (`KINDS`): the picture's tokens, other tokens, and the last one.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from workbench.checking import plainly
from workbench.errors import MaskError, PromptError
from workbench.models.decoder import Decoder
from workbench.models.encode import Encoded, encode
from workbench.models.walk import base_pass
from workbench.prompts import load_prompts
from workbench.prompts.prompt import Prompt, PromptSet, as_prompts
from workbench.prompts.twins import Twins

KINDS = ("picture", "text", "last")
ADVICE = "Use positions='last', where only the last positions have to correspond, or pairs of equal length."
OF_THE_CALL = "prompts"  # the source of a mask that takes from the prompts it is used on
KEYS = ("image", "text")
MOST_TRIED = 32  # draws before all prompts are looked through for one that may stand in


class Others:
    """Prompts that a mask takes z from.

    Args:
        prompts: All that may be taken.
        key: What says which they are, where a run is recorded; by default their content hash.
    """

    def __init__(self, prompts: PromptSet, key: str = "") -> None:
        self.prompts, self.key = prompts, key or prompts.content_hash()
        self._means: WeakKeyDictionary[Decoder, Vectors] = WeakKeyDictionary()

    def __repr__(self) -> str:
        return repr(self.prompts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Others) and other.key == self.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __getstate__(self) -> dict[str, Any]:
        return {"prompts": self.prompts, "key": self.key}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @cached_property
    def _pools(self) -> dict[bool, list[Prompt]]:
        """What a prompt without a picture may take from, which is any, and what one with a picture may."""
        return {True: list(self.prompts), False: [p for p in self.prompts if p.image is not None]}

    @cached_property
    def twins(self) -> Twins:
        return Twins(self.prompts)

    def twin(self, prompt: Prompt) -> Prompt:
        """What stands for the prompt: the only other prompt there is, or its twin among them."""
        if len(self.prompts) == 1 and self.key != OF_THE_CALL:
            return self.prompts[0]
        return self.twins.of(prompt)

    def drawn(self, prompt: Prompt, seed: int) -> Prompt:
        """One of them at random, the same of a seed: of another pair, with a picture where the prompt has one."""
        pool = self._pools[prompt.image is None]
        random = _random(seed, prompt)
        for tried in random.integers(len(pool), size=MOST_TRIED) if pool else ():
            if _apart(pool[tried], prompt):
                return pool[tried]
        apart = [p for p in pool if _apart(p, prompt)]
        if not apart:
            kind = "" if prompt.image is None else " with a picture"
            raise PromptError(
                f"Prompt {prompt.id!r}: of {len(self.prompts)} prompts to take z from, none is another one{kind} and "
                "of another pair. Give more prompts, or others as the mask's source."
            )
        return apart[int(random.integers(len(apart)))]

    def means(self, model: Decoder, track: Callable[[Iterable[Prompt]], Iterable[Prompt]] = iter) -> "Vectors":
        """The mean of z over these prompts, `[layer, kind, head, d_head]`; measured once a model.

        Each prompt's mean over its positions of a kind counts once. NaN for a kind that no prompt has.
        """
        if model not in self._means:
            shape = (model.n_layers, len(KINDS), model.n_heads, model.d_head)
            total, count = np.zeros(shape), np.zeros(len(KINDS))
            for prompt in track(self.prompts):
                encoded = encode(model, prompt)
                kinds, base = kinds_of(encoded), base_pass(model, [encoded])
                for kind in kinds.unique().tolist():
                    count[kind] += 1
                    at = kinds == kind
                    for layer, seen in base.recordings.items():
                        total[layer, kind] += seen.z[0, at.to(seen.z.device)].double().mean(0).cpu().numpy()
            with np.errstate(invalid="ignore"):
                self._means[model] = Vectors(total / count[None, :, None, None], self.key)
        return self._means[model]


class Vectors:
    """A vector a head: `table` is `[layer, head, d_head]`, or `[layer, kind, head, d_head]` for means.

    Args:
        table: The numbers.
        key: What says which they are; by default a hash of them.
    """

    def __init__(self, table: np.ndarray, key: str = "") -> None:
        self.table = np.ascontiguousarray(table, dtype=np.float64)
        self.key = key or hashlib.sha256(self.table.tobytes()).hexdigest()[:16]

    def __repr__(self) -> str:
        return f"Vectors({' x '.join(map(str, self.table.shape))}, {self.key})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vectors) and other.key == self.key

    def __hash__(self) -> int:
        return hash(self.key)

    def of(self, model: Decoder, layer: int) -> Tensor:
        """The vectors of a layer, in the model's dtype."""
        wanted = (model.n_layers, model.n_heads, model.d_head)
        if (*self.table.shape[:1], *self.table.shape[-2:]) != wanted:
            raise MaskError(
                f"The mask's source has the shape {self.table.shape}, and {model.name!r} has (layers, heads, d_head) = "
                f"{wanted}. Give one vector of d_head numbers for every query head of every layer."
            )
        return torch.as_tensor(self.table[layer]).to(model.device, model.dtype)


Source = Others | Vectors | str | tuple[float, ...] | None


def other_prompts(value: Any) -> Others | None:
    """Prompts to take z from: a prompt, any sequence of them, or what `load_prompts` takes."""
    if value is None or isinstance(value, Others):
        return value
    return Others(load_prompts(value) if isinstance(value, str | Path) else as_prompts(value))


def vectors(value: Any) -> Vectors:
    """An array `[layer, head, d_head]`; a labelled one is put into this order.

    Raises:
        MaskError: Anything else, or numbers that are not finite.
    """
    if isinstance(value, Vectors):
        return value
    if hasattr(value, "transpose") and hasattr(value, "dims") and set(value.dims) >= {"layer", "head", "d_head"}:
        value = value.transpose("layer", "head", "d_head", ...)
    try:
        table = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value, dtype=np.float64)
    except (TypeError, ValueError):
        table = np.empty(0)
    if table.ndim != 3 or not np.isfinite(table).all():
        raise MaskError(
            "source must be finite numbers [layer, head, d_head], one vector a query head, such as the difference of "
            f"two means of run['head_output']; got {plainly(value)} of shape {table.shape}."
        )
    return Vectors(table)


def chosen_keys(value: Any) -> str | tuple[float, ...]:
    """Which keys: "image", "text", or the patches of a box (left, top, right, bottom) in shares of the picture."""
    if isinstance(value, str) and value in KEYS:
        return value
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 4:
        box = tuple(float(v) for v in value if isinstance(v, int | float))
        if len(box) == 4 and 0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1:
            return box
    raise MaskError(
        "source must name the keys that are looked at more or less: 'image', 'text', or a box of the picture (left, "
        f"top, right, bottom) in shares of its size, such as (0, 0, 0.5, 1); got {plainly(value)}."
    )


def described(source: Source) -> str:
    """A source in a word, as runs record it."""
    return json.dumps(source) if isinstance(source, tuple) else source if isinstance(source, str) else source.key  # type: ignore[union-attr]


def kinds_of(encoded: Encoded) -> Tensor:
    """Of each position its kind, a number into `KINDS`, `[pos]`."""
    kinds = torch.where(encoded.image_positions, KINDS.index("picture"), KINDS.index("text"))
    kinds[-1] = KINDS.index("last")
    return kinds


def keys_at(encoded: Encoded, chosen: str | tuple[float, ...]) -> Tensor:
    """Which positions of a prompt are the chosen keys, `[pos]`.

    Raises:
        PromptError: There are none, or no others.
    """
    there = encoded.image_positions if chosen != "text" else ~encoded.image_positions
    if isinstance(chosen, tuple) and encoded.patch_boxes is not None:
        middle = (encoded.patch_boxes[:, :2] + encoded.patch_boxes[:, 2:]) / 2
        left, top, right, bottom = chosen
        inside = (middle >= middle.new_tensor([left, top])) & (middle < middle.new_tensor([right, bottom]))
        there = there.clone()
        there[encoded.image_positions] = inside.all(-1)
    elif isinstance(chosen, tuple) and there.any():
        raise PromptError(
            f"Prompt {encoded.prompt_id!r}: how its picture's tokens lie is not known, so a box of it has none. "
            "Use source='image'."
        )
    if not there.any():
        raise PromptError(f"Prompt {encoded.prompt_id!r} has no keys of the mask's source {chosen!r}.")
    if there.all():
        raise PromptError(
            f"All tokens of prompt {encoded.prompt_id!r} are keys of the mask's source {chosen!r}, and a bias on every "
            "score changes none of the weights. Leave such prompts out."
        )
    return there


def _apart(one: Prompt, other: Prompt) -> bool:
    """Whether two prompts are neither the same nor of one pair."""
    return one.id != other.id and not (one.pair_id and one.pair_id == other.pair_id)


def unlike_lengths(ids: tuple[str, str], acts: tuple[int, int], lengths: tuple[int, int]) -> PromptError:
    """That a prompt and its twin, by their ids, differ in how many of their tokens a mask acts on."""
    return PromptError(
        f"Prompt {ids[0]!r} and its twin {ids[1]!r} cannot be aligned: the mask acts on {acts[0]} of {lengths[0]} "
        f"tokens in the one and on {acts[1]} of {lengths[1]} in the other. {ADVICE}"
    )


def aligned(encoded: Encoded, twin: Encoded, start: Callable[[Encoded], int], stop: Callable[[Encoded], int]) -> Tensor:
    """The twin's position for each position of a prompt that the mask acts on, `[pos]`; −1 elsewhere.

    The positions masked (`start` up to `stop`, in each of the two) must be as many in both, and those that hold the
    picture the same among them; they then correspond one to one, in order. At positions="all" that takes prompts of
    equally many tokens with the picture at one place; at "last", nothing.

    Raises:
        PromptError: They are not.
    """
    (first, end), (other, other_end) = ((start(e), stop(e)) for e in (encoded, twin))
    ids = encoded.prompt_id, twin.prompt_id
    if end - first != other_end - other:
        raise unlike_lengths(ids, (end - first, other_end - other), (encoded.n_tokens, twin.n_tokens))
    if not torch.equal(encoded.image_positions[first:end], twin.image_positions[other:other_end]):
        raise PromptError(
            f"Prompt {ids[0]!r} and its twin {ids[1]!r} cannot be aligned: their pictures' tokens lie at other places. "
            f"{ADVICE}"
        )
    index = torch.full((encoded.n_tokens,), -1)
    index[first:end] = torch.arange(other, other_end)
    return index


def redrawn(encoded: Encoded, other: Encoded, seed: int) -> Tensor:
    """For each position one of the other prompt's of the same kind, at random, `[pos]`."""
    kinds, theirs, random = kinds_of(encoded), kinds_of(other), _random(seed, encoded)
    index = torch.zeros(encoded.n_tokens, dtype=torch.long)
    for kind in kinds.unique().tolist():
        there = (theirs == kind).nonzero()[:, 0]
        if not len(there):
            raise PromptError(
                f"Prompt {other.prompt_id!r} has no position of the kind {KINDS[kind]!r} that {encoded.prompt_id!r} "
                "could take z from."
            )
        at = kinds == kind
        index[at] = there[torch.as_tensor(random.integers(len(there), size=int(at.sum())))]
    return index


def _random(seed: int, prompt: Prompt | Encoded) -> np.random.Generator:
    """Draws of a seed for one prompt, whatever other prompts there are."""
    name = prompt.id if isinstance(prompt, Prompt) else prompt.prompt_id
    digest = hashlib.sha256(f"{type(prompt).__name__}\0{name}".encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "big")])
