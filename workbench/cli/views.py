"""What `workbench score`, `figures` and `lab` do."""

import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from workbench.cli.prompts import say_caveats
from workbench.errors import CriterionError, WorkbenchError
from workbench.plain import check_writable, plain, write_table


def score_command(
    console: Console,
    run: str,
    *,
    criteria: Sequence[str],
    rule: str,
    top: int,
    out: Path | None,
    json: bool,
    quiet: bool,
    seed: int,
) -> None:
    """Print the first heads of each criterion and projection under a rule; write the whole table where asked.

    With `json`, the heads alone are printed, as records; with `quiet`, nothing is.
    """
    if out is not None:
        check_writable(out)
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
    found = pd.concat(tops)
    if json:
        console.out(found.to_json(orient="records", double_precision=15), highlight=False)
    console.quiet = json or quiet
    say_caveats(console, scores.attrs["caveats"])
    console.print(top_heads_table(found, title=f"First {top} heads by {rule}", width=console.width))
    for why in left_out:
        console.print(f"Left out: {plain(why)}", style="dim", markup=False, highlight=False)
    if out is not None:
        console.print(f"{len(scores)} rows written to {write_table(scores, out)}", markup=False, highlight=False)
    console.quiet = False


def figures_command(
    console: Console, run: str, *, out: Path, formats: Sequence[str], only: Sequence[str], width: str, quiet: bool
) -> None:
    """Draw a stored run's figures and name what was written."""
    from workbench.runs.opening import open_run

    stored = open_run(run)
    from workbench.views.figures.save import save_figures

    inches = float(width) if width.replace(".", "", 1).isdecimal() else width
    for path in save_figures(stored, out, formats, only=only, width=inches):
        if not quiet:
            console.print(plain(path), markup=False, highlight=False)


def lab_command() -> int:
    """JupyterLab on the first notebook of the checkout; its exit status."""
    if find_spec("jupyterlab") is None:
        raise WorkbenchError("JupyterLab is not installed. Install it with: pip install 'lvlm-workbench[lab]'.")
    notebook = Path(__file__).parents[2] / "notebooks" / "01_explore_heads.ipynb"
    where = [str(notebook)] if notebook.is_file() else []
    return subprocess.run([sys.executable, "-m", "jupyter", "lab", *where], check=False).returncode
