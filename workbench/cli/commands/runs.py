"""What reads stored runs: scores, figures, the report, comparisons, and the lab."""

from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli.app import app, check_there, console
from workbench.cli.named import with_model
from workbench.cli.options import (
    Json,
    Quiet,
    Registered,
    RunPath,
    Seed,
    Table,
    completed,
    criterion_names,
    listed,
    numbers,
    rule_names,
)
from workbench.cli.printing import tell
from workbench.cli.prompts import with_prompts


@app.command(cls=Registered)
def score(
    run: RunPath,
    criteria: Annotated[
        Any,
        listed(
            "Comma-separated, or all. Of {criteria}. By default deflection, ships and probe.", names=criterion_names
        ),
    ] = None,
    rule: Annotated[
        str,
        typer.Option(
            help="How heads are ranked: {rules}. By default selectivity, and sensitivity for probes.",
            autocompletion=completed(rule_names),
        ),
    ] = "",
    top: Annotated[int, typer.Option(help="How many heads to print for each criterion and projection.")] = 5,
    out: Table = None,
    json: Json = False,
    quiet: Quiet = False,
    seed: Seed = 0,
) -> None:
    """Score every head of a stored run, and print the first under a rule."""
    given = dict(locals())
    check_there(run)
    from workbench.cli.views import score_command

    tell(score_command, console, **given)


@app.command()
def figures(
    run: RunPath,
    out: Annotated[Path, typer.Option(help="Folder for the figures.")] = Path("figures"),
    formats: Annotated[Any, listed("Of pdf, svg and png, comma-separated.")] = "pdf,svg,png",
    only: Annotated[Any, listed("Figures to draw, comma-separated; * stands for anything: maps_*.")] = "*",
    width: Annotated[str, typer.Option(help="column, page, or inches; each figure's own by default.")] = "own",
    style: Annotated[
        str, typer.Option(help="Widths and letters of a venue: workbench, acl, cvpr, iclr, icml, ieee, neurips.")
    ] = "workbench",
    latex: Annotated[bool, typer.Option("--latex", help="Have LaTeX set all text; it must be installed.")] = False,
    heads: Annotated[Any, listed("Heads to frame and name in place of the picks, comma-separated: L3H1,L2H0.")] = None,
    quiet: Quiet = False,
) -> None:
    """Draw a stored run's figures for a paper; needs no browser and no model."""
    given = dict(locals())
    check_there(run)
    from workbench.cli.views import figures_command

    figures_command(console, **given)


@app.command()
def report(
    runs: Annotated[list[str], typer.Argument(help="A stored run, or several to compare.")],
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("report.html"),
    prompts: Annotated[
        str | None, typer.Option("--prompts", "-p", help="The run's prompts, where they cannot be drawn again.")
    ] = None,
    texts: Annotated[bool, typer.Option("--texts", help="Write the texts of prompts into the file.")] = False,
    pictures: Annotated[
        list[str], typer.Option("--picture", help="Id of a prompt whose picture goes into the file; repeat for more.")
    ] = [],  # noqa: B006
    k: Annotated[int, typer.Option("--first", "-k", help="How many first heads have their stability said.")] = 5,
    trace: Annotated[str | None, typer.Option(help="A stored trace of the same model, from workbench trace.")] = None,
    quiet: Quiet = False,
) -> None:
    """Write a stored run as one HTML file to send: the explorer on stored data, without a network."""
    given = dict(locals())
    for run in runs:
        check_there(run)
    from workbench.cli.views import report_command

    report_command(console, **given)


@app.command(cls=Registered)
@with_model
@with_prompts
def compare(
    run: RunPath,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="With it, also what masking the heads does to replies.")
    ] = None,
    prompts: Any = None,
    criteria: Annotated[
        Any, listed("Comma-separated. Of {criteria}.", names=criterion_names)
    ] = "deflection,ships,probe",
    rules: Annotated[
        Any, listed("Comma-separated. Of {rules}.", names=rule_names)
    ] = "sensitivity,selectivity,auroc,layer_matched",
    n_heads: Annotated[Any, listed("Numbers of heads, comma-separated.", numbers)] = "1,3,5",
    controls: Annotated[int, typer.Option(help="Draws of matched random heads beside each set; with --model.")] = 3,
    judges: Annotated[
        Any, listed("Of exact, phrases and ships-2025, one or two; two print their agreement.")
    ] = "exact",
    out: Table = None,
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure x rule x projection x number of heads: what each detects, with intervals, and what each part adds.

    PROMPTS are those of the run, for what masking does to replies, where they cannot be drawn again.
    """
    given = dict(locals())
    check_there(run)
    from workbench.cli.detect import compare_command

    tell(compare_command, console, **given)


@app.command()
def lab(
    folder: Annotated[Path, typer.Option(help="Where an installed package puts copies of its notebooks.")] = Path(
        "workbench-notebooks"
    ),
    more: Annotated[list[str] | None, typer.Argument(help="Arguments for JupyterLab, after --.")] = None,
) -> None:
    """Open JupyterLab on the notebook in which heads can be clicked."""
    from workbench.cli.views import lab_command

    raise typer.Exit(lab_command(folder, more or ()))
