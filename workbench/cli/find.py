"""What `workbench find` prints and does."""

from pathlib import Path

import pandas as pd
from rich.console import Console

from workbench.cli.printing import say, write_rows
from workbench.cli.prompts import Asked, told
from workbench.finding.find import find_heads
from workbench.models.loading import load_model
from workbench.models.masks import Mask
from workbench.plain import check_writable
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
    asked = told(prompts, seed, quiet=console.quiet)
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
        progress=not console.quiet,
        seed=seed,
    )
    console.print(found_table(found))
    say(console, f"Work: {found.attrs['work']:.0%} of the exact map's. {found.attrs['says']}")
    if out is not None:
        write_rows(console, found, out)
    return found
