"""What `workbench score`, `figures` and `lab` do."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from workbench.cli.printing import say, write_rows
from workbench.cli.prompts import say_caveats
from workbench.errors import CriterionError, WorkbenchError
from workbench.plain import check_writable

if TYPE_CHECKING:
    import pandas as pd


def score_command(
    console: Console, run: str, *, criteria: Sequence[str], rule: str, top: int, out: Path | None, seed: int
) -> "pd.DataFrame":
    """Print the first heads of each criterion and projection under a rule; write the whole table where asked.

    Without a rule, heads are ranked as `rank_agreement` ranks them: by selectivity, and probes by sensitivity.
    """
    if out is not None:
        check_writable(out)
    from workbench.runs.opening import open_run

    stored = open_run(run)  # before anything heavier is imported: a wrong path is said at once
    import pandas as pd

    from workbench.criteria import get_criterion, score, top_heads
    from workbench.criteria.ranking import anchor_rule
    from workbench.views.charts import usual_criteria
    from workbench.views.tables import top_heads_table

    scores = score(stored, criteria or usual_criteria(stored), seed=seed)
    tops, left_out = [], []
    for criterion, projection in scores[["criterion", "projection"]].drop_duplicates().itertuples(index=False):
        by = rule or anchor_rule(get_criterion(criterion))
        try:
            tops.append(top_heads(scores, criterion=criterion, rule=by, projection=projection, k=top))
        except CriterionError as error:
            left_out.append(f"{criterion} ({projection}): {error}")
    if not tops:
        raise CriterionError(" ".join(left_out))
    found = pd.concat(tops)
    say_caveats(console, scores.attrs["caveats"])
    console.print(top_heads_table(found, title=f"First {top} heads", width=console.width))
    for why in left_out:
        say(console, f"Left out: {why}", "dim")
    if out is not None:
        write_rows(console, scores, out)
    return found


def figures_command(console: Console, run: str, *, out: Path, width: str, quiet: bool, **given: Any) -> None:
    """Draw a stored run's figures and name what was written."""
    from workbench.runs.opening import open_run

    stored = open_run(run)
    from workbench.views.figures.save import save_figures

    inches = float(width) if width.replace(".", "", 1).isdecimal() else width
    for path in save_figures(stored, out, width=inches, **given):
        if not quiet:
            say(console, path)


def report_command(
    console: Console,
    runs: Sequence[str],
    *,
    out: Path,
    prompts: str | None,
    texts: bool,
    pictures: Sequence[str],
    k: int,
    trace: str | None,
    quiet: bool,
) -> None:
    """Write stored runs as one page to send, and say how large it is."""
    from workbench.views.explorer.page import save_report

    first, *others = runs
    path = save_report(first, out, *others, prompts=prompts, texts=texts, pictures=pictures, k=k, trace=trace)
    if not quiet:
        size = path.stat().st_size / 2**20
        say(console, f"{path}: {size:.1f} MB, opens without a network.")


def lab_command(folder: Path, more: Sequence[str]) -> int:
    """JupyterLab on the first notebook; its exit status.

    From a checkout the notebooks are opened where they are. From an installed package copies of them are put into
    `folder`; what lies there already is left as it is. JupyterLab gets `more` arguments.
    """
    if find_spec("jupyterlab") is None:
        raise WorkbenchError("JupyterLab is not installed. Install it with: pip install 'lvlm-workbench[lab]'.")
    package = Path(__file__).parents[1]
    shipped = package / "notebooks"
    if not shipped.is_dir():
        folder = package.parent / "notebooks"
    else:
        folder.mkdir(parents=True, exist_ok=True)
        for notebook in shipped.glob("*.ipynb"):
            if not (folder / notebook.name).exists():
                shutil.copy(notebook, folder)
    command = [sys.executable, "-m", "jupyter", "lab", str(next(iter(sorted(folder.glob("*.ipynb"))), folder)), *more]
    return subprocess.run(command, check=False).returncode
