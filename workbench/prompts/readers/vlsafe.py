"""VLSafe: unsafe requests beside COCO photographs."""

from collections.abc import Iterator

from workbench.prompts.readers.layout import Layout, Reader
from workbench.prompts.tables import Row

COCO = ("", "train2017/", "coco/train2017/", "images/")


def coco_names(name: str) -> tuple[str, ...]:
    """Where a COCO picture may lie."""
    return tuple(folder + name for folder in COCO)


def read(layout: Layout, part: str) -> Iterator[Row]:
    """The rows of a part, published as JSON lines or, by others, as a CSV."""
    path = layout.file(part)
    if path.suffix == ".csv":
        rows = layout.rows(path, "image_path", "jailbreak_query", optional=("id",))
        image, text = "image_path", "jailbreak_query"
    else:
        rows = layout.rows(path, "image_id", "query", optional=("caption", "reference"))
        image, text = "image_id", "query"
    for row in rows:
        name = row.cells[image].rsplit("/", 1)[-1]
        cells = {
            "id": f"{part}-{row.number}",
            "text": row.cells[text],
            "label": "unsafe",
            "family": "photograph",
            "image": (row.cells[image], *coco_names(name)),
        }
        yield row._replace(cells=cells)


READER = Reader(
    name="vlsafe",
    title="VLSafe",
    licence="not found; the pictures are COCO's",
    where="github.com/Yangyi-Chen/DRESS; pictures: COCO train2017",
    files={
        "examine": ("VLSafe/harmlessness_examine.jsonl", "harmlessness_examine.jsonl", "*/harmlessness_examine.jsonl"),
        "queries": ("VLSafe/harmlessness_queries.csv", "harmlessness_queries.csv"),
        "selection": ("VLSafe/vlsafe.csv", "vlsafe.csv"),
        "alignment": ("VLSafe/harmlessnss_alignment.jsonl", "harmlessnss_alignment.jsonl"),
    },
    columns="examine, alignment: image_id, caption, query; queries, selection: image_path, jailbreak_query",
    labels="all unsafe",
    counts={
        "examine": {"prompts": 1110, "unsafe": 1110, "pictures": 1110},
        "queries": {"prompts": 1110, "unsafe": 1110, "pictures": 1110},
        "selection": {"prompts": 50, "unsafe": 50, "pictures": 50},
        "alignment": {},
    },
    source="Chen et al., DRESS (arXiv 2311.10081)",
    read=read,
    images=(".", "images", "VLSafe", "VLSafe/images", "train2017.zip"),
)
