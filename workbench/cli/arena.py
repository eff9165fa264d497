"""`workbench arena`: every detector and guard on the same prompts."""

from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core
from rich.console import Console
from rich.text import Text

from workbench.cli.app import console
from workbench.cli.options import Device, Dtype, Json, ModelName, Quiet, Seed, Template, listed
from workbench.cli.prompts import chosen, say_caveats, with_prompts
from workbench.plain import plain

WIDTH = 80


class Contest(typer.core.TyperCommand):
    """A command whose help names the detectors and guards that there are; they are looked up when it is shown."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from workbench.detectors import DETECTORS
        from workbench.replies.guards import GUARDS

        names = {"detectors": ", ".join(DETECTORS), "guards": ", ".join(GUARDS)}
        for param in self.params:
            if isinstance(param, typer.core.TyperOption) and param.help:
                param.help = param.help.format(**names)
        super().format_help(ctx, formatter)


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
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of a reply.")] = 32,
    bootstrap: Annotated[int, typer.Option(help="Resamples behind intervals.")] = 1000,
    template: Template = "chat",
    dtype: Dtype = "float32",
    device: Device = None,
    json: Json = False,
    quiet: Quiet = False,
    seed: Seed = 0,
) -> None:
    """Every detector and guard on the same test prompts: detection, false alarms, attack success, refusals, time.

    Detectors are fitted on the selection and threshold prompts and share one look at every prompt. Stopped at any
    moment, the same command with the same --out goes on: sweeps and replies are kept there.
    """
    from workbench.comparison import arena as run_arena
    from workbench.comparison import grid
    from workbench.comparison.arena_tables import arena_tables, says
    from workbench.comparison.differences import differences_of
    from workbench.models.loading import load_model
    from workbench.prompts.caveats import caveats
    from workbench.views.figures.arena import save_arena

    kept = f" The same command goes on with what {plain(out)} holds." if out is not None else ""
    asked = [name for wanted in detectors for name in (grid() if wanted == "grid" else (wanted,))]
    given = chosen(prompts, seed)
    try:
        table = run_arena(
            load_model(model, template=template, dtype=dtype, device=device),
            given,
            asked,
            () if guards == ["none"] else guards,
            judges=() if judges == ["auto"] else judges,
            controls=controls,
            max_new_tokens=max_new_tokens,
            bootstrap=bootstrap,
            run=run,
            out=out,
            progress=not (quiet or json),
            seed=seed,
        )
    except KeyboardInterrupt:
        Console(stderr=True).print(f"Stopped.{kept}", highlight=False, markup=False)
        raise typer.Exit(130) from None
    if json:
        console.out(table.to_json(orient="records", double_precision=15), highlight=False)
    quiet = quiet or json
    if not quiet:
        say_caveats(console, caveats(given))
        for shown in arena_tables(table, width=WIDTH):
            console.print(shown)
        for sentence in says(table, differences_of(table)):
            _say(f"- {sentence}")
        _say(f"{table.attrs['prompts']} test prompts; splits: {table.attrs['splits']}. Intervals stand in arena.csv.")
        for key, why in table.attrs["left_out"].items():
            _say(f"Left out: {key}: {why}", "dim")
    if out is not None:
        files = save_arena(table, out)
        if not quiet:
            _say(f"Written: {', '.join(path.name for path in files)} in {out}")


def _say(text: str, style: str = "") -> None:
    """Print words in which those of others may stand: no markup, no escapes."""
    console.print(Text(plain(text, keep="\n\t"), style=style))
