"""Rows of named cells: from a CSV, JSON, parquet or text file, a DataFrame, a list of dicts, a Hugging Face data set.

Rows know their number and line, so that whoever cannot use one can name it.
"""

import csv
import difflib
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from workbench.errors import PromptError
from workbench.prompts.places import ParquetCells, StoredCell

# What pandas and R write into a CSV for "nothing here".
MISSING_WORDS = frozenset({"", "nan", "none", "null", "na", "n/a", "<na>"})


class Row(NamedTuple):
    """One row of a table.

    Attributes:
        number: From 1, the header and blank lines not counted.
        line: 1-based line of the file on which the row ends; None where a file has no lines.
        cells: By column.
        problem: Why the cells could not even be read; else empty.
    """

    number: int
    line: int | None
    cells: Mapping[str, Any]
    problem: str = ""

    @property
    def place(self) -> str:
        """How messages name it."""
        return f"row {self.number}" + (f" (line {self.line})" if self.line is not None else "")


class Table(NamedTuple):
    """Columns in order, and rows."""

    columns: list[str]
    rows: list[Row]


def check_file(path: Path) -> None:
    """Refuse a path that is no file, with the names that come near."""
    if path.is_file():
        return
    if path.is_dir():
        raise PromptError(f"{path} is a folder; a prompt file was wanted. Name the {' or '.join(READERS)} file in it.")
    near = []
    if path.parent.is_dir():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir() if p.is_file()])
    hint = f"Did you mean {' or '.join(near)}?" if near else f"It was looked for in {path.parent.resolve()}."
    raise PromptError(f"There is no prompt file {path}. {hint}")


def read_text(path: Path) -> str:
    """A UTF-8 file as text, line ends as they are; a byte-order mark, which spreadsheets put in front, is left out."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptError(
            f"{path} is not UTF-8 text (byte {error.start}: {error.reason}). Save it as UTF-8 and read it again."
        ) from error
    if "\0" in text:
        raise PromptError(f"{path} holds zero bytes, so it is no text. Save it as UTF-8 and read it again.")
    return text


def read_csv(path: Path, *, header: Sequence[str] = (), as_written: Sequence[str] = ("text",)) -> Table:
    """The rows of a CSV file.

    Args:
        path: The file.
        header: Names of the columns of a file without a header line.
        as_written: Columns in which words such as "null" are words; elsewhere they mean an empty cell.
    """
    rows: list[Row] = []
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        names = list(header) or [name.strip() for name in next(reader, [])]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise PromptError(f"{path}: the header names {', '.join(map(repr, twice))} more than once.")
        for cells in filter(None, reader):
            problem = ""
            if len(cells) != len(names):
                problem = (
                    f"{len(cells)} cells where the header names {len(names)} columns; put cells that hold "
                    "a comma or a line break in double quotes"
                )
            named = {
                name: None if name not in as_written and cell.strip().lower() in MISSING_WORDS else cell
                for name, cell in zip(names, cells, strict=False)
            }
            rows.append(Row(len(rows) + 1, reader.line_num, named, problem))
    except csv.Error as error:
        raise PromptError(f"{path}, line {reader.line_num}: this is no well-formed CSV ({error}).") from error
    return Table(names, rows)


def read_jsonl(path: Path, **_: Any) -> Table:
    """The rows of a file with one JSON object a line."""
    rows: list[Row] = []
    for line, entry in enumerate(read_text(path).split("\n"), start=1):
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
        rows.append(Row(len(rows) + 1, line, cells, problem))
    return Table(_columns(row.cells for row in rows), rows)


def read_json(path: Path) -> Any:
    """What a JSON file holds."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{path} holds no JSON ({error}).") from error


def read_parquet(path: Path, **_: Any) -> Table:
    """The rows of a parquet file; bytes and structs of them stay there until they are asked for."""
    import pyarrow
    from pyarrow import parquet, types

    def stays(kind: Any) -> bool:
        return types.is_binary(kind) or types.is_large_binary(kind) or types.is_struct(kind)

    rows: list[Row] = []
    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            held = [name for name in schema.names if not stays(schema.field(name).type)]
            stored = {name: ParquetCells(path, name) for name in schema.names if name not in held}
            for group in range(file.num_row_groups):
                size = file.metadata.row_group(group).num_rows
                records = file.read_row_group(group, columns=held).to_pylist() if held else [{}] * size
                for index, cells in enumerate(records):
                    number = len(rows) + 1
                    late = {
                        name: StoredCell(partial(cells_of.cell, group, index), f"{name} of row {number}")
                        for name, cells_of in stored.items()
                    }
                    rows.append(Row(number, None, cells | late))
    except (pyarrow.ArrowException, OSError) as error:
        raise PromptError(f"{path} cannot be read as parquet: {error}") from error
    return Table(list(schema.names), rows)


def table_of(value: Any) -> Table | None:
    """The rows of what someone holds: a DataFrame, a sequence of dicts, a `datasets.Dataset`; None for all else.

    Raises:
        PromptError: A data set of several splits, or one that streams.
    """
    if isinstance(value, pd.DataFrame):
        if twice := sorted({str(name) for name in value.columns[value.columns.duplicated()]}):
            raise PromptError(f"The table names the columns {', '.join(twice)} more than once.")
        names = [str(name) for name in value.columns]
        columns = [value.iloc[:, k].tolist() for k in range(len(names))]
        return _numbered(names, (dict(zip(names, cells, strict=True)) for cells in zip(*columns, strict=True)))
    if type(value).__module__.partition(".")[0] == "datasets":
        return _dataset_rows(value)
    if isinstance(value, list | tuple) and value and all(isinstance(row, dict) for row in value):
        return _numbered(_columns(value), value)
    return None


def _dataset_rows(dataset: Any) -> Table:
    import datasets

    if isinstance(dataset, datasets.DatasetDict | datasets.IterableDatasetDict):
        raise PromptError(
            f"A data set with the splits {', '.join(dataset)} was given; give one, such as data['train']."
        )
    if not isinstance(dataset, datasets.Dataset):
        raise PromptError(
            f"A datasets.Dataset was wanted; got a {type(dataset).__name__}, which cannot be read twice. "
            "Take what you need: list(data.take(1000))."
        )
    pictures = [name for name, kind in dataset.features.items() if isinstance(kind, datasets.Image)]
    for name in pictures:
        dataset = dataset.cast_column(name, datasets.Image(decode=False))
    held = dataset.remove_columns(pictures).to_list() if len(pictures) < len(dataset.column_names) else None

    def cell(row: int, name: str) -> Any:
        return dataset[row][name]

    return _numbered(
        list(dataset.column_names),
        (
            ({} if held is None else held[k])
            | {name: StoredCell(partial(cell, k, name), f"{name} of row {k + 1}") for name in pictures}
            for k in range(len(dataset))
        ),
    )


def _numbered(columns: list[str], rows: Iterable[Mapping[str, Any]]) -> Table:
    return Table(columns, [Row(number, None, cells) for number, cells in enumerate(rows, start=1)])


def _columns(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


READERS: dict[str, Callable[..., Table]] = {".jsonl": read_jsonl, ".csv": read_csv, ".parquet": read_parquet}
