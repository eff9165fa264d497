"""What heads are good for: detectors, guarded replies, studies; and the sets they are tried on."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from workbench.cli.app import app, check_there, console, data_app
from workbench.cli.named import with_model
from workbench.cli.options import (
    Bias,
    Factor,
    Form,
    Heads,
    Json,
    Masked,
    MaskSource,
    ModelName,
    OtherModels,
    OtherPrompts,
    Positions,
    Quiet,
    Registered,
    ReplyTokens,
    RunsFolder,
    Seed,
    listed,
)
from workbench.cli.printing import tell
from workbench.cli.prompts import with_prompts


@app.command(cls=Registered)
@with_model
@with_prompts
def arena(
    model: ModelName = "pocket",
    prompts: Any = "pocket",
    detectors: Annotated[
        Any,
        listed(
            "Comma-separated, with options where wanted: one-head-fused:k=3/5:fuse=max makes two. Of {detectors}; "
            "grid for measure x rule x projection x number of heads."
        ),
    ] = "one-head,ships,sahs,hidden-detect",
    guards: Annotated[Any, listed("Comma-separated, or none. Of {guards}.")] = "none",
    judges: Annotated[Any, listed("Of exact, phrases and ships-2025, one or two; by default what fits.")] = "auto",
    controls: Annotated[
        int,
        typer.Option(help="Draws of random heads; with any, also what masking each detector's heads does."),
    ] = 0,
    run: Annotated[
        str | None, typer.Option(help="A stored run of these prompts, all heads: what it holds is not swept again.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for arena.csv, times.csv, differences.csv, arena.tex and the figure.")
    ] = None,
    max_new_tokens: ReplyTokens = 32,
    bootstrap: Annotated[int, typer.Option(help="Resamples behind intervals.")] = 1000,
    json: Json = False,
    quiet: Quiet = False,
    seed: Seed = 0,
) -> None:
    """Every detector and guard on the same test prompts: detection, false alarms, attack success, refusals, time.

    Detectors are fitted on the selection and threshold prompts and share one look at every prompt. Stopped at any
    moment, the same command with the same --out goes on: sweeps and replies are kept there.
    """
    given = dict(locals())
    from workbench.cli.arena import arena_command

    tell(arena_command, console, **given)


@app.command(cls=Registered)
@with_model
@with_prompts
def detect(
    source: Annotated[str, typer.Argument(help="A stored run, a stored detector, or a detector to fit, by name.")],
    model: Annotated[str | None, typer.Option("--model", "-m", help="Where SOURCE is no run.")] = None,
    prompts: Any = None,
    projection: Annotated[Literal["query", "value"], typer.Option(help="The projection masked.")] = "query",
    criterion: Annotated[str, typer.Option(help="Whose value is thresholded: {criteria}.")] = "deflection",
    rule: Annotated[str, typer.Option(help="How the head is chosen: {rules}.")] = "selectivity",
    k: Annotated[int, typer.Option(help="Candidate heads, one of which is drawn.")] = 1,
    save: Annotated[Path | None, typer.Option(help="Store the fitted detector in this folder.")] = None,
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Test a detector by family and category, with graded scores.

    MODEL and PROMPTS are for a SOURCE that is no run.
    """
    given = dict(locals())
    if model is None:
        check_there(source)
    from workbench.cli.detect import detect_command

    tell(detect_command, console, **given)


@app.command()
@with_model
def generate(
    text: Annotated[str, typer.Argument(help="What to ask.")],
    model: ModelName = "pocket",
    image: Annotated[Path | None, typer.Option(help="A picture to ask about.")] = None,
    heads: Heads = None,
    projection: Masked = None,
    form: Form = "limit",
    factor: Factor = 0.0,
    positions: Positions = "all",
    phase: Annotated[
        Literal["reading", "decoding", "both"] | None,
        typer.Option(help="When masks act; both by default, and reading for interchange."),
    ] = None,
    twin: Annotated[str | None, typer.Option(help="For --form interchange, the twin's text; same picture.")] = None,
    mask_source: MaskSource = None,
    bias: Bias = 0.0,
    guard: Annotated[str | None, typer.Option(help="A stored detector; what it flags is refused.")] = None,
    max_new_tokens: ReplyTokens = 32,
    on_error: Annotated[Literal["raise", "refuse"], typer.Option(help="When detection itself fails.")] = "raise",
    show_unguarded: Annotated[bool, typer.Option("--show-unguarded", help="The plain reply beside it.")] = False,
) -> None:
    """Print a model's reply to one prompt, guarded by a detector if you give one."""
    given = dict(locals())
    from workbench.cli.detect import generate_command

    generate_command(console, **given)


@app.command()
@with_model
@with_prompts
def study(
    name: Annotated[str, typer.Argument(help="A study's name, all, or list.")],
    model: ModelName = "pocket",
    prompts: Any = None,
    other: OtherModels = [],  # noqa: B006
    other_prompts: OtherPrompts = [],  # noqa: B006
    out: Annotated[Path, typer.Option(help="Folder for tables, figures, captions and the page.")] = Path("studies"),
    runs: RunsFolder = None,
    json: Json = False,
    quiet: Quiet = False,
    seed: Seed = 0,
) -> None:
    """Answer a question of the papers or their reviewers: a table, a figure, a caption, and one page over all.

    [bold]workbench study list[/bold] says which there are. Without --prompts, an embedded model is asked the prompts of
    its own world. Stopped at any moment, the same command goes on.
    """
    given = dict(locals())
    given["progress"] = not (quiet or json)
    from workbench.cli.study import study_command

    tell(study_command, console, **given)


@data_app.callback(invoke_without_command=True)
def data(context: typer.Context, json: Json = False) -> None:
    """List the published prompt sets that are read by name from a folder; check what lies in one."""
    if context.invoked_subcommand is None:
        from workbench.cli.data import show_readers

        tell(show_readers, console, json=json)


@data_app.command("check")
def data_check(
    name: Annotated[str, typer.Argument(help="Of the set, as workbench data lists it.")],
    root: Annotated[str, typer.Argument(help="The folder it was unpacked in.")],
    part: Annotated[str | None, typer.Option(help="Only this part of it.")] = None,
    images: Annotated[list[Path], typer.Option(help="More folders, .zip or .tar with its pictures.")] = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Count what a folder holds of a set: labels, families, missing and repeated rows, what differs as published."""
    from workbench.cli.data import check_command

    tell(check_command, console, name=name, root=root, part=part, images=images, json=json)
