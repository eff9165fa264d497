"""Where pictures lie: in a folder, in an archive, or in a cell of a table. Nothing outside them is opened."""

import io
import os
import shutil
import tarfile
import zipfile
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache, partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, BinaryIO, Protocol
from weakref import finalize

from PIL import Image

from workbench.checking import LONGEST_NAME, plainly
from workbench.errors import PromptError
from workbench.prompts.pictures import MAX_BYTES, Picture, as_rgb, picture_of_bytes, stream_of

ARCHIVES = (".zip", ".tar")
HELD_BYTES = 64 * 2**20  # of one row group of a parquet file


class NoPictureError(PromptError):
    """A picture that is not where its row says: it may be missing on this machine, which is no mistake in the row."""


class Place(Protocol):
    """Something that holds pictures by name."""

    def find(self, name: str) -> Callable[[], BinaryIO] | None:
        """What opens the picture of that name; None where there is none."""


class Folder:
    """Pictures in a folder and below it; links may lead to what lies in it, or in the blobs of its Hub cache."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.allowed = [self.path, *_blobs(path)]

    def __str__(self) -> str:
        return str(self.path)

    def find(self, name: str) -> Callable[[], BinaryIO] | None:
        """What opens the file of that name; None where there is none.

        Raises:
            PromptError: The name leads out of the folder, or to a folder.
        """
        outside = PromptError(f"image {name!r} lies outside the folder of the prompt file; move it in")
        if os.path.normpath(name).startswith(".."):
            raise outside
        try:
            place = (self.path / name).resolve()  # follows links, so that a link cannot lead out either
        except (OSError, RuntimeError, ValueError) as error:
            raise PromptError(f"image {name!r} is no usable path ({error})") from error
        if not any(place.is_relative_to(folder) for folder in self.allowed):
            raise outside
        if place.is_dir():
            raise PromptError(f"image {name!r} is a folder, not a picture")
        return stream_of(place) if place.is_file() else None


class Zip:
    """Pictures in a zip archive, read where they are."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.archive = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise PromptError(f"{path} cannot be read as a zip archive ({error}).") from error
        self.members = {info.filename: info for info in self.archive.infolist() if not info.is_dir()}

    def __str__(self) -> str:
        return str(self.path)

    def find(self, name: str) -> Callable[[], BinaryIO] | None:
        """What opens the member of that name; None where there is none."""
        return partial(self._open, self.members[name]) if name in self.members else None

    def _open(self, info: zipfile.ZipInfo) -> BinaryIO:
        if info.file_size > MAX_BYTES:
            raise Image.DecompressionBombError(f"{info.file_size} bytes")
        return io.BytesIO(self.archive.read(info))


