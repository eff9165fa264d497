"""Prompts from a person's own file: `.jsonl`, `.csv` or `.parquet`, pictures beside it.

Nothing is fetched and nothing is guessed: a cell that cannot be used is an error that names its row. Several bad rows
are told together, so that a file is mended in one round.
"""

import csv
import difflib
import json
import logging
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageOps

from workbench.errors import PromptError
from workbench.prompts.prompt import Prompt, PromptSet

log = logging.getLogger(__name__)

REQUIRED = ("text", "label")
COLUMNS = tuple(field.name for field in fields(Prompt))
# Formats that Pillow decodes by itself. Others (EPS, for one) start programs or exist to hold more than one picture.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
# Far above what any vision tower reads, far below what fills a memory: a small file that unpacks to more is an attack.
MAX_PIXELS = 50_000_000
# What pandas and R write into a CSV for "nothing here".
MISSING_WORDS = frozenset({"", "nan", "none", "null", "na", "n/a", "<na>"})
SHOWN_ROWS = 5


class _BadCellError(Exception):
    """One row that cannot be used; gathered with the others into one `PromptError`."""


class _Row(NamedTuple):
    number: int  # 1-based, the header and blank lines not counted
    line: int | None  # 1-based line of the file on which the row ends; None where a file has no lines
    cells: Mapping[str, object]
    problem: str = ""  # why the cells could not even be read

    @property
    def place(self) -> str:
        return f"row {self.number}" + (f" (line {self.line})" if self.line is not None else "")


class _Table(NamedTuple):
    columns: list[str]
    rows: list[_Row]


def read_prompts(path: str | Path) -> PromptSet:
    """The prompts of a `.jsonl`, `.csv` or `.parquet` file, in its order.

    Columns: `text` and `label` (`safe` or `unsafe`) must be there; `id, image, source, family, category, pair_id,
    split, variant` may be. `image` is a path relative to the file and never outside its folder. Without an id a prompt
    is called `row-N`; without a source it gets the name of the file. Other columns are left out, as a log line says.

    Pictures come back as RGB, turned as their EXIF record says, the first frame where there are several.

    Raises:
        PromptError: For a file that cannot be read, a missing or misspelt column, or rows that cannot be used; the
            first five bad rows are named by number, counted from 1 after the header.
    """
    path = Path(path)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise PromptError(
            f"{path} is no prompt file: the name must end in {', '.join(READERS)}; got {path.suffix or 'no ending'!r}."
        )
    _check_is_file(path)
    columns, rows = reader(path)
    if not rows:
        raise PromptError(f"{path} holds no prompts: not one row. Each row needs at least the columns text and label.")
    _check_columns(path, columns)

    prompts: list[Prompt] = []
    problems: list[str] = []
    pictures = _Pictures(path.parent)
    first_use: dict[str, str] = {}
    for row in rows:
        try:
            prompt = _prompt(row, source=path.stem, pictures=pictures)
            if prompt.id in first_use:
                raise _BadCellError(
                    f"the id {prompt.id!r} is already that of {first_use[prompt.id]}; ids must be unique"
                )
        except (_BadCellError, PromptError) as error:
            problems.append(f"{row.place}: {error}")
            continue
        first_use[prompt.id] = row.place
        prompts.append(prompt)
    if problems:
        raise PromptError(_bad_rows(path, problems, total=len(rows)))
    return PromptSet(prompts, name=path.stem)


def _check_is_file(path: Path) -> None:
    if path.is_file():
        return
    if path.is_dir():
        raise PromptError(f"{path} is a folder; a prompt file was wanted. Name the {' or '.join(READERS)} file in it.")
    near = []
    if path.parent.is_dir():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir() if p.is_file()])
    hint = f"Did you mean {' or '.join(near)}?" if near else f"It was looked for in {path.parent.resolve()}."
    raise PromptError(f"There is no prompt file {path}. {hint}")


def _bad_rows(path: Path, problems: list[str], *, total: int) -> str:
    shown = "\n".join(f"  {problem}" for problem in problems[:SHOWN_ROWS])
    more = f"\n  … and {len(problems) - SHOWN_ROWS} more" if len(problems) > SHOWN_ROWS else ""
    return f"{path}: {len(problems)} of {total} rows cannot be used (rows are counted from 1).\n{shown}{more}"


def _check_columns(path: Path, there: list[str]) -> None:
    unknown = [name for name in there if name not in COLUMNS]
    absent = [name for name in COLUMNS if name not in there]
    wanted = [name for name in REQUIRED if name in absent]
    misspelt = {
        name: match[0]
        for name in unknown
        if (match := difflib.get_close_matches(name.strip().lower(), absent, n=1, cutoff=0.8))
    }
    if there and (wanted or misspelt):
        lacking = f"The column {' and '.join(wanted)} is missing. " if wanted else ""
        hints = "".join(f"{name!r} is not a known column: is it {known!r}? " for name, known in misspelt.items())
        if len(there) == 1 and any(mark in there[0] for mark in ";\t|"):
            hints += "The cells seem to be separated by something else than a comma. "
        raise PromptError(
            f"{path}: {lacking}{hints}The columns there are: {', '.join(map(repr, there))}. "
            f"Wanted: {', '.join(REQUIRED)}; optional: {', '.join(c for c in COLUMNS if c not in REQUIRED)}."
        )
    if unknown:
        log.info("%s: columns that are not read: %s", path, ", ".join(unknown))


