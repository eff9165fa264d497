"""Chat templates: which one a model is given, and the bounds within which it is rendered.

A template is a program that comes with a checkpoint, so it is data of strangers. transformers renders it in Jinja's
sandbox, which keeps it from files and from Python; but it may still loop for hours or build gigabytes. `bounded` adds
what the sandbox lacks: every round of a loop and every call counts and looks at the clock, and what operators, filters
and methods make is counted in characters, before it is made.
"""

import inspect
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from pathlib import Path
from types import GeneratorType
from typing import Any, cast

from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers.utils import chat_template_utils

from workbench.errors import ModelError

# Of one rendering: time, rounds and calls, and the characters of all that it makes on the way.
SECONDS, STEPS, SIZE = 5.0, 200_000, 20_000_000
KINDS = 'a template is "chat", "raw", a Jinja template, or a file that holds one'
# What these make is at most the product of what they are given; all others make at most the sum.
MULTIPLY = frozenset(
    "% expandtabs format format_map indent join replace tojson translate urlize wordwrap xmlattr".split()
)
FORMATS = frozenset(("%", "format", "format_map", "strftime_now"))
WIDE = re.compile(r"\d{5,}|%[^a-z%]*\*")  # a field's width


def read_template(template: str | Path) -> str:
    """`"chat"`, `"raw"`, or the Jinja source given or in the file named.

    Raises:
        ModelError: If it is none of these.
    """
    text = str(template)
    if text in ("chat", "raw") or "{{" in text or "{%" in text:
        return text
    try:
        found = Path(text).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ModelError(f"template={text[:80]!r} cannot be read ({type(error).__name__}): {KINDS}.") from error
    if len(found) > SIZE or not ("{{" in found or "{%" in found):
        raise ModelError(f"template={text!r}: the file holds no Jinja template; {KINDS}.")
    return found


class TemplateTooLong(Exception):
    """A template went past its bounds."""


class Budget:
    """What one rendering may still use."""

    def __init__(self) -> None:
        self.steps, self.characters, self.until = STEPS, float(SIZE), time.monotonic() + SECONDS

    def use(self, characters: float) -> None:
        self.steps -= 1
        self.characters -= characters
        if self.steps < 0 or time.monotonic() > self.until:
            raise TemplateTooLong(f"it takes more than {STEPS:,} steps or {SECONDS:.0f} seconds")
        if self.characters < 0:
            raise TemplateTooLong(f"it makes more than {SIZE:,} characters")

    def rounds(self, values: Iterable[Any], said: int = 0) -> Iterator[Any]:
        """The values of a loop, each of whose rounds writes `said` characters as they stand."""
        for value in values or ():
            self.use(said)
            yield value


_now = [Budget()]  # of the rendering in progress


def size_of(value: Any) -> int:
    """Characters of a text, all that is in a container, bits of a whole number."""
    if isinstance(value, int):
        return value.bit_length()
    if isinstance(value, dict):
        return len(value) + sum(map(size_of, value.values()))
    if isinstance(value, list | tuple | set):
        return len(value) + sum(map(size_of, value))
    return len(value) if isinstance(value, str | bytes | range) else 1


def bound_of(name: str, values: tuple[Any, ...], operator: bool = False) -> float:
    """At most how large the result of an operator, filter, function or method is, known before it is made."""
    sizes, numbers = [size_of(v) for v in values], [abs(v) for v in values if isinstance(v, int)]
    if name in FORMATS and values and isinstance(values[0], str) and WIDE.search(values[0]):
        return float("inf")
    if name == "**":
        return float(sizes[0]) * min(numbers[-1] if numbers else 1, SIZE + 1)
    if name == "*" and len(numbers) == 1:
        return float(sum(sizes)) * numbers[0]
    if name in MULTIPLY and sizes:
        return (sizes[0] + 1.0) * (1 + sum(sizes[1:]) + sum(numbers))
    return float(sum(sizes)) + (0 if operator else sum(numbers))


