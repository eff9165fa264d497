"""What a public function is given, checked in one way: against its signature, with messages that name the argument.

`@checked` has pydantic hold the arguments of a call against the annotations. What an annotation cannot say stands in it
as a mark: `Annotated[int, Whole(1)]`, `Annotated[str, OneOf(names)]`, `Annotated[PromptSet, Converted(as_prompts)]`.
Strings are not read as numbers, nor numbers as truth values; a sequence is handed on as it came.
"""

import difflib
import inspect
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import wraps
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import core_schema

from workbench.errors import ArgumentError

P = ParamSpec("P")
R = TypeVar("R")
LONGEST_NAME, LONGEST_PATH = 255, 4096  # as file systems have it
CONFIG = ConfigDict(arbitrary_types_allowed=True, strict=True)


MOST_SEED = 2**63 - 1
TOLD = 10**6  # upper bounds from here on are told to those who pass them
SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = 100


class Mark:
    """A check that stands in an annotation; `check` returns the value to use, or raises ValueError("must be …")."""

    def check(self, value: Any) -> Any:
        raise NotImplementedError

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(self.check)


@dataclass(frozen=True)
class Whole(Mark):
    """A whole number from `least` to `most`; NumPy's count, truth values do not."""

    least: int | None = None
    most: int | None = None

    def check(self, value: Any) -> int:
        good = isinstance(value, Integral) and not isinstance(value, bool)
        if not good or not _within(int(value), self.least, self.most):
            told = self.most is not None and (self.most < TOLD or (good and int(value) > self.most))
            raise ValueError(f"must be a whole number{_range(self.least, self.most if told else None)}")
        return int(value)


@dataclass(frozen=True)
class Finite(Mark):
    """A finite number from `least` to `most`, ends included."""

    least: float | None = None
    most: float | None = None

    def check(self, value: Any) -> float:
        good = isinstance(value, Real) and not isinstance(value, bool) and abs(float(value)) < float("inf")
        if not good or not _within(float(value), self.least, self.most):
            raise ValueError(f"must be a finite number{_range(self.least, self.most)}")
        return float(value)


@dataclass(frozen=True)
class OneOf(Mark):
    """One of some names. `names` may be a function, for registries that grow."""

    names: Iterable[str] | Callable[[], Iterable[str]]

    def check(self, value: Any) -> str:
        names = [*(self.names() if callable(self.names) else self.names)]
        if not isinstance(value, str) or value not in names:
            near = difflib.get_close_matches(value, names, 1) if isinstance(value, str) else []
            raise ValueError(f"must be one of {', '.join(names)}" + (f" (did you mean {near[0]!r}?)" if near else ""))
        return value


class Place(Mark):
    """A path or URL that could be one: text or a Path, not blank, without half characters or zero bytes."""

    def check(self, value: Any) -> str | Path:
        text = str(value)
        if not isinstance(value, str | Path) or not text.strip() or "\0" in text or not _encodes(text):
            raise ValueError("must be a path or URL")
        if max(map(len, text.split("/"))) > LONGEST_NAME or len(text) > LONGEST_PATH:
            raise ValueError(
                f"must be a path of at most {LONGEST_PATH} characters, {LONGEST_NAME} in each of its names"
            )
        return value


@dataclass(frozen=True)
class Converted(Mark):
    """What `convert` makes of the value; its WorkbenchError is the message, its ValueError gets the argument's name."""

    convert: Callable[[Any], Any]

    def check(self, value: Any) -> Any:
        return self.convert(value)


Seed = Annotated[int, Whole(0, MOST_SEED)]


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Hold every call of a function against its signature.

    Raises:
        ArgumentError: Naming the function, the argument, what was wanted, what came; for all arguments that are wrong.

    Examples:
        >>> from typing import Annotated
        >>> @checked
        ... def first(words: list, *, k: Annotated[int, Whole(1)] = 1) -> list:
        ...     return words[:k]
        >>> first(["a", "b"], k=0)
        Traceback (most recent call last):
        workbench.errors.ArgumentError: first: k must be a whole number from 1; got 0.
    """
    signature = inspect.signature(function)
    named = function.__qualname__.rpartition("<locals>.")[2].removesuffix(".__init__")
    adapters: dict[str, TypeAdapter[Any]] = {}  # made at the first call, not at import

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            wanted = ", ".join(name for name in signature.parameters if name != "self")
            raise ArgumentError(f"{named}: {error}; it takes {wanted}.") from None
        if not adapters:
            adapters.update(_adapters(function, signature))
        wrong = []
        for name, value in bound.arguments.items():
            if name in adapters:
                try:
                    bound.arguments[name] = adapters[name].validate_python(value)
                except ValidationError as error:
                    wrong.append(f"{name} {_words(error)}; got {plainly(value)}")
        if wrong:
            raise ArgumentError(f"{named}: {'. '.join(wrong)}.") from None
        return function(*bound.args, **bound.kwargs)

    return call


def check_each(given: Mapping[str, Any], marks: Mapping[str, Mark]) -> None:
    """Hold values by name against marks, where there is no signature to do it (the options of an engine).

    Raises:
        ArgumentError: For the first that is wrong.
    """
    for name, mark in marks.items():
        try:
            mark.check(given[name])
        except ValueError as error:
            raise ArgumentError(f"{name} {error}; got {plainly(given[name])}.") from None


def plainly(value: Any) -> str:
    """A value as a message may show it: short, and with control characters written out."""
    if isinstance(value, str | bytes | int | float | bool | list | tuple | dict | set | type(None)):
        return SHORT.repr(value).encode("utf-8", "backslashreplace").decode()
    return f"a {type(value).__name__}"


def _adapters(function: Callable[..., Any], signature: inspect.Signature) -> Mapping[str, TypeAdapter[Any]]:
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    plain = {name: p.annotation for name, p in signature.parameters.items() if p.kind not in several}
    return {name: _adapter(hint) for name, hint in plain.items() if hint is not inspect.Parameter.empty}


def _adapter(hint: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(hint, config=CONFIG)
    except PydanticUserError:  # a marked dataclass, which would have a configuration of its own
        return TypeAdapter(hint)


def _words(error: ValidationError) -> str:
    """The first thing that is wrong with a value, as the end of a sentence that begins with its name."""
    first = error.errors(include_url=False)[0]
    said = (
        str(first["ctx"]["error"]) if first["type"] == "value_error" else first["msg"].replace("Input should", "must")
    )
    return said[0].lower() + said[1:]


def _encodes(text: str) -> bool:
    """Whether a string is text; half of a surrogate pair is not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _within(value: float, least: float | None, most: float | None) -> bool:
    return (least is None or value >= least) and (most is None or value <= most)


def _range(least: float | None, most: float | None) -> str:
    return (f" from {least}" if least is not None else "") + (f" to {most}" if most is not None else "")
