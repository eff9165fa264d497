"""What masks heads: the demo, sweeps and their plan, the search, and checks of models."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from workbench.cli.app import app, console
from workbench.cli.named import with_model
from workbench.cli.options import (
    Bias,
    Device,
    Dtype,
    Factor,
    Form,
    Json,
    MaskSource,
    Measures,
    ModelName,
    Positions,
    Quiet,
    ScalingForm,
    Seed,
    Table,
    Template,
)
from workbench.cli.printing import tell
from workbench.cli.prompts import with_prompts


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the figures and the stored run.")] = Path("figures"),
    model: Annotated[str, typer.Option(help="pocket, pocket-base, planted or planted-pair.")] = "pocket",
    n: Annotated[int, typer.Option("--n", "-n", help="Prompts, over three splits.")] = 300,
    seed: Seed = 0,
    form: ScalingForm = "limit",
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
@with_model
@with_prompts
def plan(
    model: ModelName,
    prompts: Any,
    projections: Annotated[
        list[str], typer.Option("--projection", help="The projection masked; give it twice for both, the default.")
    ] = ["query", "value"],  # noqa: B006 - typer hands out copies
    measures: Measures = [],  # noqa: B006
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Say what a sweep will take (time, memory, disk) from a few rows that are timed."""
    given = dict(locals())
    from workbench.cli.sweep import plan_command

    tell(plan_command, console, **given)


@app.command()
@with_model
@with_prompts
def sweep(
    model: ModelName,
    prompts: Any,
    out: Annotated[str, typer.Option(help="Store the run here: a folder (RUN.zarr) or an fsspec URL.")],
    projections: Annotated[
        list[str],
        typer.Option(
            "--projection",
            help="query, key or value: what of a head is masked; repeat for more. By default query and value, or what "
            "the form masks.",
        ),
    ] = [],  # noqa: B006 - typer hands out copies
    engine: Annotated[
        str,
        typer.Option(
            help="exact, prefix (shared beginnings), find (the first heads; see workbench find), or naive (reference)."
        ),
    ] = "exact",
    options: Annotated[
        list[str],
        typer.Option(
            "--option",
            help="NAME=VALUE for the engine, as often as needed. find: k, rule, criterion, level, budget, directions.",
        ),
    ] = [],  # noqa: B006
    form: Form = "limit",
    factor: Factor = 0.0,
    grain: Annotated[Literal["query_head", "kv_group"], typer.Option(help="What one mask covers.")] = "query_head",
    positions: Positions = "all",
    mask_source: MaskSource = None,
    bias: Bias = 0.0,
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
    measures: Measures = [],  # noqa: B006
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Mask every head on every prompt and store the run. Stopped at any moment, the same command goes on.

    [bold]--form interchange[/bold] gives each head what it says on the prompt's matched twin (same pair_id, other
    label): over pairs, one sweep says what is necessary (unsafe prompts) and what is sufficient (safe ones). Score it
    by interchange.
    """
    given = dict(locals())
    from workbench.cli.masks import taken_mask
    from workbench.cli.sweep import sweep_command

    sweep_command(console, mask=taken_mask(given), **given)


@app.command()
@with_model
@with_prompts
def find(
    model: ModelName,
    prompts: Any,
    k: Annotated[int, typer.Option("--k", "-k", help="How many heads.")] = 5,
    criterion: Annotated[
        str, typer.Option(help="deflection, ships, l2 or refusal_change: those whose derivative is known.")
    ] = "deflection",
    rule: Annotated[
        str, typer.Option(help="selectivity, or sensitivity, which reads unsafe prompts only.")
    ] = "selectivity",
    projections: Annotated[
        list[str],
        typer.Option(
            "--projection", help="query, key or value; repeat for more. By default query, or what the form masks."
        ),
    ] = [],  # noqa: B006 - typer hands out copies
    level: Annotated[float, typer.Option(help="Chance that every status is right.")] = 0.95,
    budget: Annotated[
        float, typer.Option(help="Most work, as a share of the exact map's; what it leaves undecided is possible.")
    ] = 0.5,
    form: Form = "limit",
    factor: Factor = 0.0,
    mask_source: MaskSource = None,
    bias: Bias = 0.0,
    store: Annotated[
        str | None, typer.Option(help="Store the run here, RUN.zarr; stopped, the same command goes on from there.")
    ] = None,
    out: Table = None,
    json: Json = False,
    quiet: Quiet = False,
    seed: Seed = 0,
) -> None:
    """Find the heads that come first under a rule, and how sure that is, for a part of the exact map's work.

    certain: among the first k on these prompts. excluded: not. possible: the budget ran out first. The statuses aim
    at being right together with probability --level. Whether other prompts would give the same heads is another
    question: the column "in redraws" says in what share of redraws of the prompts a head is among the first k.
    """
    given = dict(locals())
    from workbench.cli.find import find_command
    from workbench.cli.masks import taken_mask

    tell(find_command, console, mask=taken_mask(given), **given)


@app.command()
@with_model
@with_prompts
def trace(
    model: ModelName,
    prompts: Any,
    components: Annotated[
        list[str],
        typer.Option("--component", help="residual, attention, mlp or heads; repeat for more; all by default."),
    ] = ["residual", "attention", "mlp", "heads"],  # noqa: B006 - typer hands out copies
    heads: Annotated[
        str | None, typer.Option(help="Patch z of these heads only: L3H1,L2H0, or a heads.json; all by default.")
    ] = None,
    sources: Annotated[
        str, typer.Option(help="Follow the paths of so many first heads, or of these: L3H1,L2H0. 0 follows none.")
    ] = "5",
    window: Annotated[
        int | None, typer.Option(help="Layers in which attention is cut at once; an eighth by default, 0 cuts none.")
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="Store the trace here, TRACE.zarr; stopped, the same command goes on from there.")
    ] = None,
    figures: Annotated[Path | None, typer.Option(help="Folder for the figures, with their numbers as CSV.")] = None,
    table: Annotated[
        Path | None, typer.Option(help="Write what was recovered at every cell: .csv, .parquet or .json.")
    ] = None,
    top: Annotated[int, typer.Option(help="How many cells are printed.")] = 10,
    on_error: Annotated[
        Literal["raise", "skip"],
        typer.Option(help="Prompts without a twin that lines up: end with them, or leave out."),
    ] = "raise",
    rows: Annotated[int | None, typer.Option(help="Most rows in one batch; by default from the free memory.")] = None,
    json: Json = False,
    quiet: Quiet = False,
    seed: Seed = 0,
) -> None:
    """Follow what tells unsafe prompts from their safe twins through the layers to the last position.

    Prompts are pairs: one unsafe and one safe with the same pair_id, as many tokens, and pictures of one size. What one
    has at a layer and a group of tokens (picture, hazard, words, template, last) is put into the other's pass; printed
    is the share of the way to the other's final state that this goes: 1 is all of it, 0 nothing. noise patches unsafe
    prompts from safe ones (is it needed?), denoise the reverse (is it enough?).
    """
    given = dict(locals())
    from workbench.cli.trace import trace_command

    tell(trace_command, console, **given)


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
