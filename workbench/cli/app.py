"""The `workbench` command itself: what all its sub-commands hang on."""

from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core
from rich.console import Console

from workbench import __version__
from workbench.cli.printing import Shell, say
from workbench.errors import RunError


class Workbench(typer.core.TyperGroup):
    """The commands; Ctrl-C in any of them ends with what it says of how to go on, and status 130."""

    def invoke(self, ctx: Any) -> Any:
        """As `TyperGroup.invoke`."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stopped:
            say(Console(stderr=True), str(stopped) or "Stopped.")
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=Workbench,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Mask every attention head of a vision-language model, and find those that carry safety. "
    "Begin with [bold]workbench demo[/bold].",
)
data_app = typer.Typer(help="Published prompt sets, read by name.")
app.add_typer(data_app, name="data")
console = Shell()


def check_there(path: str) -> None:
    """Refuse a local path that does not exist, before anything heavy is imported."""
    if "://" not in path and not Path(path).expanduser().exists():
        raise RunError(f"There is no run at {path}. Make one: workbench sweep --model M --prompts P --out {path}")


def _show_version(asked: bool) -> None:
    if asked:
        console.print(f"workbench {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def workbench(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Say which version this is.")
    ] = False,
) -> None:
    pass