class Tar:
    """Pictures in a tar archive that is not compressed: a compressed one would be read from its start for each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with tarfile.open(path, "r:") as archive:
                self.members = {m.name.removeprefix("./"): (m.offset_data, m.size) for m in archive if m.isreg()}
        except (OSError, tarfile.TarError) as error:
            raise PromptError(f"{path} cannot be read as a plain tar archive ({error}); unpack it.") from error

    def __str__(self) -> str:
        return str(self.path)

    def find(self, name: str) -> Callable[[], BinaryIO] | None:
        """What opens the member of that name; None where there is none."""
        return partial(self._open, *self.members[name]) if name in self.members else None

    def _open(self, start: int, size: int) -> BinaryIO:
        if size > MAX_BYTES:
            raise Image.DecompressionBombError(f"{size} bytes")
        with self.path.open("rb") as archive:
            archive.seek(start)
            return io.BytesIO(archive.read(size))


class ParquetCells:
    """Pictures in a column of a parquet file.

    Row groups are read whole, and the one in use is held. One of more than `HELD_BYTES`, as pandas writes them, is
    written once, batch by batch, into a temporary file in which single batches can be read; then the batch is held.
    """

    def __init__(self, path: Path, column: str) -> None:
        self.path, self.column = path, column
        self._batch = lru_cache(maxsize=1)(self._read_batch)
        self._written: dict[int, tuple[Path, list[int]]] = {}  # by group: where, and the first row after each batch

    def cell(self, group: int, row: int) -> Any:
        """What stands in a cell."""
        _, ends = self._places(group)
        number = bisect_right(ends, row)
        return self._batch(group, number)[row - (ends[number - 1] if number else 0)].as_py()

    def _read_batch(self, group: int, number: int) -> Any:
        from pyarrow import OSFile, ipc, parquet

        path, _ = self._places(group)
        if path == self.path:
            with parquet.ParquetFile(path) as file:
                return file.read_row_group(group, columns=[self.column]).column(0)
        with OSFile(str(path)) as file:
            return ipc.open_file(file).get_batch(number).column(0)

    def _places(self, group: int) -> tuple[Path, list[int]]:
        """Where the batches of a row group are read; the parquet file itself, where the group is the only batch."""
        if group in self._written:
            return self._written[group]
        from pyarrow import OSFile, ipc, parquet

        with parquet.ParquetFile(self.path, buffer_size=2**20, pre_buffer=False) as file:
            about = file.metadata.row_group(group)
            columns = (about.column(k) for k in range(about.num_columns))
            size = sum(c.total_uncompressed_size for c in columns if c.path_in_schema.split(".")[0] == self.column)
            if size <= HELD_BYTES:
                self._written[group] = self.path, [about.num_rows]
                return self._written[group]
            at_once = max(1, HELD_BYTES * about.num_rows // size // 4)
            path, ends = self._folder / f"{group}.arrow", [0]
            with OSFile(str(path), "wb") as sink:
                writer = None
                for batch in file.iter_batches(at_once, [group], [self.column]):
                    writer = writer or ipc.new_file(sink, batch.schema)
                    writer.write_batch(batch)
                    ends.append(ends[-1] + len(batch))
                if writer is not None:
                    writer.close()
        self._written[group] = path, ends[1:]
        return self._written[group]

    @cached_property
    def _folder(self) -> Path:
        """Of the temporary files; gone with these cells."""
        folder = mkdtemp(prefix="workbench-")
        finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return Path(folder)


class StoredCell:
    """A picture's cell in a table that stays on disk.

    Args:
        read: Gives what stands in the cell: bytes, `{bytes, path}`, a path, or None.
        name: What messages call it.
    """

    def __init__(self, read: Callable[[], Any], name: str) -> None:
        self.read, self.name = read, name

    def stream(self) -> BinaryIO:
        """The bytes of the picture."""
        value = self.read()
        return io.BytesIO(value["bytes"] if isinstance(value, dict) else value)


class Pictures:
    """The pictures of one set: found by what their cells hold, each one object however many rows share it.

    Args:
        places: Where names are looked up, in this order: folders and archives.
    """

    def __init__(self, places: Sequence[str | Path]) -> None:
        self.places = [_place(Path(place)) for place in places]
        self._known: dict[str, Picture] = {}

    def open(self, cell: Any) -> Image.Image | None:
        """The picture of a cell: a name, bytes, the Hub's `{bytes, path}`, or a PIL image; None for an empty one.

        Raises:
            NoPictureError: No place has a picture of that name.
            PromptError: The name is none that may be used, or the picture cannot be read.
        """
        name = ""
        if isinstance(cell, StoredCell):
            value = cell.read()
            if value is None or isinstance(value, str) or (isinstance(value, dict) and value.get("bytes") is None):
                return self.open(value)
            return Picture(cell.stream, cell.name)
        if isinstance(cell, dict) and {"bytes", "path"} & set(cell) and set(cell) <= {"bytes", "path"}:
            name, cell = str(cell.get("path") or ""), cell.get("bytes") or cell.get("path")
        if cell is None or cell == "":
            return None
        if isinstance(cell, Image.Image):
            return as_rgb(cell)
        if isinstance(cell, bytes | bytearray):
            return picture_of_bytes(bytes(cell), name or f"{len(cell)} bytes")
        if isinstance(cell, tuple) and all(isinstance(name, str) for name in cell):
            return self.named(*filter(None, cell))
        if not isinstance(cell, str | Path):
            raise PromptError(f"image must be text; got {type(cell).__name__}")
        return self.named(str(cell))

    def named(self, *names: str) -> Picture:
        """The picture under the first of some names that there is."""
        for name in names:
            _check_name(name)
            if name in self._known:
                return self._known[name]
            for place in self.places:
                if (stream := place.find(name)) is not None:
                    return self._known.setdefault(name, Picture(stream, name))
        hint = "; use / between folders" if "\\" in names[0] else ""
        looked = " and ".join(map(str, self.places)) or "any folder: give images=DIR, the folder that holds it"
        raise NoPictureError(f"image {names[0]!r} does not exist in {looked}{hint}")


def _check_name(name: str) -> None:
    if "://" in name or name.startswith("data:"):
        raise PromptError(f"image {name[:80]!r} is an address; nothing is fetched. Save the picture beside the file")
    if max(map(len, name.split("/"))) > LONGEST_NAME:
        raise PromptError(f"image {plainly(name)} is no usable path: names have at most {LONGEST_NAME} characters")
    if Path(name).is_absolute() or name[1:3] in (":\\", ":/"):
        raise PromptError(f"image {name!r} must be a path relative to the prompt file, not an absolute one")


def _place(path: Path) -> Place:
    if path.is_dir():
        return Folder(path)
    if not path.is_file():
        raise PromptError(f"There is no folder or archive of pictures {path}.")
    kinds: dict[str, Callable[[Path], Place]] = dict(zip(ARCHIVES, (Zip, Tar), strict=True))
    if path.suffix.lower() not in kinds:
        raise PromptError(
            f"Pictures are read from a folder, a {' or a '.join(ARCHIVES)}; got {path.name!r}. Unpack it."
        )
    return kinds[path.suffix.lower()](path)


def _blobs(folder: Path) -> list[Path]:
    """The folder into which the files of a Hub cache's snapshot are links; none for any other folder."""
    folder = folder.absolute()
    for snapshots in (folder, *folder.parents):
        repository = snapshots.parent
        if snapshots.name == "snapshots" and repository.name.partition("--")[0] in ("datasets", "models"):
            return [(repository / "blobs").resolve()]
    return []
