"""`explore`: the JupyterLab explorer of one run, or of several side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pandas as pd
import xarray as xr

from workbench.checking import Converted, checked
from workbench.errors import RunError, WorkbenchError
from workbench.prompts.prompt import Prompt
from workbench.runs.reading import RunLike, as_checked_run
from workbench.views.explorer.gathering import as_prompt_source, gathered

if TYPE_CHECKING:
    from workbench.views.explorer.board import Board


def _is_model(value: Any) -> bool:
    return hasattr(type(value), "weight_hash")  # asked so, since importing the class imports torch


def _as_model(value: Any) -> Any:
    if value is not None and not _is_model(value):
        raise ValueError("must be a model from workbench.load_model")
    return value


def _as_shown_run(value: Any) -> Any:
    if _is_model(value):
        raise RunError(
            "A model stands where a run belongs. Give it by its keyword: wb.explore(run, model=model); other runs to "
            "compare with come after the first."
        )
    return as_checked_run(value)


@checked
def explore(
    *runs: RunLike,
    model: Annotated[Any, Converted(_as_model)] = None,
    prompts: Annotated[Sequence[Prompt] | str | Path, Converted(as_prompt_source)] | None = None,
    scores: pd.DataFrame | Sequence[pd.DataFrame] | None = None,
    trace: xr.Dataset | str | Path | None = None,
) -> "Board":
    """Linked layer × head maps beside the chosen head; several runs are compared, side by side.

    The browser draws everything from arrays that it gets once; Python is asked for what needs the model. With two runs,
    or one that was read at several layers, the comparison opens first: both maps, their difference, rank against rank,
    how far the first heads overlap, and how far all rankings agree.

    Args:
        runs: A run or several, or the paths of stored ones.
        model: The model of the runs, or of one of them. Without it, stored data only: no attention, no next tokens, no
            replies.
        prompts: The prompts of the runs. Without them, those that a run says how to draw again (from Pocket or
            Planted).
        scores: A score table to show, or one for each run; without it, `wb.score(run)`.
        trace: Of the same model, from `wb.trace`, or the path of a stored one: how the signal flows, in a panel of its
            own, from whose cells heads are chosen.

    Returns:
        A widget; the last line of a notebook cell shows it. `.head`, `.heads`, `.locked`, `.prompt`, `.criterion` and
        `.rule` are what is chosen in it, and may be set; `.detectors` are those whose thresholds were kept.

    Raises:
        ArgumentError: For score tables that are not one a run.
        PromptError: For prompts that are those of none of the runs.
        RunError: For a model or a trace that is that of none of the runs, or in a run's place.
        WorkbenchError: Where the notebook widgets are not installed.

    Examples:
        >>> import workbench as wb
        >>> model = wb.load_model("planted")
        >>> run = wb.sweep(model, wb.load_prompts("planted", n=24), progress=False)
        >>> board = wb.explore(run, model=model)  # as the last line of a notebook cell, it is shown
        >>> board.head = "L3H1"
    """
    if not runs:
        raise RunError("wb.explore takes a run or several; none was given. Make one: run = wb.sweep(model, prompts).")
    try:
        from workbench.views.explorer.board import Board
    except ImportError as error:
        raise WorkbenchError(
            f"The explorer needs {error.name or 'anywidget'}, which is not installed. Install it with "
            "`pip install 'lvlm-workbench[lab]'`, or write a page that needs no notebook: "
            "wb.save_report(run, 'report.html')."
        ) from error
    shown = gathered([_as_shown_run(run) for run in runs], prompts=prompts, scores=scores)
    return Board(shown, _inspectors(shown, model), trace)


def _inspectors(shown: Sequence[Any], model: Any) -> list[Any]:
    """One for each run that the model belongs to; it must belong to one."""
    if model is None:
        return [None] * len(shown)
    from workbench.views.explorer.inspector import Inspector

    found: list[Any] = []
    refused: list[RunError] = []
    for stored in shown:
        try:
            found.append(Inspector(model, stored.run, stored.prompts))
        except RunError as error:
            found.append(None)
            refused.append(error)
    if len(refused) == len(shown):
        raise refused[0]
    return found
