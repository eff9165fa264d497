"""The `workbench` command. One sub-command a function of the library, and nothing here but its options.

Exit status: 0 on success, 1 on a mistake of the user (one message, no traceback), 2 on bad usage, 130 after Ctrl-C, 143
after SIGTERM.
"""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.text import Text

from workbench import __version__
from workbench.cli.arena import Contest, arena
from workbench.cli.options import (
    Device,
    Dtype,
    Factor,
    Form,
    Heads,
    Json,
    Masked,
    ModelName,
    OtherModels,
    OtherPrompts,
    OwnPrompts,
    PromptsName,
    Quiet,
    Registered,
    RunPath,
    RunsFolder,
    Seed,
    Table,
    Template,
    completed,
    criterion_names,
    listed,
    numbers,
    rule_names,
)
from workbench.cli.printing import Shell, tell
from workbench.errors import RunError, WorkbenchError, lacking
from workbench.plain import plain
from workbench.sweeps.process import settle_process

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Mask every attention head of a vision-language model, and find those that carry safety. "
    "Begin with [bold]workbench demo[/bold].",
)
data_app = typer.Typer(help="Published prompt sets, read by name.")
app.add_typer(data_app, name="data")
console = Shell()


def _check_there(path: str) -> None:
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


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the figures and the stored run.")] = Path("figures"),
    model: Annotated[str, typer.Option(help="pocket, pocket-base, planted or planted-pair.")] = "pocket",
    n: Annotated[int, typer.Option("--n", "-n", help="Prompts, over three splits.")] = 300,
    seed: Seed = 0,
    form: Form = "limit",
    factor: Factor = 0.0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Mask every head of the embedded model, rank the heads three ways, draw the figures."""
    from workbench.demo import demo as run_demo
    from workbench.models.masks import Mask

    mask = Mask(form=form, factor=factor)
    tell(run_demo, console, out=out, model_name=model, n=n, seed=seed, mask=mask, json=json, quiet=quiet)


@app.command()
def sweep(
    model: ModelName,
    prompts: PromptsName,
    out: Annotated[str, typer.Option(help="Store the run here: a folder (RUN.zarr) or an fsspec URL.")],
    projections: Annotated[
        list[str], typer.Option("--projection", help="The projection masked; give it twice for both, the default.")
    ] = ["query", "value"],  # noqa: B006 - typer hands out copies
    engine: Annotated[
        str,
        typer.Option(
            help="exact, prefix (shared beginnings), sketch and race (estimates first), or naive (reference)."
        ),
    ] = "exact",
    options: Annotated[
        list[str],
        typer.Option(
            "--option",
            help="NAME=VALUE for the engine, as often as needed. sketch: directions, best, edge, sample, by, rule; "
            "race: k, rule, by, level, screen, directions.",
        ),
    ] = [],  # noqa: B006
    form: Form = "limit",
    factor: Factor = 0.0,
    grain: Annotated[Literal["query_head", "kv_group"], typer.Option(help="What one mask covers.")] = "query_head",
    positions: Annotated[Literal["all", "after_image", "last"], typer.Option(help="Where masks act.")] = "all",
    part: Annotated[str | None, typer.Option(help="Which part of a published set; workbench data lists them.")] = None,
    columns: Annotated[
        list[str], typer.Option(help="OURS=THEIRS, such as image=image_path: a column of a table under another name.")
    ] = [],  # noqa: B006
    images: Annotated[
        list[Path], typer.Option(help="A folder, .zip or .tar of pictures that do not lie beside the prompts.")
    ] = [],  # noqa: B006
    missing: Annotated[
        Literal["raise", "drop"], typer.Option(help="drop leaves out prompts whose picture is not there.")
    ] = "raise",
    split: Annotated[str | None, typer.Option(help="selection, threshold or test; all of them by default.")] = None,
    n: Annotated[int | None, typer.Option("--n", "-n", help="How many prompts.")] = None,
    template: Template = "chat",
    dtype: Dtype = "float32",
    device: Device = None,
    device_map: Annotated[
        str | None, typer.Option(help="auto lays a model that is too large for one device over several.")
    ] = None,
    cluster: Annotated[
        str | None, typer.Option(help="local, local:N for N workers, auto, or the address of a Ray cluster.")
    ] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Recompute what is damaged in the store.")] = False,
    on_error: Annotated[
        Literal["raise", "skip"], typer.Option(help="A prompt that cannot be computed: end with it, or leave it out.")
    ] = "raise",
    readout: Annotated[
        list[str], typer.Option(help="Where states are read: final, or a layer's number; repeat for more.")
    ] = [],  # noqa: B006
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Mask every head on every prompt and store the run. Stopped at any moment, the same command goes on."""
    given = dict(locals())
    from workbench.cli.sweep import sweep_command
    from workbench.models.masks import Mask

    mask = Mask(**{name: given.pop(name) for name in ("form", "factor", "grain", "positions")})
    sweep_command(console, **given, mask=mask)


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
    _check_there(run)
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
    _check_there(run)
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
    quiet: Quiet = False,
) -> None:
    """Write a stored run as one HTML file to send: the explorer on stored data, without a network."""
    given = dict(locals())
    for run in runs:
        _check_there(run)
    from workbench.cli.views import report_command

    report_command(console, **given)


