"""What `workbench score`, `figures` and `lab` do."""

import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from workbench.errors import CriterionError, WorkbenchError

_WRITERS = {".csv": "to_csv", ".parquet": "to_parquet", ".json": "to_json"}


def score_command(
    console: Console, run: str, *, criteria: Sequence[str], rule: str, top: int, out: Path | None, seed: int
) -> None:
    """Print the first heads of each criterion and projection under a rule; write the whole table where asked."""
    if out is not None and out.suffix not in _WRITERS:
        raise WorkbenchError(f"The table can be written as {', '.join(_WRITERS)}; got {out.name!r}.")
    from workbench.runs.opening import open_run

    stored = open_run(run)  # before anything heavier is imported: a wrong path is said at once
    import pandas as pd

    from workbench.criteria import score, top_heads
    from workbench.views.tables import top_heads_table

    scores = score(stored, "all" if list(criteria) == ["all"] else criteria, seed=seed)
    tops, left_out = [], []
    for criterion, projection in scores[["criterion", "projection"]].drop_duplicates().itertuples(index=False):
        try:
            tops.append(top_heads(scores, criterion=criterion, rule=rule, projection=projection, k=top))
        except CriterionError as error:
            left_out.append(f"{criterion} ({projection}): {error}")
    if not tops:
        raise CriterionError(" ".join(left_out))
    console.print(top_heads_table(pd.concat(tops), title=f"First {top} heads by {rule}"))
    for why in left_out:
        console.print(f"Left out: {why}", style="dim", markup=False, highlight=False)
    if out is not None:
        write = getattr(scores, _WRITERS[out.suffix])
        write(out, orient="records") if out.suffix == ".json" else write(out, index=False)
        console.print(f"{len(scores)} rows written to {out}", markup=False, highlight=False)


def figures_command(console: Console, run: str, *, out: Path, formats: Sequence[str]) -> None:
    """Draw a stored run's figures and name what was written."""
    from workbench.runs.opening import open_run

    stored = open_run(run)
    from workbench.views.figures.save import save_figures

    for path in save_figures(stored, out, formats):
        console.print(str(path), markup=False, highlight=False)


def lab_command() -> int:
    """JupyterLab on the first notebook of the checkout; its exit status."""
    if find_spec("jupyterlab") is None:
        raise WorkbenchError("JupyterLab is not installed. Install it with: pip install 'lvlm-workbench[lab]'.")
    notebook = Path(__file__).parents[2] / "notebooks" / "01_explore_heads.ipynb"
    where = [str(notebook)] if notebook.is_file() else []
    return subprocess.run([sys.executable, "-m", "jupyter", "lab", *where], check=False).returncode
