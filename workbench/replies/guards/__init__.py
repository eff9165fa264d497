"""Guards: what changes how a model answers, with a detector or without.

Each file of guards says in `GUARDS` what it adds; a new file is named once, here.
"""

from typing import Any

from workbench.errors import DetectorError
from workbench.registry import Registry
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

GUARDS: Registry[GuardRecord] = Registry(
    "guard", (record for module in (appended, ecso, eta) for record in module.GUARDS), error=DetectorError
)
register_guard = GUARDS.register
"""Make a guard known in this process; one of the same name is replaced."""
list_guards = GUARDS.records
"""All guards: what each needs, and what it does."""


def make_guard(name: str, **options: Any) -> Guard:
    """A guard by its name; `options` for its class come before those of the name.

    Raises:
        DetectorError: If there is none of that name.
    """
    return GUARDS.named(name).make(**options)
