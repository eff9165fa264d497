"""MM-Vet: ordinary questions that need several skills at once."""

from collections.abc import Iterator

from workbench.errors import PromptError
from workbench.prompts.readers.layout import Layout, Reader
from workbench.prompts.tables import Row


def read(layout: Layout, part: str) -> Iterator[Row]:
    """The questions of the set's own file, or of the list of 218 that HiddenDetect has."""
    path = layout.file(part)
    if part == "list":
        for row in layout.objects(path, "id", "txt", "img", "toxicity"):
            if row.cells["toxicity"] not in (0, 1):
                raise PromptError(f"{path}, entry {row.number}: toxicity is 0 or 1; got {row.cells['toxicity']!r}.")
            label = "unsafe" if row.cells["toxicity"] else "safe"
            yield _row(row, part, row.cells["id"], row.cells["txt"], row.cells["img"], label=label)
        return
    for row in layout.objects(path, "imagename", "question", "answer", "capability", "imagesource"):
        cells = row.cells
        yield _row(
            row, part, cells["key"], cells["question"], cells["imagename"], "+".join(sorted(cells["capability"]))
        )


def _row(row: Row, part: str, id_: str, text: str, image: str | None, category: str = "", label: str = "safe") -> Row:
    name = (image or "").rsplit("/", 1)[-1]
    names = (image, name, f"mm-vet/images/{name}", f"images/{name}", f"mm-vet/{name}") if image else None
    cells = {"id": f"{part}-{id_}", "text": text, "label": label, "family": "question", "category": category}
    return row._replace(cells=cells | {"image": names})


READER = Reader(
    name="mm-vet",
    title="MM-Vet",
    licence="CC-BY-NC-4.0",
    where="github.com/yuweihao/MM-Vet",
    files={
        "questions": ("mm-vet/mm-vet.json", "mm-vet.json"),
        "list": ("mm-vet_metadata.json", "data/MM-Vet/mm-vet_metadata.json", "MM-Vet/mm-vet_metadata.json"),
    },
    columns="questions, by id: imagename, question, answer, capability, imagesource; list: id, txt, img, toxicity",
    labels="questions: all safe; list: as its toxicity says",
    counts={"questions": {"prompts": 218, "unsafe": 0}, "list": {"prompts": 218, "unsafe": 0}},
    source="Yu et al., MM-Vet (arXiv 2308.02490)",
    read=read,
    images=(".", "mm-vet/images", "images", "data/MM-Vet"),
)
