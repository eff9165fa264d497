"""`explore`: the JupyterLab explorer of a run."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd
import xarray as xr

from workbench.criteria import score
from workbench.errors import PromptError, WorkbenchError
from workbench.prompts import WORLDS, load_prompts
from workbench.prompts.prompt import Prompt, PromptSet

if TYPE_CHECKING:
    from workbench.models.hooked import HookedLVLM
    from workbench.views.explorer.board import Board


def explore(
    run: xr.Dataset,
    model: "HookedLVLM | None" = None,
    prompts: Sequence[Prompt] | None = None,
    *,
    scores: pd.DataFrame | None = None,
) -> "Board":
    """A widget of linked layer × head maps; click a head to see what it does.

    Args:
        run: A run as `wb.sweep` returns it or `xarray.open_zarr` reads it.
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
    try:
        from workbench.views.explorer.board import Board
        from workbench.views.explorer.head_panel import Stored
        from workbench.views.explorer.questions import Looking
    except ImportError as error:
        raise WorkbenchError(
            f"The explorer needs {error.name or 'ipywidgets'}, which is not installed. Install it with "
            "`pip install 'lvlm-workbench[lab]'`, or save figures with wb.save_figures(run, 'figures')."
        ) from error
    known = {prompt.id: prompt for prompt in prompts_of(run, prompts)}
    looking = Looking(model, run, known) if model is not None else None
    return Board(Stored(run, scores if scores is not None else score(run), looking), known)


def prompts_of(run: xr.Dataset, prompts: Sequence[Prompt] | None = None) -> Sequence[Prompt]:
    """The prompts of a run: those given, checked against it, or those it says how to draw again; empty if neither.

    Raises:
        PromptError: If the given prompts are not those of the run; it names what differs.
    """
    recorded = str(run.attrs.get("prompt_hash", ""))
    if prompts is None:
        made = json.loads(run.attrs.get("prompt_source") or "{}")
        # Only the built-in worlds are drawn again: a stored run may not make us open a file it names.
        if made.get("name_or_path") not in WORLDS:
            return ()
        drawn = load_prompts(**made)
        # Another version of the world draws other prompts: then none are shown rather than the wrong ones.
        return drawn if drawn.content_hash() == recorded else ()
    ids = [str(i) for i in run["prompt"].values]
    by_id = {prompt.id: prompt for prompt in prompts}
    if lacking := [i for i in ids if i not in by_id]:
        raise PromptError(
            f"The run has {len(ids)} prompts, and {len(lacking)} of them are not among the {len(by_id)} given "
            f"(the first is {lacking[0]!r}). Give the prompts that were swept."
        )
    matched = PromptSet(by_id[i] for i in ids)
    if recorded and matched.content_hash() != recorded:
        raise PromptError(
            f"The prompts given have the ids of the run but not its contents: their hash is {matched.content_hash()}, "
            f"the run recorded {recorded}. Give the prompts that were swept, in the same version."
        )
    return matched
