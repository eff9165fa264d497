"""Masks and heads from the words of a command line."""

from pathlib import Path
from typing import Any

from workbench.axes import Head, as_heads
from workbench.checking import plainly
from workbench.cli.prompts import chosen
from workbench.errors import ArgumentError, MaskError
from workbench.models.forms import FROM_PROMPTS, Mask
from workbench.models.sources import KEYS
from workbench.prompts.prompt import Prompt


def mask_from(*, source: str | Prompt | None = None, form: str = "limit", seed: int = 0, **fields: Any) -> Mask:
    """The mask that options ask for.

    Args:
        source: A prompt, or in words: prompts (interchange, mean, resample), image, text or a box (redirect), a .npy
            file of numbers [layer, head, d_head] (direction, scale).
        form: Its name.
        seed: Of what resample draws.
        fields: Of `Mask`.

    Raises:
        MaskError: What has no meaning.
    """
    given: Any = source
    if isinstance(source, str):
        if form in FROM_PROMPTS:
            given = chosen(source, seed)
        elif form == "redirect" and source not in KEYS:
            given = _box(source)
        elif form in ("direction", "scale"):
            given = _array(Path(source))
    more = {"seed": seed} if form == "resample" else {}
    return Mask(form=form, source=given, **more, **fields)  # type: ignore[arg-type]  # Mask refuses other words


def taken_mask(given: dict[str, Any]) -> Mask:
    """The mask that a command's options ask for; they are taken out of `given`."""
    fields = {name: given.pop(name) for name in ("form", "factor", "grain", "positions", "bias") if name in given}
    return mask_from(source=given.pop("mask_source"), seed=given["seed"], **fields)


def heads_from(text: str, option: str = "--heads") -> list[Head]:
    """Heads as they are written on the command line: names, comma-separated, or a file of heads."""
    try:
        names = [name.strip() for name in text.split(",") if name.strip()]
        return as_heads(text if text.endswith(".json") or not names else names)
    except ValueError as error:
        raise ArgumentError(f"{option} {error}; got {plainly(text)}.") from error


def _box(text: str) -> tuple[float, ...] | str:
    try:
        return tuple(map(float, text.split(",")))
    except ValueError:
        return text


def _array(path: Path) -> Any:
    import numpy as np

    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise MaskError(
            f"--mask-source of this form is a .npy file of numbers [layer, head, d_head]; {path} could not be read as "
            f"one ({type(error).__name__}). Prompts are for interchange, mean and resample."
        ) from error