@app.command()
def models(json: Json = False) -> None:
    """List the model families: what each supports, and its known limits."""
    from workbench.cli.models import show_models

    tell(show_models, console, json=json)


@app.command()
def check(
    model: Annotated[
        str, typer.Argument(help="A checkpoint directory, a Hub id, an embedded name; a family with --tiny.")
    ],
    tiny: Annotated[bool, typer.Option("--tiny", help="A random model from a small configuration; offline.")] = False,
    dtype: Dtype = "",
    device: Device = None,
    template: Template = "chat",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Prove that masks act on a model as they should; status 1 if it does not conform."""
    from workbench.cli.models import check_model

    given = {"tiny": tiny, "dtype": dtype, "device": device, "template": template}
    found = tell(check_model, console, name=model, **given, json=json, quiet=quiet)
    raise typer.Exit(int((found["verdict"] == "failed").any()))


@app.command(cls=Registered)
def compare(
    run: RunPath,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="With it, also what masking the heads does to replies.")
    ] = None,
    prompts: Annotated[
        str | None, typer.Option("--prompts", "-p", help="The run's prompts, where they cannot be drawn again.")
    ] = None,
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
    template: Template = "chat",
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure x rule x projection x number of heads: what each detects, with intervals, and what each part adds."""
    given = dict(locals())
    _check_there(run)
    from workbench.cli.detect import compare_command

    tell(compare_command, console, **given)


app.command(cls=Contest)(arena)


@app.command(cls=Registered)
def detect(
    source: Annotated[str, typer.Argument(help="A stored run, a stored detector, or a detector to fit, by name.")],
    model: Annotated[str | None, typer.Option("--model", "-m", help="Where SOURCE is no run.")] = None,
    prompts: Annotated[str | None, typer.Option("--prompts", "-p", help="Where SOURCE is no run.")] = None,
    projection: Annotated[Literal["query", "value"], typer.Option(help="The projection masked.")] = "query",
    criterion: Annotated[str, typer.Option(help="Whose value is thresholded: {criteria}.")] = "deflection",
    rule: Annotated[str, typer.Option(help="How the head is chosen: {rules}.")] = "selectivity",
    k: Annotated[int, typer.Option(help="Candidate heads, one of which is drawn.")] = 1,
    save: Annotated[Path | None, typer.Option(help="Store the fitted detector in this folder.")] = None,
    template: Template = "chat",
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Test a detector by family and category, with graded scores."""
    given = dict(locals())
    if model is None:
        _check_there(source)
    from workbench.cli.detect import detect_command

    tell(detect_command, console, **given)


@app.command()
def generate(
    text: Annotated[str, typer.Argument(help="What to ask.")],
    model: ModelName = "pocket",
    image: Annotated[Path | None, typer.Option(help="A picture to ask about.")] = None,
    heads: Heads = None,
    projection: Masked = "query",
    guard: Annotated[str | None, typer.Option(help="A stored detector; what it flags is refused.")] = None,
    template: Template = "chat",
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of the reply.")] = 32,
    on_error: Annotated[Literal["raise", "refuse"], typer.Option(help="When detection itself fails.")] = "raise",
    show_unguarded: Annotated[bool, typer.Option("--show-unguarded", help="The plain reply beside it.")] = False,
) -> None:
    """Print a model's reply to one prompt, guarded by a detector if you give one."""
    given = dict(locals())
    from workbench.cli.detect import generate_command

    generate_command(console, **given)


@app.command()
def study(
    name: Annotated[str, typer.Argument(help="A study's name, all, or list.")],
    model: ModelName = "pocket",
    prompts: OwnPrompts = None,
    other: OtherModels = [],  # noqa: B006
    other_prompts: OtherPrompts = [],  # noqa: B006
    out: Annotated[Path, typer.Option(help="Folder for tables, figures, captions and the page.")] = Path("studies"),
    runs: RunsFolder = None,
    n: Annotated[int | None, typer.Option("--n", "-n", help="How many prompts.")] = None,
    template: Template = "chat",
    quiet: Quiet = False,
    seed: Seed = 0,
) -> None:
    """Answer a question of the papers or their reviewers: a table, a figure, a caption, and one page over all.

    [bold]workbench study list[/bold] says which there are. Stopped at any moment, the same command goes on.
    """
    given = dict(locals())
    from workbench.cli.study import study_command

    study_command(console, **given)


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


@app.command()
def lab(
    folder: Annotated[Path, typer.Option(help="Where an installed package puts copies of its notebooks.")] = Path(
        "workbench-notebooks"
    ),
) -> None:
    """Open JupyterLab on the notebook in which heads can be clicked."""
    from workbench.cli.views import lab_command

    raise typer.Exit(lab_command(folder))


def main() -> None:
    """Run the command; turn a user's mistake into one message and status 1."""
    settle_process()
    errors = Console(stderr=True)
    try:
        app(standalone_mode=True)
    except WorkbenchError as error:
        errors.print(Text("Error: ", "red") + Text(plain(error, keep="\n\t"), ""), soft_wrap=True)
        sys.exit(1)
    except ModuleNotFoundError as error:
        errors.print(Text("Error: ", "red") + Text(plain(lacking(error)), ""), soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        errors.print("Stopped.", highlight=False)
        sys.exit(130)