def _counted(name: str, make: Callable[[], Any], values: tuple[Any, ...], operator: bool = False) -> Any:
    _now[0].use(bound_of(name, values, operator))
    found = make()
    _now[0].use(size_of(found))
    return found


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """transformers' environment for chat templates, with a budget."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def call(self, context: Any, function: Any, /, *values: Any, **options: Any) -> Any:
        owner = getattr(inspect.unwrap(function), "__self__", None)  # the sandbox wraps str.format
        given = ((owner,) if isinstance(owner, str | bytes | list | dict) else ()) + values + tuple(options.values())
        run = super().call
        name = getattr(function, "__name__", "")
        return _counted(name, lambda: run(context, function, *values, **options), given)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        run = super().call_binop
        return _counted(operator, lambda: run(context, operator, left, right), (left, right), operator=True)

    def _parse(self, source: str, name: Any, filename: Any) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            said = sum(len(data.data) for data in loop.find_all(nodes.TemplateData))
            loop.iter = _filter("bounded_rounds", cast(nodes.Expr, loop.iter), nodes.Const(said))
        return _sums(tree)


def _filter(name: str, value: nodes.Expr, *arguments: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(value, name, list(arguments), [], None, None, lineno=value.lineno)


def _sums(node: Any) -> Any:
    """The tree with `a ~ b` written as `a|string + b|string`, which is intercepted like any sum."""
    for name, value in node.iter_fields():
        if isinstance(value, list):
            value[:] = [_sums(v) if isinstance(v, nodes.Node) else v for v in value]
        elif isinstance(value, nodes.Node):
            setattr(node, name, _sums(value))
    if not isinstance(node, nodes.Concat):
        return node
    total, *rest = (_filter("string", part) for part in node.nodes)
    for part in rest:
        total = nodes.Add(total, part, lineno=node.lineno)  # type: ignore[assignment]
    return total


def _counted_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    skipped = int(hasattr(function, "jinja_pass_arg"))  # the environment or the context comes first

    @wraps(function)
    def run(*values: Any, **options: Any) -> Any:
        values = tuple(list(_now[0].rounds(v)) if isinstance(v, GeneratorType) else v for v in values)
        given = values[skipped:] + tuple(options.values())
        return _counted(name, lambda: function(*values, **options), given)

    return run


class BoundedTemplate:
    """A compiled template; each rendering has a budget of its own."""

    def __init__(self, source: str) -> None:
        if len(source) > SIZE // 100:
            raise TemplateTooLong(f"it is {len(source):,} characters long")
        # Of an empty template: the source itself is compiled within bounds, since compiling computes its constants.
        self.environment: Any = _compile("").environment.overlay()
        self.environment.__class__ = BoundedEnvironment
        filters = {name: _counted_filter(name, function) for name, function in self.environment.filters.items()}
        filters["bounded_rounds"] = lambda values, said: _now[0].rounds(values, said)
        self.environment.filters = filters
        self.environment.globals = {k: v for k, v in self.environment.globals.items() if k != "lipsum"}
        _now[0] = Budget()
        self._template = self.environment.from_string(source)

    def generate(self, *values: Any, **options: Any) -> Iterator[str]:
        _now[0] = Budget()
        for block in self._template.generate(*values, **options):
            _now[0].use(len(block))
            yield block

    def render(self, *values: Any, **options: Any) -> str:
        return "".join(self.generate(*values, **options))


_compile = chat_template_utils._compile_jinja_template
_bounded = cache(BoundedTemplate)


@contextmanager
def bounded_templates() -> Iterator[None]:
    """For the length of a block, what transformers renders is rendered within bounds; hold the model's lock."""
    before = chat_template_utils._compile_jinja_template
    chat_template_utils._compile_jinja_template = _bounded
    try:
        yield
    finally:
        chat_template_utils._compile_jinja_template = before
