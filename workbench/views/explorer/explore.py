"""`explore`: the JupyterLab explorer of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pandas as pd

from workbench.checking import Converted, checked
from workbench.criteria import score
from workbench.errors import PromptError, WorkbenchError
from workbench.prompts.prompt import Prompt, as_prompts
from workbench.runs.origin import prompts_of
from workbench.runs.reading import SomeRun, as_run

if TYPE_CHECKING:
    from workbench.views.explorer.board import Board


def _as_model(value: Any) -> Any:
    if value is not None and not hasattr(value, "weight_hash"):  # asked so, since importing the class imports torch
        raise ValueError("must be a model from workbench.load_model")
    return value


def _as_prompts(value: Any) -> Any:
    return value if isinstance(value, str | Path) else as_prompts(value)


@checked
def explore(
    run: SomeRun,
    model: Annotated[Any, Converted(_as_model)] = None,
    prompts: Annotated[Sequence[Prompt] | str | Path, Converted(_as_prompts)] | None = None,
    *,
    scores: pd.DataFrame | None = None,
) -> "Board":
    """A widget of linked layer × head maps; click a head to see what it does.

    Args:
        run: A run, or the path of a stored one.
        model: The model of the run. Without it, stored data only: no attention, no next tokens, no replies.
        prompts: The prompts of the run. Without them, those that the run says how to draw again (from Pocket or
            Planted).
        scores: A score table to show; without it, `wb.score(run)`.

    Returns:
        A widget; the last line of a notebook cell shows it.

    Raises:
        PromptError: For prompts that are not those of the run.
        RunError: For a model that is not.
        WorkbenchError: Where the notebook widgets are not installed.

    Examples:
        >>> import workbench as wb
        >>> model = wb.load_model("planted")
        >>> run = wb.sweep(model, wb.load_prompts("planted", n=24), progress=False)
        >>> board = wb.explore(run, model=model)  # as the last line of a notebook cell, it is shown
    """
    run = as_run(run)
    try:
        from workbench.views.explorer.board import Board
        from workbench.views.explorer.head_panel import Stored
        from workbench.views.explorer.inspector import Inspector
    except ImportError as error:
        raise WorkbenchError(
            f"The explorer needs {error.name or 'ipywidgets'}, which is not installed. Install it with "
            "`pip install 'lvlm-workbench[lab]'`, or save figures with wb.save_figures(run, 'figures')."
        ) from error
    try:
        known = {prompt.id: prompt for prompt in prompts_of(run, prompts)}
    except PromptError:
        if prompts is not None:
            raise
        known = {}  # what is stored can be explored without them
    inspector = Inspector(model, run, known) if model is not None else None
    return Board(Stored(run, scores if scores is not None else score(run), inspector), known)
