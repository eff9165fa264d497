"""`workbench sweep`: what the command prints and does."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import typer
from rich.console import Console

from workbench.errors import WorkbenchError
from workbench.models.loading import load_model
from workbench.models.masks import Mask
from workbench.prompts import load_prompts
from workbench.sweeps.sweep import sweep


def sweep_command(
    console: Console,
    *,
    model: str,
    prompts: str,
    out: str,
    projections: list[str],
    engine: str = "exact",
    options: Sequence[str] = (),
    mask: Mask | None = None,
    part: str | None = None,
    columns: Sequence[str] = (),
    images: Sequence[Path] = (),
    missing: Literal["raise", "drop"] = "raise",
    split: str | None = None,
    n: int | None = None,
    seed: int = 0,
    template: str = "chat",
    dtype: str = "float32",
    device: str | None = None,
    device_map: str | None = None,
    cluster: str | None = None,
    repair: bool = False,
    on_error: Literal["raise", "skip"] = "raise",
    readout: Sequence[str] = (),
    quiet: bool = False,
) -> None:
    """Sweep a model over prompts into a stored run; the same command again goes on where it stopped.

    Raises:
        WorkbenchError: As `sweep`, `load_model` and `load_prompts` do.
    """
    chosen = load_prompts(
        prompts, part=part, columns=column_map(columns), images=images, missing=missing, split=split, seed=seed, n=n
    )
    loaded = load_model(model, template=template, dtype=dtype, device=device, device_map=device_map)
    try:
        run = sweep(
            loaded,
            chosen,
            projections=projections,
            mask=mask,
            engine=engine,
            engine_options=dict(map(_pair, options)),
            out=out,
            seed=seed,
            cluster=cluster,
            repair=repair,
            on_error=on_error,
            readout=readout,
            progress=not quiet,
        )
    except KeyboardInterrupt as stopped:
        Console(stderr=True).print(str(stopped), highlight=False, markup=False)
        raise typer.Exit(130) from None
    if quiet:
        return
    sizes = ", ".join(
        f"{size} {name}{'s' if size != 1 else ''}" for name, size in run.sizes.items() if not str(name).startswith("d_")
    )
    console.print(f"{out}: {loaded.name}, {sizes}. Score it with: workbench score {out}", highlight=False, markup=False)


def column_map(columns: Sequence[str]) -> dict[str, str | None]:
    """`OURS=THEIRS` as `load_prompts` takes it; nothing after the sign says that no column is meant."""
    pairs = [text.partition("=") for text in columns]
    if wrong := [ours + equals + theirs for ours, equals, theirs in pairs if not (ours and equals)]:
        raise WorkbenchError(f"--columns takes OURS=THEIRS, such as image=image_path; got {wrong[0]!r}.")
    return {ours.strip(): theirs.strip() or None for ours, _, theirs in pairs}


def _pair(text: str) -> tuple[str, Any]:
    """Name and value of an engine's option; a value that is no number or list is taken as it is written."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise WorkbenchError(f"--option takes NAME=VALUE, such as best=16; got {text!r}.")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value
