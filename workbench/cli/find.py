"""What `workbench find` prints and does."""

from pathlib import Path

import pandas as pd
import typer
from rich.console import Console

from workbench.cli.prompts import Asked, told
from workbench.finding.find import find_heads
from workbench.models.loading import load_model
from workbench.models.masks import Mask
from workbench.plain import check_writable, write_table
from workbench.views.tables import found_table


def find_command(
    console: Console,
    *,
    model: str,
    prompts: str | Asked,
    k: int = 5,
    criterion: str = "deflection",
    rule: str = "selectivity",
    projections: list[str],
    level: float = 0.95,
    budget: float = 0.5,
    mask: Mask | None = None,
    store: str | None = None,
    out: Path | None = None,
    json: bool = False,
    quiet: bool = False,
    template: str = "chat",
    dtype: str = "float32",
    device: str | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Find the first heads, print those that are certain or possible, and write the table of all where asked.

    Raises:
        WorkbenchError: As `find_heads`, `load_model` and `load_prompts` do.
    """
    if out is not None:
        check_writable(out)
    asked = told(prompts, seed, quiet=json or quiet)
    try:
        found = find_heads(
            load_model(model, template=template, dtype=dtype, device=device),
            asked,
            k=k,
            criterion=criterion,
            rule=rule,
            projection=projections or None,
            level=level,
            budget=budget,
            mask=mask,
            out=store,
            progress=not (json or quiet),
            seed=seed,
        )
    except KeyboardInterrupt as stopped:
        Console(stderr=True).print(str(stopped), highlight=False, markup=False)
        raise typer.Exit(130) from None
    if json:
        console.out(found.to_json(orient="records", double_precision=15), highlight=False)
    console.quiet = json or quiet
    console.print(found_table(found))
    console.print(
        f"Work: {found.attrs['work']:.0%} of the exact map's. {found.attrs['says']}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    if out is not None:
        console.print(f"{len(found)} rows written to {write_table(found, out)}", markup=False, highlight=False)
    return found
