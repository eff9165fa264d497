"""A mask from the words of a command line."""

from pathlib import Path
from typing import Any

from workbench.cli.prompts import chosen
from workbench.errors import MaskError
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
