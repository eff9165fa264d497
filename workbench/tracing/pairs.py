"""Pairs: an unsafe prompt and its safe twin, lined up token by token, and the groups their tokens fall into."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from workbench.errors import PromptError
from workbench.models.encode import Encoded
from workbench.models.hooked import HookedLVLM
from workbench.models.walk import batch_key
from workbench.prompts.prompt import Prompt
from workbench.prompts.twins import Twins
from workbench.tracing.records import ALL, SIDES, TOKEN_GROUPS

_OTHER_WORDS = ("0 x 0", "y 1 y")  # in place of a prompt's text, to see which tokens are not its own


@dataclass(frozen=True, eq=False)
class Pair:
    """A pair whose prompts have a token at every position that the other has.

    Attributes:
        name: Its `pair_id`, or the ids of both.
        prompts: Unsafe and safe.
        encoded: Likewise.
        groups: Which positions belong to each of `TOKEN_GROUPS`, `[pos]`, each to one; and "all".
    """

    name: str
    prompts: tuple[Prompt, Prompt]
    encoded: tuple[Encoded, Encoded]
    groups: dict[str, Bool[Tensor, " pos"]]

    def of(self, groups: Sequence[str]) -> Bool[Tensor, " pos"]:
        """The positions of several groups."""
        return torch.stack([self.groups[group] for group in groups]).any(0)


def pairs_of(prompts: Sequence[Prompt]) -> tuple[dict[str, tuple[Prompt, Prompt]], dict[str, str]]:
    """The (unsafe, safe) pairs by name, and by its id every prompt that is in none, with the reason.

    Args:
        prompts: In any order. Two prompts without a `pair_id` that come alone are a pair.
    """
    if len(prompts) == len(SIDES) and not any(prompt.pair_id for prompt in prompts):
        name = " | ".join(prompt.id[:140] for prompt in prompts)
        prompts = [dataclasses.replace(prompt, pair_id=name) for prompt in prompts]
    twins = Twins(prompts)
    found, left = {}, {}
    for prompt in prompts:
        others = twins.others(prompt)
        if len(others) != 1 or twins.others(others[0]) != [prompt]:
            wanted, there = SIDES[prompt.label == SIDES[0]], ", ".join(repr(p.id) for p in others[:3]) or "none is here"
            left[prompt.id] = (
                f"prompt {prompt.id!r} ({prompt.label}) has no {wanted} twin of its own with the pair_id "
                f"{prompt.pair_id!r}: {there}."
            )
        elif prompt.label == SIDES[0]:
            given = prompt.variant == others[0].variant == "as given"
            found[prompt.pair_id if given else f"{prompt.pair_id}, {prompt.variant}"] = (prompt, others[0])
    return found, left


def line_up(model: HookedLVLM, name: str, pair: tuple[Prompt, Prompt]) -> Pair:
    """Encode a pair, and see that what is patched from one to the other means the same position.

    Raises:
        PromptError: The twins do not line up, saying what differs.
    """
    unsafe, safe = encoded_twins(model, name, pair)
    return Pair(name, pair, (unsafe, safe), token_groups(model, pair[0], unsafe, safe))


def encoded_twins(model: HookedLVLM, name: str, pair: tuple[Prompt, Prompt]) -> tuple[Encoded, Encoded]:
    """Both prompts of a pair, encoded.

    Raises:
        PromptError: They do not line up, saying what differs.
    """
    unsafe, safe = (model.encode(prompt) for prompt in pair)
    if why := _apart(unsafe, safe):
        raise PromptError(
            f"The twins of pair {name!r} do not line up on {model.name!r}: {why}. What is patched must stand at the "
            "same position in both. Write the twin with as many tokens and a picture of the same size, or leave such "
            "pairs out with on_error='skip'."
        )
    return unsafe, safe


def _apart(one: Encoded, other: Encoded) -> str:
    """What keeps two encoded prompts from being twins; empty if nothing does."""
    names = f"{one.prompt_id!r} and {other.prompt_id!r}"
    if (one.image_span is None) != (other.image_span is None):
        seen, blind = (one, other) if one.image_span else (other, one)
        return f"{seen.prompt_id!r} has a picture and {blind.prompt_id!r} has none"
    if one.n_tokens != other.n_tokens:
        first = next((i for i, (a, b) in enumerate(zip(one.tokens, other.tokens, strict=False)) if a != b), None)
        at = f"; they part at position {first}, {one.tokens[first]!r} and {other.tokens[first]!r}" if first else ""
        return f"{names} have {one.n_tokens} and {other.n_tokens} tokens{at}"
    if not torch.equal(one.image_positions, other.image_positions):
        counts = " and ".join(str(int(e.image_positions.sum())) for e in (one, other))
        return f"the pictures of {names} take other positions ({counts} image tokens)"
    if batch_key(one) != batch_key(other):
        return f"the pictures of {names} reach the model in other shapes (size, or how they are cut into tiles)"
    return ""


def token_groups(
    model: HookedLVLM, prompt: Prompt, encoded: Encoded, twin: Encoded | None = None
) -> dict[str, Bool[Tensor, " pos"]]:
    """Which positions are the last, the picture's, the tokens in which twins differ, the template's, other words.

    Each position belongs to the first of these that it fits. The template's are those that stay where they are when
    the text is another: the chat template's own tokens, a system prompt, earlier turns, the beginning of the reply.

    Args:
        model: The model.
        prompt: One of the twins.
        encoded: The same, encoded.
        twin: The other, encoded; without one no token is a hazard.

    Returns:
        By group, `[pos]`; and all of them as "all".
    """
    n_pos, ids = encoded.n_tokens, encoded.input_ids[0].cpu()
    last, picture = torch.zeros(n_pos, dtype=torch.bool), torch.zeros(n_pos, dtype=torch.bool)
    last[-1] = True
    if (span := encoded.image_span) is not None:
        picture[span[0] : span[1]] = True
    hazard = torch.zeros(n_pos, dtype=torch.bool) if twin is None else ids != twin.input_ids[0].cpu()
    fits = {"last": last, "picture": picture, "hazard": hazard, "template": _template(model, prompt, ids)}
    free, found = torch.ones(n_pos, dtype=torch.bool), {}
    for group, where in fits.items():
        found[group] = where & free
        free = free & ~where
    return {group: {**found, "words": free}[group] for group in TOKEN_GROUPS} | {ALL: ~torch.zeros_like(last)}


def _template(model: HookedLVLM, prompt: Prompt, ids: Tensor) -> Bool[Tensor, " pos"]:
    """Positions at the beginning and at the end that other texts leave as they are."""
    head = tail = len(ids)
    for words in _OTHER_WORDS:
        other = model.encode(dataclasses.replace(prompt, text=words)).input_ids[0].cpu()
        shared = min(len(ids), len(other))
        same = ids[:shared] == other[:shared]
        head = min(head, int(same.long().cumprod(0).sum()))
        same = ids.flip(0)[:shared] == other.flip(0)[:shared]
        tail = min(tail, int(same.long().cumprod(0).sum()))
    where = torch.zeros(len(ids), dtype=torch.bool)
    where[:head] = True
    where[len(ids) - tail :] = True
    return where


def lined_up(
    model: HookedLVLM, prompts: Sequence[Prompt], *, skip: bool, advance: Callable[[], Any] = lambda: None
) -> tuple[list[partial[Pair]], dict[str, str]]:
    """What lines up each pair again, for those that can be traced, and why the others cannot, by name.

    Pairs are encoded here to be checked before anything is computed, and again when their turn comes: the pictures of
    many would not fit into memory.

    Raises:
        PromptError: No pair; without `skip`, also a prompt without a twin, and twins that do not line up.
    """
    pairs, left = pairs_of(prompts)
    if left and not skip:
        raise PromptError(
            f"{len(left)} of the prompts cannot be traced; the first: {next(iter(left.values()))} Give pairs: prompts "
            "of both labels with a common pair_id, or a tuple (unsafe, safe). on_error='skip' leaves the others out."
        )
    found: list[partial[Pair]] = []
    for name, pair in pairs.items():
        try:
            encoded_twins(model, name, pair)
            found.append(partial(line_up, model, name, pair))
        except PromptError as error:
            if not skip:
                raise
            left[name] = str(error)
        advance()
    if not found:
        reason = next(iter(left.values()), "there are no prompts")
        raise PromptError(f"There is no pair to trace: {reason}")
    return found, left
