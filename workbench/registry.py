"""`Registry`: records by name, to which others may add; and `Record`, what it says of a class that is made by name."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from workbench.checking import plainly
from workbench.errors import WorkbenchError


class Named(Protocol):
    """What a registry holds."""

    @property
    def name(self) -> str: ...


R = TypeVar("R", bound=Named)
T = TypeVar("T")


class Registry(dict[str, R]):
    """Records by name, in the order in which they came.

    Args:
        what: What a record is of, as a message says it: "detector".
        records: The first ones.
        error: Raised for a name that there is not.

    Examples:
        >>> from workbench.detectors import DETECTORS
        >>> DETECTORS.named("sahs").says
        'log-odds of one logistic regression on the outputs z of the best probed heads'
    """

    def __init__(self, what: str, records: Iterable[R], *, error: type[WorkbenchError]) -> None:
        super().__init__({record.name: record for record in records})
        self.what, self.error = what, error

    def register(self, record: R) -> R:
        """Make a record known in this process; one of the same name is replaced."""
        self[record.name] = record
        return record

    def records(self) -> list[R]:
        """All of them."""
        return list(self.values())

    def named(self, name: str) -> R:
        """The record of a name; for one that there is not, an error that lists all and says which is meant."""
        if isinstance(name, str) and name in self:
            return self[name]
        close = difflib.get_close_matches(name, self, n=1) if isinstance(name, str) else []
        meant = f" Did you mean {close[0]!r}?" if close else ""
        raise self.error(f"There is no {self.what} {plainly(name)}.{meant} There are {', '.join(self)}.")


@dataclass(frozen=True)
class Record(Generic[T]):
    """A class that is made by name, as tables, help texts and error messages know it.

    Attributes:
        name: In kebab case, unique.
        kind: The class.
        needs: What it takes, or is fitted on.
        says: What it does, or what its score is and the score's unit.
        source: Paper and public code; "this project" where it is ours.
        options: What the class is called with under this name.
    """

    name: str
    kind: type[T]
    needs: str
    says: str
    source: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def make(self, **options: Any) -> T:
        """An object of it; `options` for its class come before those of the name."""
        return self.kind(**{**self.options, **options})
