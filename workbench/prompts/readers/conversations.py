"""Ordinary questions about pictures in LLaVA's layout of conversations, which several sets share."""

from collections.abc import Iterator

from workbench.errors import PromptError
from workbench.prompts.readers.layout import Layout, Reader
from workbench.prompts.readers.vlsafe import coco_names
from workbench.prompts.tables import Row

MARK = "<image>"


def read(layout: Layout, part: str) -> Iterator[Row]:
    """The first question of each conversation; or the rows of the CSV that One Head's release has."""
    path = layout.file(part)
    if path.suffix == ".csv":
        # Benign rows too stand under jailbreak_query there.
        for row in layout.rows(path, "id", "jailbreak_query", "image_path"):
            yield _row(row, part, row.cells["id"], row.cells["jailbreak_query"], row.cells["image_path"])
        return
    for row in layout.objects(path, "id", "conversations", optional=("image", "model")):
        turns = row.cells["conversations"]
        if not turns or turns[0].get("from") != "human":
            raise PromptError(f"{path}, entry {row.number}: a conversation begins with a human turn.")
        text = turns[0]["value"].replace(MARK, "").strip()
        yield _row(row, part, row.cells["id"], text, row.cells.get("image") or "")


def _row(row: Row, part: str, id_: str, text: str, image: str) -> Row:
    cells = {"id": f"{part}-{id_}", "text": text, "label": "safe", "family": "question"}
    names = (image, *coco_names(image.rsplit("/", 1)[-1])) if image else None
    return row._replace(cells=cells | {"image": names, "category": image.split("/")[0] if "/" in image else ""})


def conversations(
    name: str, title: str, licence: str, published: str, n: int, release: str, folder: str, where: str, source: str
) -> Reader:
    """The record of a set in this layout.

    Args:
        name: As `load_prompts` takes it.
        title: The set's own name.
        licence: Under which it is published.
        published: Its file.
        n: How many conversations that holds.
        release: The file of 500 rows that One Head's release has, in `folder` there.
        folder: Likewise.
        where: Where to get it.
        source: Where it is described.
    """
    return Reader(
        name=name,
        title=title,
        licence=licence,
        where=where,
        files={"full": (published, f"*/{published}"), "release": (f"{folder}/{release}", release)},
        columns="full: id, image, conversations; release: id, jailbreak_query, image_path",
        labels="all safe",
        counts={
            "full": {"prompts": n, "unsafe": 0},
            "release": {"prompts": 500, "unsafe": 0, "pictures": 500},
        },
        source=source,
        read=read,
        images=(".", "images", folder, f"{folder}/images", "train2017.zip"),
    )
