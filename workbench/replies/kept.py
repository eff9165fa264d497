"""Replies kept in a file as they come, so that a generation that was stopped goes on where it was."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from workbench.errors import DetectorError
from workbench.models.fingerprint import fingerprint
from workbench.models.hooked import HookedLVLM
from workbench.prompts.prompt import Prompt
from workbench.sweeps.execution import progress_bar

CHUNK = 32  # replies that are written together; what a kill loses at most

# From places in the sequence of prompts to their replies.
Answer = Callable[[Sequence[int]], Sequence[str]]


def kept_replies(
    model: HookedLVLM,
    prompts: Sequence[Prompt],
    answer: Answer,
    *,
    made_by: Mapping[str, Any],
    file: Path | None,
    beside: Sequence[str] = (),
    words: str = "replies",
    progress: bool = False,
) -> list[str]:
    """The reply to each prompt, by `answer`; those that the file holds, made of the same, are taken from it.

    Prompts of one length come together, so that they share batches.

    Args:
        model: The model that answers.
        prompts: What it is asked.
        answer: From places in `prompts` to their replies.
        made_by: All that a reply depends on besides model and prompt. Where that cannot be written as JSON (a judge
            that is an object), nothing is kept.
        file: One reply a line, as JSON; None keeps nothing.
        beside: What else the reply to each prompt depends on, such as the one without a guard.
        words: For the bar.
        progress: Show a bar with the time left.

    Raises:
        DetectorError: If `answer` gives something else than a reply for each.
    """
    file, made = (file, _as_json(made_by)) if file is not None else (None, None)
    keys = [""] * len(prompts) if made is None else _keys(model, prompts, made, beside or [""] * len(prompts))
    known = {} if made is None or file is None else _read(file)
    replies: list[str | None] = [known.get(key) for key in keys]
    todo = [i for i, reply in enumerate(replies) if reply is None]
    if len(todo) > CHUNK:
        todo.sort(key=lambda i: model.encode(prompts[i]).n_tokens)
    with progress_bar(progress) as bar:
        line = bar.add_task(words, total=len(todo))
        for start in range(0, len(todo), CHUNK):
            chunk = todo[start : start + CHUNK]
            found = _checked(answer(chunk), len(chunk), words)
            for i, reply in zip(chunk, found, strict=True):
                replies[i] = reply
            if made is not None and file is not None:
                _append(file, {keys[i]: reply for i, reply in zip(chunk, found, strict=True)})
            bar.advance(line, len(chunk))
    return [str(reply) for reply in replies]


def _checked(found: Any, wanted: int, words: str) -> list[str]:
    if not isinstance(found, Sequence) or isinstance(found, str) or len(found) != wanted:
        what = f"{len(found)} of them" if isinstance(found, Sequence) else f"a {type(found).__name__}"
        raise DetectorError(f"{words}: {wanted} prompts need a list of {wanted} replies; got {what}.")
    if wrong := [reply for reply in found if not isinstance(reply, str)]:
        raise DetectorError(f"{words}: a reply is text; got a {type(wrong[0]).__name__}.")
    return [str(reply) for reply in found]


def _as_json(made_by: Mapping[str, Any]) -> str | None:
    try:
        return json.dumps(made_by, sort_keys=True, default=_plain)
    except TypeError:
        return None


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"A {type(value).__name__} cannot be told from another one later.")


def _keys(model: HookedLVLM, prompts: Sequence[Prompt], made: str, beside: Sequence[str]) -> list[str]:
    whole = f"{fingerprint(model)}\0{made}"
    asked = zip(prompts, beside, strict=True)
    return [_digest(f"{whole}\0{p.content_hash()}\0{reply}") for p, reply in asked]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _read(file: Path) -> dict[str, str]:
    """Replies by key; a line that a kill cut short is none."""
    found: dict[str, str] = {}
    if not file.is_file():
        return found
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            key, reply, check = json.loads(line)
        except (ValueError, TypeError):
            continue
        if isinstance(key, str) and isinstance(reply, str) and check == _digest(key + reply):
            found[key] = reply
    return found


def _append(file: Path, replies: Mapping[str, str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps([key, reply, _digest(key + reply)]) for key, reply in replies.items()]
    with file.open("a", encoding="utf-8") as out:
        out.write("\n" + "\n".join(lines) + "\n")
