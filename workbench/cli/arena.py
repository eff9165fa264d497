"""What `workbench arena` does: every detector and guard on the same prompts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from workbench.cli.named import Named, loaded
from workbench.cli.printing import say, say_written
from workbench.cli.prompts import Asked, chosen, say_caveats
from workbench.comparison import arena, grid
from workbench.comparison.arena_tables import arena_tables, says
from workbench.comparison.differences import differences_of
from workbench.prompts.caveats import caveats
from workbench.views.figures.arena import save_arena

WIDTH = 80


def arena_command(
    console: Console,
    *,
    model: str | Named,
    prompts: str | Asked,
    detectors: Sequence[str],
    guards: Sequence[str],
    judges: Sequence[str],
    out: Path | None,
    seed: int,
    **more: Any,
) -> pd.DataFrame:
    """Print how everything asked for compares, and write tables and the figure where asked.

    `more` is for `arena`.

    Raises:
        WorkbenchError: As `arena`, `load_model` and `load_prompts` do.
    """
    given = chosen(prompts, seed)
    try:
        table = arena(
            loaded(model),
            given,
            [name for wanted in detectors for name in (grid() if wanted == "grid" else (wanted,))],
            () if guards == ["none"] else guards,
            judges=() if judges == ["auto"] else judges,
            out=out,
            progress=not console.quiet,
            seed=seed,
            **more,
        )
    except KeyboardInterrupt:
        kept = f" The same command goes on with what {out} holds." if out is not None else ""
        raise KeyboardInterrupt(f"Stopped.{kept}") from None
    say_caveats(console, caveats(given))
    for shown in arena_tables(table, width=WIDTH):
        console.print(shown)
    for sentence in says(table, differences_of(table)):
        say(console, f"- {sentence}")
    about = table.attrs
    say(console, f"{about['prompts']} test prompts; splits: {about['splits']}. Intervals stand in arena.csv.")
    for key, why in about["left_out"].items():
        say(console, f"Left out: {key}: {why}", "dim")
    if out is not None:
        say_written(console, save_arena(table, out), out)
    return table
