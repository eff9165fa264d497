"""Words of others, shown as data: prompts, models and stored runs may hold control characters, markup and formulas."""

import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import ArgumentError

if TYPE_CHECKING:
    import pandas as pd

# Controls (the escape of terminal sequences among them), formats (which turn the direction of text, or hide in it),
# surrogates, and separators of lines and paragraphs.
_UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_JOINERS = "\u200c\u200d"  # formats that scripts and emoji need
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
WRITERS: Mapping[str, Mapping[str, Any]] = {
    ".csv": {"index": False, "errors": "backslashreplace"},
    ".parquet": {"index": False},
    ".json": {"orient": "records"},
}


def plain(text: object, *, keep: str = "") -> str:
    r"""Text with the characters that are not seen, but act, written out as Python writes them.

    Args:
        text: Anything; its `str` is shown.
        keep: Characters to leave as they are: `"\n\t"` for a text of several lines.

    Examples:
        >>> print(plain("red \x1b[31m, and \u202eback"))
        red \x1b[31m, and \u202eback
    """
    return "".join(
        char.encode("unicode_escape").decode()
        if unicodedata.category(char) in _UNSEEN and char not in keep + _JOINERS
        else char
        for char in str(text)
    )


def plain_cell(value: Any) -> Any:
    """A cell for a CSV file: words that a spreadsheet would take for a formula begin with an apostrophe.

    Examples:
        >>> plain_cell("=cmd|' /C calc'!A0"), plain_cell("text"), plain_cell(-1.5)
        ("'=cmd|' /C calc'!A0", 'text', -1.5)
    """
    if not isinstance(value, str):
        return value
    return plain(f"'{value}" if value.startswith(_FORMULA) else value, keep="\n\t")


def check_writable(path: str | Path) -> Path:
    """The path, if a table can be written under its suffix.

    Raises:
        ArgumentError: It cannot; the message lists the suffixes that can.
    """
    path = Path(path)
    if path.suffix not in WRITERS:
        raise ArgumentError(f"A table is written as {', '.join(WRITERS)}; got '{plain(path.name)}'.")
    return path


def write_table(table: "pd.DataFrame", path: str | Path) -> Path:
    """Write a table as .csv, .parquet or .json, without its row numbers; returns the path.

    In a CSV, words that begin with = + - @, a tab or a carriage return get an apostrophe in front, since a spreadsheet
    would run them; the other two hold every word as it is.

    Raises:
        ArgumentError: For another suffix.
    """
    path = check_writable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    table = table.copy()
    table.attrs = {}  # what is said about a table is not always JSON
    if path.suffix == ".csv":
        table = table.map(plain_cell).rename(columns=plain_cell)
    getattr(table, f"to_{path.suffix[1:]}")(path, **WRITERS[path.suffix])
    return path
