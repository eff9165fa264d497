"""What `workbench study` does: list the studies, or make some and write them into a folder."""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
from rich.console import Console

from workbench.cli.named import Named, loaded, named
from workbench.cli.printing import say
from workbench.cli.prompts import Asked, say_caveats
from workbench.errors import StudyError, WorkbenchError
from workbench.models.loading import EMBEDDED, PLANTED
from workbench.plain import plain
from workbench.prompts.caveats import caveats
from workbench.studies import STUDIES, Material, Study, StudyRecord, list_studies, make_study
from workbench.studies.pages import store, stored, write_page

ALL, LIST = "all", "list"
log = logging.getLogger(__name__)


def study_command(
    console: Console,
    name: str,
    *,
    model: str | Named,
    prompts: str | Asked | None = None,
    other: Sequence[str] = (),
    other_prompts: Sequence[str] = (),
    out: Path = Path("studies"),
    runs: Path | None = None,
    progress: bool = True,
    seed: int = 0,
) -> pd.DataFrame:
    """Print the list of studies; or make one, or all, and write each as soon as it is made.

    What the folder holds already, made of the same material, is taken as it is; sweeps are kept in `runs`.

    Returns:
        The list (`study`, `asks`, `needs`); or a row a study made: `study`, `says`, and `table`, its rows as records.
    """
    errors = Console(stderr=True, quiet=not progress)
    if name == LIST:
        return show_studies(console)
    if name != ALL and name not in STUDIES:
        raise StudyError(f"There is no study {plain(name)!r}. There are {', '.join(STUDIES)}; or {ALL}, or {LIST}.")
    own = named(model)
    whose = loaded(own)
    given = Asked([prompts]) if isinstance(prompts, str) else prompts or Asked([])
    asked = (given if given.names else replace(given, names=[_world(own.name)])).load(seed)
    say_caveats(errors, caveats(asked))
    beside = [*other] if other else _relatives(own.name)
    if beside and not other:
        say(errors, f"Other models, where a study takes some: {', '.join(beside)}.")
    others = [loaded(replace(own, name=one)) for one in beside]
    sets = [given.beside(one).load(seed) for one in other_prompts]
    kept = runs or out.with_name(out.name + "-runs")
    material = Material(whose, asked, [*others, *sets], runs=kept, seed=seed, progress=progress)
    made, left_out = [], {}
    chosen = list_studies() if name == ALL else [STUDIES[name]]
    began, done = time.monotonic(), 0.0
    for number, record in enumerate(chosen, 1):
        left = _time_left(time.monotonic() - began, done, chosen[number - 1 :])
        say(errors, f"[{number}/{len(chosen)}] {record.name}: {record.asks}{left}", "bold")
        try:
            made.append(_made(record, material, out))
        except KeyboardInterrupt:
            finished = f"{out} and {kept}"
            raise KeyboardInterrupt(f"Stopped. What is finished lies in {finished}; the same call goes on.") from None
        except Exception as error:  # one that breaks keeps none of the others from being made
            if name != ALL:
                raise
            log.info("%s broke.", record.name, exc_info=True)
            kind = "" if isinstance(error, WorkbenchError) else f"{type(error).__name__}: "
            left_out[record.name] = f"{kind}{error}"
            say(errors, f"  left out: {left_out[record.name]}", "dim")
            continue
        finally:
            done += record.cost
        say(console, f"{record.name}: {made[-1].says}")
    page = write_page(_in_folder(made, material, out), left_out, out)
    say(console, f"Written: {page}")
    rows = [{"study": one.name, "says": one.says, "table": one.table.to_dict("records")} for one in made]
    return pd.DataFrame(rows, columns=["study", "says", "table"])


def show_studies(console: Console) -> pd.DataFrame:
    """One study a line, its name first: what it asks, and what it needs besides a model and prompts."""
    rows = []
    for record in list_studies():
        needs = "; ".join(need.words for need in record.needs)
        rows.append({"study": record.name, "asks": record.asks, "needs": needs})
        said = f" [needs {needs}]" if needs else ""
        say(console, f"{record.name:16} {record.asks}{said}")
    return pd.DataFrame(rows)


def _made(record: StudyRecord, material: Material, out: Path) -> Study:
    found = stored(record, out, material.key)
    return found if found is not None else store(make_study(record.name, material), out, material.key)


def _in_folder(made: Sequence[Study], material: Material, out: Path) -> list[Study]:
    """The studies just made and those that the folder held already, in the order of the registry."""
    known = {study.name: study for study in made}
    for record in list_studies():
        if record.name not in known and (found := stored(record, out, material.key)) is not None:
            known[record.name] = found
    return [known[record.name] for record in list_studies() if record.name in known]


def _time_left(seconds: float, done: float, todo: Sequence[StudyRecord]) -> str:
    """From how long the finished ones took, by what each is said to cost."""
    if not done or seconds < 2:
        return ""
    left = seconds / done * sum(record.cost for record in todo)
    return f" (about {max(1, round(left / 60))} min left)" if left > 90 else " (less than 2 min left)"


def _world(model: str) -> str:
    """The prompts of an embedded model's own world."""
    if model in PLANTED:
        return "planted"
    if model in EMBEDDED:
        return "pocket"
    raise StudyError(f"{plain(model)} brings no prompts of its own: give --prompts.")


def _relatives(model: str) -> list[str]:
    """The embedded models beside one of them: the same world before tuning, and of other seeds."""
    return [name for name in EMBEDDED if name != model] if model in EMBEDDED else []
