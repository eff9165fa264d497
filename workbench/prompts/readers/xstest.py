"""XSTest: safe requests that sound unsafe, and unsafe ones beside them."""

from collections.abc import Iterator

from workbench.errors import PromptError
from workbench.prompts.readers.layout import Layout, Reader
from workbench.prompts.tables import Row


def read(layout: Layout, part: str) -> Iterator[Row]:
    for row in layout.rows(layout.file(part), "id", "prompt", "type", "label", "focus", "note"):
        kind, label = row.cells["type"], row.cells["label"].strip().lower()
        if label not in ("safe", "unsafe") or (label == "unsafe") != kind.startswith("contrast"):
            raise PromptError(f"XSTest, {row.place}: type {kind!r} and label {label!r} contradict each other.")
        cells = {"id": f"{part}-{row.cells['id']}", "text": row.cells["prompt"], "label": label, "family": "text"}
        yield row._replace(cells=cells | {"category": kind})


READER = Reader(
    name="xstest",
    title="XSTest",
    licence="CC-BY-4.0",
    where="github.com/paul-rottger/exaggerated-safety",
    files={"prompts": ("xstest_prompts.csv", "data/xstest_prompts.csv", "xstest_v2_prompts.csv")},
    columns="id, prompt, type, label, focus, note",
    labels="as published: the contrast types are unsafe",
    counts={"prompts": {"prompts": 450, "unsafe": 200, "pictures": 0}},
    source="Röttger et al., XSTest (arXiv 2308.01263)",
    read=read,
)
