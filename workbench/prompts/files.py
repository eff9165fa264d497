"""Prompts from a person's own table: a file with pictures beside it, or an object that is held already.

Nothing is fetched and nothing is guessed: a cell that cannot be used is an error that names its row. Several bad rows
are told together, so that a table is mended in one round.
"""

import difflib
import itertools
import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.errors import PromptError
from workbench.prompts.pictures import log_notes
from workbench.prompts.places import NoPictureError, Pictures
from workbench.prompts.prompt import Prompt, PromptSet
from workbench.prompts.splits import check_splits
from workbench.prompts.tables import READERS, Row, Table, check_file

log = logging.getLogger(__name__)

REQUIRED = ("text", "label")
COLUMNS = tuple(field.name for field in fields(Prompt))
AS_WRITTEN = ("text", "system", "prefill")  # they keep their spaces
# Names under which published tables keep what a column here holds.
ALIASES = {
    "text": "query question prompt instruction jailbreak_query request goal user input sentence txt behavior".split(),
    "image": "image_path img image_file picture images img_path image_name imagename file_name filename photo".split(),
}
PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
SHOWN_ROWS = 5
LOOKED_AT = 20  # cells of an unknown column that are held against the names of pictures


def read_prompts(
    path: str | Path,
    *,
    columns: Mapping[str, str | None] | None = None,
    images: Sequence[str | Path] = (),
    missing: str = "raise",
) -> PromptSet:
    """The prompts of a `.jsonl`, `.csv` or `.parquet` file, in its order.

    Columns: `text` and `label` (`safe` or `unsafe`) must be there; `id, image, source, family, category, pair_id,
    split, variant, system, prefill, turns` may be. `image` is a path relative to the file and never outside its folder,
    or the picture itself (bytes, the Hub's `{bytes, path}`). Without an id a prompt is called `row-N`; without a source
    it gets the name of the file. Other columns are left out, as a log line says, but for those that look like a known
    one: they must be mapped.

    Args:
        path: The file.
        columns: Which column of the file holds what, such as `{"image": "image_path"}`; None says that none does.
        images: More folders or archives (`.zip`, `.tar`) in which pictures are looked for.
        missing: `"raise"`, or `"drop"` for leaving out prompts whose picture is in none of these places.

    Raises:
        PromptError: A file that cannot be read, a missing or misspelt column, rows that cannot be used (the first five
            are named by number, counted from 1 after the header), or declared splits that overlap.
    """
    path = Path(path)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise PromptError(
            f"{path} is no prompt file: the name must end in {', '.join(READERS)}; got {path.suffix or 'no ending'!r}."
        )
    check_file(path)
    renamed = {theirs for ours, theirs in (columns or {}).items() if ours in AS_WRITTEN and theirs}
    table = reader(path, as_written=(*AS_WRITTEN, *renamed))
    pictures = Pictures([path.parent, *images])
    return prompts_of_table(table, str(path), pictures, name=path.stem, columns=columns, missing=missing)


def prompts_of_table(
    table: Table,
    what: str,
    pictures: Pictures,
    *,
    name: str,
    columns: Mapping[str, str | None] | None = None,
    missing: str = "raise",
) -> PromptSet:
    """The prompts of a table's rows; `what` is what messages call it, `name` what its prompts take as their source."""
    if not table.rows:
        raise PromptError(f"{what} holds no prompts: not one row. Each row needs at least the columns text and label.")
    table = _mapped(table, what, columns or {})
    _check_columns(table, what, pictures, unmapped={ours for ours, theirs in (columns or {}).items() if theirs is None})
    prompts: list[Prompt] = []
    problems: list[str] = []
    absent: list[str] = []
    first_use: dict[str, str] = {}
    for row in table.rows:
        try:
            prompt = _prompt(row, source=name, pictures=pictures)
            if prompt.id in first_use:
                raise PromptError(f"the id {prompt.id!r} is already that of {first_use[prompt.id]}; ids must be unique")
        except NoPictureError as error:
            (absent if missing == "drop" else problems).append(f"{row.place}: {error}")
        except PromptError as error:
            problems.append(f"{row.place}: {error}")
        else:
            first_use[prompt.id] = row.place
            prompts.append(prompt)
    if problems:
        raise PromptError(_listed(f"{what}: {len(problems)} of {len(table.rows)} rows cannot be used", problems))
    if absent:
        log.warning(_listed(f"{what}: {len(absent)} of {len(table.rows)} rows are left out", absent))
    if not prompts:
        raise PromptError(_listed(f"{what}: no row is left; {len(absent)} pictures are in none of the places", absent))
    log_notes(what, (p.image for p in prompts))
    check_splits(prompts)
    return PromptSet(prompts, name=name)


def _listed(lead: str, problems: Sequence[str]) -> str:
    shown = "\n".join(f"  {problem}" for problem in problems[:SHOWN_ROWS])
    more = f"\n  … and {len(problems) - SHOWN_ROWS} more" if len(problems) > SHOWN_ROWS else ""
    return f"{lead} (rows are counted from 1).\n{shown}{more}"


