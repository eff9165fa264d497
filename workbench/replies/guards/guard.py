"""`Guard`: what changes how a model answers; and `GuardRecord`, a guard as the registry knows it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from workbench.errors import DetectorError
from workbench.models.hooked import HookedLVLM
from workbench.prompts.prompt import Prompt
from workbench.registry import Record
from workbench.replies.batches import can_write


class Guard(ABC):
    """A defence: from prompts to replies that are meant to be safe.

    Attributes:
        by_detector: Whether a detector decides which prompts it acts on; `replies` then answers every prompt as one
            that was flagged. Others act on all prompts, and find out for themselves.
    """

    name: ClassVar[str]
    by_detector: ClassVar[bool] = False

    @abstractmethod
    def replies(
        self,
        model: HookedLVLM,
        prompts: Sequence[Prompt],
        plain: Sequence[str],
        *,
        max_new_tokens: int,
        progress: bool = False,
    ) -> list[str]:
        """The guarded reply to each prompt.

        Args:
            model: The model that is guarded.
            prompts: What it is asked.
            plain: What it says without the guard; some guards begin from that.
            max_new_tokens: Length of a reply at most.
            progress: Show the progress of generation.

        Raises:
            DetectorError: If the model cannot write or read the guard's words.
        """


GuardRecord = Record[Guard]


def first_writable(model: HookedLVLM, texts: Sequence[str], what: str) -> str:
    """The first text whose words the model knows; `{text}` and `{reply}` stand for others and are not looked at.

    Raises:
        DetectorError: If it knows none of them.
    """
    for text in texts:
        if can_write(model, without_places(text)):
            return text
    raise DetectorError(
        f"{model.name!r} does not know the words of {what}: {texts[0][:60]!r}. Give {what} in the model's own words."
    )


def without_places(text: str) -> str:
    """A text without the places that prompts and replies are put in."""
    return text.replace("{text}", "").replace("{reply}", "")
