"""Guards: what changes how a model answers, with a detector or without.

Each file of guards says in `GUARDS` what it adds; a new file is named once, here.
"""

from typing import Any

from workbench.errors import DetectorError
from workbench.replies.guards import appended, ecso, eta
from workbench.replies.guards.appended import IndicatingGuard, RecipeGuard, RefusalRecipe, SafetyPromptGuard
from workbench.replies.guards.ecso import EcsoGuard
from workbench.replies.guards.eta import EtaGuard, PictureJudge, ReplyJudge
from workbench.replies.guards.external import ClipFolder, RewardFolder
from workbench.replies.guards.guard import Guard, GuardRecord

__all__ = [
    "GUARDS",
    "ClipFolder",
    "EcsoGuard",
    "EtaGuard",
    "Guard",
    "GuardRecord",
    "IndicatingGuard",
    "PictureJudge",
    "RecipeGuard",
    "RefusalRecipe",
    "ReplyJudge",
    "RewardFolder",
    "SafetyPromptGuard",
    "list_guards",
    "make_guard",
    "register_guard",
]

GUARDS: dict[str, GuardRecord] = {record.name: record for module in (appended, ecso, eta) for record in module.GUARDS}


def register_guard(record: GuardRecord) -> GuardRecord:
    """Make a guard known in this process; one of the same name is replaced."""
    GUARDS[record.name] = record
    return record


def list_guards() -> list[GuardRecord]:
    """All guards: what each needs, and what it does."""
    return list(GUARDS.values())


def make_guard(name: str, **options: Any) -> Guard:
    """A guard by its name.

    Args:
        name: As in `list_guards`.
        options: For its class; they come before those of the name.

    Raises:
        DetectorError: If there is none of that name.
    """
    if name not in GUARDS:
        raise DetectorError(f"There is no guard {name!r}. There are {', '.join(GUARDS)}.")
    record = GUARDS[name]
    return record.guard(**{**record.options, **options})