def _mapped(table: Table, what: str, columns: Mapping[str, str | None]) -> Table:
    """The table with its columns under our names."""
    theirs = [name for name in columns.values() if name is not None]
    there = ", ".join(map(repr, table.columns))
    if unknown := [name for name in columns if name not in COLUMNS]:
        raise PromptError(f"columns maps {', '.join(map(repr, unknown))}; a prompt has {', '.join(COLUMNS)}.")
    if absent := [name for name in theirs if name not in table.columns]:
        raise PromptError(f"{what} has no column {', '.join(map(repr, absent))}. The columns there are: {there}.")
    if clash := [ours for ours, name in columns.items() if ours in table.columns and name != ours]:
        # What stands under our own name is not what is meant: it makes room.
        log.info("%s: columns that are not read: %s", what, ", ".join(clash))
    if not columns:
        return table
    name_of = {name: [ours for ours, other in columns.items() if other == name] for name in table.columns}

    def mapped(cells: Mapping[str, Any]) -> dict[str, Any]:
        kept = {name: value for name, value in cells.items() if name not in columns}
        return kept | {ours: cells[name] for name in cells for ours in name_of[name]}

    names = [name for name in table.columns if name not in columns and not name_of[name]]
    return Table(
        [*names, *(ours for ours, name in columns.items() if name is not None)],
        [row._replace(cells=mapped(row.cells)) for row in table.rows],
    )


def _check_columns(table: Table, what: str, pictures: Pictures, *, unmapped: set[str]) -> None:
    there = table.columns
    unknown = [name for name in there if name not in COLUMNS]
    absent = [name for name in COLUMNS if name not in there and name not in unmapped]
    wanted = [name for name in REQUIRED if name in absent]
    alike = {name: ours for name in unknown if (ours := _alike(name, table, pictures, absent))}
    misspelt = {
        name: match[0]
        for name in unknown
        if name not in alike and (match := difflib.get_close_matches(name.strip().lower(), absent, n=1, cutoff=0.8))
    }
    if there and (wanted or misspelt or alike):
        hints = f"The column {' and '.join(wanted)} is missing. " if wanted else ""
        hints += "".join(f"{name!r} is not a known column: is it {known!r}? " for name, known in misspelt.items())
        for name, ours in alike.items():
            hints += f"{name!r} looks like the column {ours!r}. Say so with columns={{{ours!r}: {name!r}}} "
            hints += f"(--columns {ours}={name}), or that it is none with columns={{{ours!r}: None}}. "
        if len(there) == 1 and any(mark in there[0] for mark in ";\t|"):
            hints += "The cells seem to be separated by something else than a comma. "
        raise PromptError(
            f"{what}: {hints}The columns there are: {', '.join(map(repr, there))}. "
            f"Wanted: {', '.join(REQUIRED)}; optional: {', '.join(c for c in COLUMNS if c not in REQUIRED)}."
        )
    if unknown:
        log.info("%s: columns that are not read: %s", what, ", ".join(unknown))


def _alike(name: str, table: Table, pictures: Pictures, absent: Sequence[str]) -> str:
    """Which absent column a column of another name seems to be: by its name, or by cells that name pictures."""
    plain = name.strip().lower().replace(" ", "_").replace("-", "_")
    by_name = next((ours for ours, names in ALIASES.items() if plain in names and ours in absent), "")
    if by_name or "image" not in absent:
        return by_name
    written = (row.cells.get(name) for row in table.rows)
    cells = itertools.islice((c for c in written if isinstance(c, str) and c.strip()), LOOKED_AT)
    return "image" if any(c.lower().endswith(PICTURE_ENDINGS) and _is_there(pictures, c) for c in cells) else ""


def _is_there(pictures: Pictures, cell: str) -> bool:
    try:
        pictures.named(cell)
    except NoPictureError:
        return False
    except PromptError:
        return True  # there, and for the row to complain of
    return True


def _prompt(row: Row, *, source: str, pictures: Pictures) -> Prompt:
    if row.problem:
        raise PromptError(row.problem)
    held = dict(row.cells)
    image, turns = held.pop("image", None), held.pop("turns", None)
    cells = {name: _text(name, held.get(name)) for name in COLUMNS if name not in ("image", "turns")}
    cells["label"] = cells["label"].strip().lower()
    cells["split"] = cells["split"].lower()
    if not cells["label"]:
        raise PromptError("the label is empty; it must be safe or unsafe")
    cells["id"] = cells["id"] or f"row-{row.number}"
    cells["source"] = cells["source"] or source
    cells["variant"] = cells["variant"] or "as given"
    if isinstance(image, str | float):
        image = _text("image", image)
    return Prompt(image=pictures.open(image), turns=_turns(turns), **cells)


def _text(name: str, value: object) -> str:
    """A cell as text; empty for None and NaN. Only what is put to the model keeps its spaces."""
    if _is_missing(value):
        return ""
    if isinstance(value, str):
        return value if name in AS_WRITTEN else value.strip()
    if name not in ("label", "image", *AS_WRITTEN) and isinstance(value, int | float) and not isinstance(value, bool):
        # A column of whole numbers with a gap in it comes back from a table as floats.
        return str(int(value)) if math.isfinite(value) and float(value).is_integer() else str(value)
    raise PromptError(f"{name} must be text; got {type(value).__name__}")


def _is_missing(value: Any) -> bool:
    return value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and math.isnan(value))


def _turns(value: Any) -> tuple[tuple[str, str], ...]:
    """Earlier turns from a cell: pairs or `{role, content}` objects, or JSON of them."""
    if _is_missing(value) or (isinstance(value, str) and not value.strip()):
        return ()
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise PromptError(f'turns must be JSON such as [["user", "…"], ["assistant", "…"]] ({error})') from error
    if not isinstance(value, Iterable):
        raise PromptError(f"turns must be a list of [role, text]; got {type(value).__name__}")
    return tuple((t.get("role"), t.get("content")) if isinstance(t, Mapping) else tuple(t) for t in value)
