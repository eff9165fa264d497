"""`workbench sweep`: what the command prints and does."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd
from rich.console import Console

from workbench.cli.named import Named, loaded
from workbench.cli.printing import say
from workbench.cli.prompts import Asked, chosen, told
from workbench.errors import WorkbenchError
from workbench.runs.job import MEASURES
from workbench.sweeps.forecast import plan
from workbench.sweeps.sweep import sweep


def sweep_command(
    console: Console,
    *,
    model: str | Named,
    prompts: str | Asked,
    out: str,
    projections: list[str],
    options: Sequence[str] = (),
    device_map: str | None = None,
    measures: Sequence[str] = (),
    quiet: bool = False,
    seed: int = 0,
    **given: Any,
) -> None:
    """Sweep a model over prompts into a stored run; the same command again goes on where it stopped.

    `given` is for `sweep`.

    Raises:
        WorkbenchError: As `sweep`, `load_model` and `load_prompts` do.
    """
    asked = told(prompts, seed, quiet=quiet)
    whose = loaded(model, device_map=device_map)
    run = sweep(
        whose,
        asked,
        projections=projections or None,
        engine_options=dict(map(_pair, options)),
        out=out,
        measures=measures or MEASURES,
        progress=not quiet,
        seed=seed,
        **given,
    )
    if quiet:
        return
    sizes = ", ".join(
        f"{size} {name}{'s' if size != 1 else ''}" for name, size in run.sizes.items() if not str(name).startswith("d_")
    )
    say(console, f"{out}: {whose.name}, {sizes}. Score it with: workbench score {out}")


def plan_command(
    console: Console,
    *,
    model: str | Named,
    prompts: str | Asked,
    projections: list[str],
    measures: Sequence[str] = (),
    seed: int = 0,
) -> pd.DataFrame:
    """Print what a sweep will take, and return it as a table of one line.

    Raises:
        WorkbenchError: As `plan`, `load_model` and `load_prompts` do.
    """
    found = plan(loaded(model), chosen(prompts, seed), projections=projections, measures=measures or MEASURES)
    console.print(str(found), highlight=False)
    numbers = asdict(found)
    return pd.DataFrame([{**numbers, **numbers.pop("partition")}])


def _pair(text: str) -> tuple[str, Any]:
    """Name and value of an engine's option; a value that is no number or list is taken as it is written."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise WorkbenchError(f"--option takes NAME=VALUE, such as k=3; got {text!r}.")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value
