"""What every command prints by: tables that fit the terminal, the same numbers as JSON, or nothing."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from workbench.plain import plain, write_table

if TYPE_CHECKING:
    import pandas as pd


class Shell(Console):
    """A console on which a table that is too wide goes on in further ones: no number is cut, no word broken."""

    def print(self, *objects: Any, **options: Any) -> None:
        """As `Console.print`."""
        for printed in objects if any(isinstance(shown, Table) for shown in objects) else [None]:
            if printed is None:
                super().print(*objects, **options)
            elif isinstance(printed, Table):
                from workbench.views.tables import fitted

                super().print(*fitted(printed, self.width), sep="\n", **options)
            else:
                super().print(printed, **options)


def say(console: Console, text: object, style: str = "") -> None:
    """Print words in which those of others may stand: no markup, no escapes. A pipe has no width to fold them to."""
    console.print(Text(plain(text, keep="\n\t"), style=style), soft_wrap=not console.is_terminal)


def write_rows(console: Console, table: "pd.DataFrame", path: Path) -> None:
    """Write a table, and say so."""
    say(console, f"{len(table)} rows written to {write_table(table, path)}")


def say_written(console: Console, files: Sequence[Path], folder: Path) -> None:
    """Name the files that were written into a folder."""
    say(console, f"Written: {', '.join(file.name for file in files)} in {folder}")


def tell(
    command: "Callable[..., pd.DataFrame]", console: Console, *, json: bool, quiet: bool = False, **given: Any
) -> "pd.DataFrame":
    """Run a command that prints what it finds and returns it as a table.

    With `json`, the table alone is printed, as records; with `quiet`, nothing is. Errors go to the other stream.
    """
    console.quiet = json or quiet
    try:
        table = command(console, **given)
    finally:
        console.quiet = False
    if json:
        console.out(table.to_json(orient="records", double_precision=15), highlight=False)
    return table
