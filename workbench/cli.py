"""The `workbench` command. One sub-command a function of the library, and nothing here but its options.

Exit status: 0 on success, 1 on a mistake of the user (one message, no traceback), 2 on bad usage, 130 after Ctrl-C.
"""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from workbench.errors import WorkbenchError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Mask every attention head of a vision-language model, and find those that carry safety. "
    "Begin with [bold]workbench demo[/bold].",
)
console = Console()

ModelName = Annotated[
    str,
    typer.Option("--model", "-m", help="pocket, pocket-base, planted, planted-pair; a checkpoint directory; a Hub id."),
]
PromptsName = Annotated[
    str, typer.Option("--prompts", "-p", help="pocket or planted, or a .jsonl, .csv or .parquet file.")
]
RunPath = Annotated[str, typer.Argument(help="A stored run, from workbench sweep or workbench demo.")]
Seed = Annotated[int, typer.Option(help="Seed of prompts and statistics.")]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the figures and the stored run.")] = Path("figures"),
    model: Annotated[str, typer.Option(help="pocket, pocket-base, planted or planted-pair.")] = "pocket",
    n: Annotated[int, typer.Option("--n", "-n", help="Prompts, over three splits.")] = 300,
    seed: Seed = 0,
    form: Annotated[Literal["limit", "as_published", "scale"], typer.Option(help="Form of the mask.")] = "limit",
    factor: Annotated[float, typer.Option(help="Factor of the mask; 1 with --form scale changes nothing.")] = 0.0,
) -> None:
    """Mask every head of the embedded model, rank the heads three ways, draw the figures."""
    from workbench.demo import demo as run_demo
    from workbench.models.masks import Mask

    run_demo(out, model_name=model, n=n, seed=seed, mask=Mask(form=form, factor=factor), console=console)


@app.command()
def score(
    run: RunPath,
    criteria: Annotated[
        str, typer.Option(help="Names, comma-separated, or all. An unknown one lists what there is.")
    ] = "deflection,ships,probe",
    rule: Annotated[str, typer.Option(help="How heads are ranked: sensitivity, selectivity, auroc, …")] = "selectivity",
    top: Annotated[int, typer.Option(help="How many heads to print for each criterion and projection.")] = 5,
    out: Annotated[Path | None, typer.Option(help="Write the whole table here: .csv, .parquet or .json.")] = None,
    seed: Seed = 0,
) -> None:
    """Score every head of a stored run, and print the first under a rule."""
    from workbench.views.commands import score_command

    score_command(console, run, criteria=criteria.split(","), rule=rule, top=top, out=out, seed=seed)


@app.command()
def figures(
    run: RunPath,
    out: Annotated[Path, typer.Option(help="Folder for the figures.")] = Path("figures"),
    formats: Annotated[str, typer.Option(help="Of pdf, svg and png, comma-separated.")] = "pdf,svg,png",
) -> None:
    """Draw a stored run's figures for a paper; needs no browser and no model."""
    from workbench.views.commands import figures_command

    figures_command(console, run, out=out, formats=formats.split(","))


@app.command()
def lab() -> None:
    """Open JupyterLab on the notebook in which heads can be clicked."""
    from workbench.views.commands import lab_command

    raise typer.Exit(lab_command())


def main() -> None:
    """Run the command; turn a user's mistake into one message and status 1."""
    errors = Console(stderr=True)
    try:
        app(standalone_mode=True)
    except WorkbenchError as error:
        errors.print(f"[red]Error:[/red] {_plain(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        errors.print("Stopped.", highlight=False)
        sys.exit(130)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


if __name__ == "__main__":
    main()
