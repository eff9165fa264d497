"""What a reader of a published set is, and how it opens the set's files: columns held to what was published."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.checking import plainly
from workbench.errors import PromptError
from workbench.prompts.places import Folder
from workbench.prompts.tables import Row, Table, read_csv, read_json, read_jsonl, read_parquet, read_text

log = logging.getLogger(__name__)

SHOWN_NAMES = 12  # of files or columns that messages list


@dataclass(frozen=True)
class Reader:
    """A published set: what it is, and how its files become prompts.

    Attributes:
        name: As `load_prompts` takes it.
        title: The set's own name.
        licence: Under which it is published, as far as it says.
        where: Where to get it.
        files: By part, the names under which its file is published, relative to the folder; the main part first.
        columns: What its files hold, in a sentence.
        labels: Which rows are unsafe, in a sentence.
        counts: By part, what was published: `prompts`, `unsafe`, `pictures`.
        source: Where the set is described.
        read: Gives the rows of a part, each with cells named as a prompt's fields; `image` may be several names, the
            first of which that is there is taken.
        images: Folders and archives, relative to the set's folder, in which its pictures lie.
    """

    name: str
    title: str
    licence: str
    where: str
    files: Mapping[str, Sequence[str]]
    columns: str
    labels: str
    counts: Mapping[str, Mapping[str, int]]
    source: str
    read: Callable[["Layout", str], Iterable[Row]] = field(repr=False)
    images: Sequence[str] = (".",)


class Layout:
    """The folder of a published set.

    Args:
        reader: Of the set.
        root: The folder.
        columns: Which column to take for a field, where the set has several that would do.
    """

    def __init__(self, reader: Reader, root: str | Path, columns: Mapping[str, str | None] | None = None) -> None:
        self.reader, self.root, self.columns = (
            reader,
            Path(root).expanduser(),
            {k: v for k, v in (columns or {}).items() if v},
        )
        if not self.root.is_dir():
            raise PromptError(f"{self.root} is no folder. {reader.title} is to be had at {reader.where}.")
        self._folder = Folder(self.root)

    def there(self, *names: str) -> Path | None:
        """The first file of these names that there is; a `*` stands for anything."""
        for name in names:
            found = sorted(self.root.glob(name)) if "*" in name else [self.root / name]
            for path in found:
                if self._folder.find(str(path.relative_to(self.root))) is not None:
                    return path
        return None

    def parts(self) -> list[str]:
        """The parts that are there, the main one first."""
        return [part for part, names in self.reader.files.items() if self.there(*names)]

    def file(self, part: str) -> Path:
        """The file of a part."""
        names = self.reader.files[part]
        path = self.there(*names)
        if path is None:
            here = sorted(p.name for p in self.root.iterdir())
            raise PromptError(
                f"{self.reader.title}, part {part!r}: {self.root} has no {' or '.join(names)}. There is "
                f"{_some(here) or 'nothing'}. The set is to be had at {self.reader.where}."
            )
        return path

    def rows(
        self, path: Path, *columns: str, optional: Sequence[str] = (), header: Sequence[str] = ()
    ) -> Iterator[Row]:
        """The rows of a CSV, JSON-lines or parquet file that has just these columns, and perhaps the optional ones.

        Args:
            path: The file.
            columns: Those it must have.
            optional: Those it may have.
            header: Names of the columns of a CSV without a header line.

        Raises:
            PromptError: Another set of columns, named, or a row that cannot be read.
        """
        kinds = {".csv": read_csv, ".jsonl": read_jsonl, ".json": read_jsonl, ".parquet": read_parquet}
        how: dict[str, Any] = {"as_written": (*columns, *optional), "header": header} if path.suffix == ".csv" else {}
        table: Table = kinds[path.suffix](path, **how)
        self.check_columns(path, table.columns, columns, optional)
        for row in table.rows:
            if row.problem:
                raise PromptError(f"{path}, {row.place}: {row.problem}.")
            yield row

    def lines(self, path: Path) -> Iterator[Row]:
        """The lines of a text file that hold something, each as the cell `text`."""
        lines = read_text(path).splitlines()
        held = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
        if not held:
            raise PromptError(f"{path} holds no line of text. {self.reader.title} is to be had at {self.reader.where}.")
        for number, (line, text) in enumerate(held, start=1):
            yield Row(number, line, {"text": text})

    def objects(self, path: Path, *keys: str, optional: Sequence[str] = ()) -> Iterator[Row]:
        """The objects of a JSON list, or of a JSON object by its keys (each also under `key`); strict as `rows`."""
        value = read_json(path)
        if isinstance(value, dict) and all(isinstance(item, dict) for item in value.values()):
            value = [{"key": key, **item} for key, item in value.items()]
            keys = ("key", *keys)
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise PromptError(f"{path}: a JSON list of objects was wanted; got {type(value).__name__}.")
        for number, item in enumerate(value, start=1):
            self.check_columns(f"{path}, entry {number}", list(item), keys, optional)
            yield Row(number, None, item)

    def check_columns(
        self, where: str | Path, there: Sequence[str], needed: Sequence[str], optional: Sequence[str]
    ) -> None:
        """Refuse columns that are not those published: missing ones would be guessed, new ones might mean anything."""
        missing = [name for name in needed if name not in there]
        strange = [name for name in there if name not in (*needed, *optional)]
        if missing or strange:
            lacks = f"the column {', '.join(map(repr, missing))} is missing. " if missing else ""
            has = f"{', '.join(map(plainly, strange[:SHOWN_NAMES]))} is not known. " if strange else ""
            raise PromptError(
                f"{where}: this is not {self.reader.title} as published: {lacks}{has}There is "
                f"{_some([plainly(name) for name in there])}; wanted {', '.join(needed)}. Read a file of your own "
                "making with load_prompts(FILE, columns={...})."
            )


def request_rows(
    text: str, *columns: str, optional: tuple[str, ...] = (), label: str = "unsafe", category: str = ""
) -> Callable[[Layout, str], Iterator[Row]]:
    """How a set of requests in words is read: a CSV or JSON lines with these columns, or a request a line of text.

    Args:
        text: The column with the request.
        *columns: Those that must be there besides.
        optional: Those that may be.
        label: Of every part but one called benign.
        category: The column with the topic.
    """

    def read(layout: Layout, part: str) -> Iterator[Row]:
        path = layout.file(part)
        named = path.suffix != ".txt"
        for row in layout.rows(path, text, *columns, optional=optional) if named else layout.lines(path):
            cells = {
                "id": f"{part}-{row.number}",
                "text": row.cells[text if named else "text"],
                "label": "safe" if part == "benign" else label,
                "family": "text",
                "category": (row.cells.get(category) or "") if category else "",
            }
            yield row._replace(cells=cells)

    return read


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN_NAMES]) + (", …" if len(names) > SHOWN_NAMES else "")
