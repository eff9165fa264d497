"""Published sets, read by name from a folder on this machine; nothing is fetched.

One file a set in this folder, with a record `READER`; a new file is a new reader.
"""

import logging
import pkgutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path

from workbench.errors import PromptError
from workbench.prompts.files import prompts_of_table
from workbench.prompts.places import Pictures
from workbench.prompts.prompt import PromptSet
from workbench.prompts.readers.layout import Layout, Reader
from workbench.prompts.tables import Row, Table
from workbench.registry import Registry

log = logging.getLogger(__name__)


@cache
def readers() -> Registry[Reader]:
    """Every published set that is read by name, in order."""
    modules = (import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__))
    found = filter(None, (getattr(module, "READER", None) for module in modules))
    return Registry("published set", sorted(found, key=lambda reader: reader.name), error=PromptError)


def read_set(
    name: str,
    root: str | Path,
    *,
    part: str | None = None,
    images: Sequence[str | Path] = (),
    missing: str = "raise",
    columns: Mapping[str, str | None] | None = None,
) -> PromptSet:
    """The prompts of a published set.

    Args:
        name: Of its reader.
        root: The folder it was unpacked in.
        part: Which part of the set; the main one that is there by default, as the log says.
        images: More folders and archives with its pictures.
        missing: `"raise"`, or `"drop"` for leaving out prompts whose picture is not there.
        columns: Which column to take for a field, where the set has several that would do.

    Raises:
        PromptError: No such part, a file that is not as published, or pictures that are not there.
    """
    reader = readers().named(name)
    layout = Layout(reader, root, columns)
    if part is None:
        part = next(iter(layout.parts()), next(iter(reader.files)))
        if len(reader.files) > 1:
            log.info("%s: the part %s is read, of %s", reader.title, part, ", ".join(reader.files))
    if part not in reader.files:
        raise PromptError(f"{reader.title} has the parts {', '.join(reader.files)}; got {part!r}.")
    table = rows_of(reader, layout, part)
    pictures = pictures_of(reader, layout, images)
    return prompts_of_table(
        table, f"{reader.title}, part {part}, in {layout.root}", pictures, name=name, missing=missing
    )


def pictures_of(reader: Reader, layout: Layout, images: Sequence[str | Path]) -> Pictures:
    """Where the pictures of a set are looked for: where it unpacks them, beside its files, and in `images`."""
    inside = [layout.root / place for place in reader.images]
    return Pictures([*(place for place in inside if place.exists()), *images])


def rows_of(reader: Reader, layout: Layout, part: str) -> Table:
    """The rows of a part, under our names, ids made distinct."""
    rows = list(_distinct(reader.read(layout, part), reader.name))
    return Table(list(dict.fromkeys(name for row in rows for name in row.cells)), rows)


def _distinct(rows: Iterable[Row], source: str) -> Iterator[Row]:
    """The rows with a source, and ids that a published set gives twice told apart by a number."""
    seen: Counter[str] = Counter()
    for row in rows:
        id_ = str(row.cells["id"])
        seen[id_] += 1
        cells = {"source": source, **row.cells, "id": id_ if seen[id_] == 1 else f"{id_}#{seen[id_]}"}
        yield row._replace(cells=cells)
    if twice := [id_ for id_, count in seen.items() if count > 1]:
        log.info("%s: %d ids stand for several rows; the later ones got a number: %s", source, len(twice), twice[0])