def _prompt(row: _Row, *, source: str, pictures: "_Pictures") -> Prompt:
    if row.problem:
        raise _BadCellError(row.problem)
    cells = {name: _text(name, row.cells.get(name)) for name in COLUMNS}
    cells["label"] = cells["label"].strip().lower()
    cells["split"] = cells["split"].lower()
    if not cells["label"]:
        raise _BadCellError("the label is empty; it must be safe or unsafe")
    image = pictures.open(cells.pop("image"))
    cells["id"] = cells["id"] or f"row-{row.number}"
    cells["source"] = cells["source"] or source
    cells["variant"] = cells["variant"] or "as given"
    return Prompt(image=image, **cells)


def _text(name: str, value: object) -> str:
    """A cell as text; empty for None and NaN. Only `text` keeps its spaces."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise _BadCellError(f"{name} holds half of a character (a lone surrogate), which is no text")
        return value if name == "text" else value.strip()
    if name not in ("text", "label", "image") and isinstance(value, (int, float)) and not isinstance(value, bool):
        # A column of whole numbers with a gap in it comes back from a table as floats.
        return str(int(value)) if float(value).is_integer() else str(value)
    raise _BadCellError(f"{name} must be text; got {type(value).__name__}")


class _Pictures:
    """Opens the pictures of one file, each path once, and none outside the file's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.opened: dict[Path, Image.Image] = {}

    def open(self, cell: str) -> Image.Image | None:
        if not cell:
            return None
        place = self._place(cell)
        if place not in self.opened:
            self.opened[place] = _open_picture(place, cell)
        return self.opened[place]

    def _place(self, cell: str) -> Path:
        if "://" in cell or cell.startswith("data:"):
            raise _BadCellError(
                f"image {cell[:80]!r} is an address; nothing is fetched. Save the picture beside the file"
            )
        if Path(cell).is_absolute() or cell[1:3] in (":\\", ":/"):
            raise _BadCellError(f"image {cell!r} must be a path relative to the prompt file, not an absolute one")
        try:
            place = (self.folder / cell).resolve()  # follows links, so that a link cannot lead out either
        except (OSError, RuntimeError, ValueError) as error:
            raise _BadCellError(f"image {cell!r} is no usable path ({error})") from error
        if not place.is_relative_to(self.folder):
            raise _BadCellError(f"image {cell!r} lies outside the folder of the prompt file; move it in")
        if not place.is_file():
            hint = "; use / between folders" if "\\" in cell else ""
            what = "is a folder, not a picture" if place.is_dir() else f"does not exist in {self.folder}{hint}"
            raise _BadCellError(f"image {cell!r} {what}")
        return place


def _open_picture(place: Path, cell: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(place, formats=IMAGE_FORMATS) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise Image.DecompressionBombError(f"{picture.width} x {picture.height} pixels")
                if picture.mode[0] in "IF":
                    raise ValueError(f"{picture.mode} pixels would be cut to 8 bits; save it as 8-bit RGB or grey")
                upright = ImageOps.exif_transpose(picture)
                # A palette with an alpha channel becomes colours first: straight to RGB, Pillow warns.
                return (upright.convert("RGBA") if "transparency" in upright.info else upright).convert("RGB")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _BadCellError(
            f"image {cell!r} is too large ({error}); at most {MAX_PIXELS // 1_000_000} million pixels are read"
        ) from error
    except Exception as error:
        # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more on damaged files.
        raise _BadCellError(
            f"image {cell!r} cannot be read ({type(error).__name__}: {error}); "
            f"formats that can: {', '.join(IMAGE_FORMATS)}"
        ) from error


def _read_csv(path: Path) -> _Table:
    rows: list[_Row] = []
    with path.open(encoding="utf-8-sig", newline="") as handle:  # -sig: spreadsheets put a byte-order mark in front
        reader = csv.reader(handle, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            if twice := sorted({name for name in header if header.count(name) > 1}):
                raise PromptError(f"{path}: the header names {', '.join(map(repr, twice))} more than once.")
            for cells in filter(None, reader):
                problem = ""
                if len(cells) != len(header):
                    problem = (
                        f"{len(cells)} cells where the header names {len(header)} columns; put cells that hold "
                        "a comma or a line break in double quotes"
                    )
                named = {
                    name: None if name != "text" and cell.strip().lower() in MISSING_WORDS else cell
                    for name, cell in zip(header, cells, strict=False)
                }
                rows.append(_Row(len(rows) + 1, reader.line_num, named, problem))
        except csv.Error as error:
            raise PromptError(f"{path}, line {reader.line_num}: this is no well-formed CSV ({error}).") from error
        except UnicodeDecodeError as error:
            raise PromptError(_not_utf8(path, error)) from error
    return _Table(header, rows)


def _read_jsonl(path: Path) -> _Table:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptError(_not_utf8(path, error)) from error
    rows: list[_Row] = []
    for line, entry in enumerate(text.split("\n"), start=1):
        if not entry.strip():
            continue
        cells, problem = {}, ""
        try:
            value = json.loads(entry)
            if isinstance(value, dict):
                cells = value
            else:
                problem = f'an object such as {{"text": "…", "label": "safe"}} was wanted; got {type(value).__name__}'
        except (ValueError, RecursionError) as error:
            problem = f"this is no JSON ({error})"
        rows.append(_Row(len(rows) + 1, line, cells, problem))
    return _Table(list(dict.fromkeys(name for row in rows for name in row.cells)), rows)


def _read_parquet(path: Path) -> _Table:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            columns = list(file.schema_arrow.names)
            records = file.read(columns=[name for name in columns if name in COLUMNS]).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise PromptError(f"{path} cannot be read as parquet: {error}") from error
    return _Table(columns, [_Row(number, None, cells) for number, cells in enumerate(records, start=1)])


def _not_utf8(path: Path, error: UnicodeDecodeError) -> str:
    return f"{path} is not UTF-8 text (byte {error.start}: {error.reason}). Save it as UTF-8 and read it again."


READERS: dict[str, Callable[[Path], _Table]] = {
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
