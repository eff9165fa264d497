"""Which prompts a command is about: one set or several, with the options that `load_prompts` and `mix` take."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from workbench.cli.options import grouped
from workbench.cli.printing import say
from workbench.errors import WorkbenchError

if TYPE_CHECKING:
    from workbench.prompts.prompt import PromptSet

OPTIONS: dict[str, tuple[Any, Any]] = {  # by the name of the parameter: its annotation and its default
    "part": (
        Annotated[
            list[str],
            typer.Option(help="Which part of a published set; NAME=PART where several are given. See workbench data."),
        ],
        [],
    ),
    "columns": (
        Annotated[
            list[str],
            typer.Option(help="OURS=THEIRS, such as image=image_path: a column of a table under another name."),
        ],
        [],
    ),
    "images": (
        Annotated[
            list[Path], typer.Option(help="A folder, .zip or .tar of pictures that do not lie beside the prompts.")
        ],
        [],
    ),
    "missing": (
        Annotated[Literal["raise", "drop"], typer.Option(help="drop leaves out prompts whose picture is not there.")],
        "raise",
    ),
    "split": (
        Annotated[str | None, typer.Option(help="selection, threshold or test; all of them by default.")],
        None,
    ),
    "per_source": (
        Annotated[int | None, typer.Option(help="Most prompts of one source; pairs stay together, drawn by --seed.")],
        None,
    ),
    "n": (Annotated[int | None, typer.Option("--n", "-n", help="How many prompts, even over the labels.")], None),
}
NAMES = "pocket or planted; a .jsonl, .csv or .parquet file; NAME:DIR of a published set. Repeat it to mix sets."


@dataclass(frozen=True)
class Asked:
    """The prompts that a command line names; the attributes are its options, see `OPTIONS`."""

    names: Sequence[str]
    part: Sequence[str] = ()
    columns: Sequence[str] = ()
    images: Sequence[Path] = ()
    missing: Literal["raise", "drop"] = "raise"
    split: str | None = None
    per_source: int | None = None
    n: int | None = None

    def load(self, seed: int = 0) -> "PromptSet":
        """The prompts; several sets as one, in which each prompt keeps its source."""
        if not self.names:
            raise WorkbenchError("Options that say which prompts are meant need the prompts: give --prompts.")
        from workbench.prompts import load_prompts, mix
        from workbench.prompts.splits import sample_prompts

        how: dict[str, Any] = {
            "columns": column_map(self.columns),
            "images": self.images,
            "missing": self.missing,
            "split": self.split,
        }
        mixed = len(self.names) > 1 or self.per_source is not None
        size = None if mixed else self.n
        sets = [load_prompts(name, part=self._part(name), seed=seed, n=size, **how) for name in self.names]
        if not mixed:
            return sets[0]
        prompts = mix(*sets, per_source=self.per_source, seed=seed)
        return prompts if self.n is None else sample_prompts(prompts, self.n, seed=seed)

    def beside(self, name: str) -> "Asked":
        """Another set, read with the same options, all of it."""
        return replace(self, names=[name], split=None, per_source=None, n=None)

    def _part(self, name: str) -> str | None:
        """The part that is meant for a set: what was given for it by name, or for all."""
        of = dict((text.partition("=")[::2] if "=" in text else ("", text)) for text in self.part)
        return of.get(name.partition(":")[0], of.get(""))


def chosen(prompts: "str | Asked", seed: int = 0) -> "PromptSet":
    """The prompts that a command is about, named or asked for with options."""
    return (Asked([prompts]) if isinstance(prompts, str) else prompts).load(seed)


def told(prompts: "str | Asked", seed: int = 0, *, quiet: bool) -> "PromptSet":
    """`chosen`, with what its prompts share said on standard error, which no table or JSON is written to."""
    from workbench.prompts.caveats import caveats

    asked = chosen(prompts, seed)
    if not quiet:
        say_caveats(Console(stderr=True), caveats(asked))
    return asked


def _asked(names: Sequence[str], options: dict[str, Any]) -> Asked | None:
    said = names or any(value != OPTIONS[name][1] for name, value in options.items())
    return Asked(names, **options) if said else None


with_prompts = grouped(
    "prompts",
    OPTIONS,
    _asked,
    hint=Annotated[list[str], typer.Option("--prompts", "-p", help=NAMES)],
    default=lambda value: [] if value is None else [value],
)
"""A command whose parameter `prompts` is a set or several with their options, and comes as `Asked`; or as None, where
neither a set nor an option was given."""


def column_map(columns: Sequence[str]) -> dict[str, str | None]:
    """`OURS=THEIRS` as `load_prompts` takes it; nothing after the sign says that no column is meant."""
    pairs = [text.partition("=") for text in columns]
    if wrong := [ours + equals + theirs for ours, equals, theirs in pairs if not (ours and equals)]:
        raise WorkbenchError(f"--columns takes OURS=THEIRS, such as image=image_path; got {wrong[0]!r}.")
    return {ours.strip(): theirs.strip() or None for ours, _, theirs in pairs}


def say_caveats(console: Console, caveats: Sequence[str]) -> None:
    """Print, at the head of tables, what their prompts share and how few questions they ask."""
    for sentence in caveats:
        say(console, f"Mind: {sentence}", "yellow")
