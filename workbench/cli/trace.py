"""What `workbench trace` prints and does."""

from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from workbench.axes import head_name
from workbench.cli.masks import heads_from
from workbench.cli.named import Named, loaded
from workbench.cli.printing import say, write_rows
from workbench.cli.prompts import Asked, told
from workbench.plain import check_writable
from workbench.tracing.records import left_out
from workbench.tracing.trace import trace
from workbench.views import traces
from workbench.views.tables import frame_table


def trace_command(
    console: Console,
    *,
    model: str | Named,
    prompts: str | Asked,
    heads: str | None,
    sources: str,
    figures: Path | None,
    table: Path | None,
    top: int,
    seed: int,
    **given: Any,
) -> pd.DataFrame:
    """Trace the pairs, print where what tells them apart goes, and write tables and figures where asked.

    `given` is for `trace`.

    Raises:
        WorkbenchError: As `trace`, `load_model` and `load_prompts` do.
    """
    if table is not None:
        check_writable(table)
    given["sources"] = int(sources) if sources.isdecimal() else heads_from(sources, "--sources")
    if heads is not None:
        given["heads"] = heads_from(heads)
    asked = told(prompts, seed, quiet=console.quiet)
    found = trace(
        loaded(model),
        asked,
        progress=not console.quiet,
        **given,
    )
    first = traces.first_cells(found, top)
    pairs = f"{found.sizes['pair']} pair{'s' * (found.sizes['pair'] > 1)}"
    console.print(frame_table(_shown(first), title=f"Nearest to the twin's final state, mean over {pairs}"))
    for name, why in left_out(found).items():
        say(console, f"Left out: {name}: {why}", "dim")
    if table is not None:
        names = [name for name in ("patch_recovered", "head_recovered") if name in found]
        every = pd.concat([traces.means(found, name).assign(variable=name) for name in names], ignore_index=True)
        write_rows(console, every, table)
    if figures is not None:
        from workbench.views.figures.flows import save_trace_figures

        for path in save_trace_figures(found, figures):
            say(console, path)
    return first


def _shown(first: pd.DataFrame) -> pd.DataFrame:
    """The first cells in words."""
    what = [
        head_name(row.layer, row.head) if row.head >= 0 else f"{row.component} of layer {row.layer}"
        for row in first.itertuples()
    ]
    frame = first[["token_group", "direction", "value", "ci_low", "ci_high"]].assign(n=first["n"].astype(str))
    return frame.rename(columns={"token_group": "at", "n": "pairs"}).assign(patched=what)[
        ["patched", "at", "direction", "value", "ci_low", "ci_high", "pairs"]
    ]
