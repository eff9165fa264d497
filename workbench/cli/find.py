"""What `workbench find` prints and does."""

from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from workbench.cli.named import Named, loaded
from workbench.cli.printing import say, write_rows
from workbench.cli.prompts import Asked, told
from workbench.finding.find import find_heads
from workbench.plain import check_writable
from workbench.views.tables import found_table


def find_command(
    console: Console,
    *,
    model: str | Named,
    prompts: str | Asked,
    projections: list[str],
    store: str | None,
    out: Path | None,
    seed: int,
    **given: Any,
) -> pd.DataFrame:
    """Find the first heads, print those that are certain or possible, and write the table of all where asked.

    `given` is for `find_heads`.

    Raises:
        WorkbenchError: As `find_heads`, `load_model` and `load_prompts` do.
    """
    if out is not None:
        check_writable(out)
    asked = told(prompts, seed, quiet=console.quiet)
    found = find_heads(
        loaded(model),
        asked,
        projection=projections or None,
        out=store,
        progress=not console.quiet,
        seed=seed,
        **given,
    )
    console.print(found_table(found))
    say(console, f"Work: {found.attrs['work']:.0%} of the exact map's. {found.attrs['says']}")
    if out is not None:
        write_rows(console, found, out)
    return found
