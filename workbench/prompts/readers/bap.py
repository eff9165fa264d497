"""BAP: requests in words, each beside every picture of a folder of one's own."""

from collections.abc import Iterator

from workbench.errors import PromptError
from workbench.prompts.readers.layout import Layout, Reader
from workbench.prompts.tables import READERS as TABLES
from workbench.prompts.tables import Row

ENDINGS = (".png", ".bmp", ".jpg", ".jpeg", ".webp")


def read(layout: Layout, part: str) -> Iterator[Row]:
    """Every request beside every picture of the folder `images`; both are a person's own, none are published."""
    folder = layout.root / "images"
    names = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in ENDINGS) if folder.is_dir() else []
    if not names:
        raise PromptError(f"BAP publishes no pictures: put those you made into {folder}.")
    number = 0
    path = layout.file(part)
    rows = list(layout.lines(path) if path.suffix == ".txt" else layout.rows(path, "text", optional=("category",)))
    for name in names:
        for row in rows:
            number += 1
            cells = {
                "id": f"{name.rsplit('.', 1)[0]}-{row.number}",
                "text": row.cells["text"],
                "label": "unsafe",
                "family": "bap",
                "category": row.cells.get("category") or "",
                "image": f"images/{name}",
            }
            yield row._replace(number=number, cells=cells)


READER = Reader(
    name="bap",
    title="BAP",
    licence="none stated in its repository",
    where="github.com/NY1024/BAP-Jailbreak-Vision-Language-Models-via-Bi-Modal-Adversarial-Prompt",
    files={"requests": ("requests.txt", *(f"requests{ending}" for ending in TABLES))},
    columns="a request a line in requests.txt, or a table with text and perhaps category; pictures under images",
    labels="all unsafe",
    counts={"requests": {}},
    source="Ying et al., Jailbreak vision language models via bi-modal adversarial prompt (arXiv 2406.04031)",
    read=read,
)
