"""Sets of adversarial pictures, each beside every request of a text set: VisualAdv, BAP."""

from collections.abc import Iterator

from workbench.errors import PromptError
from workbench.prompts.readers.layout import Layout, Reader
from workbench.prompts.tables import READERS as TABLES
from workbench.prompts.tables import Row

CONSTRAINTS = ("16", "32", "64", "unconstrained")
# A person's own requests come before the forty published ones.
REQUESTS = ("requests.txt", "harmful_corpus/manual_harmful_instructions.csv", "manual_harmful_instructions.csv")
ENDINGS = (".png", ".bmp", ".jpg", ".jpeg", ".webp")


def read_visualadv(layout: Layout, part: str) -> Iterator[Row]:
    """The set's forty instructions, or those of a `requests.txt` in their place, beside one picture."""
    name = "prompt_unconstrained.bmp" if part == "unconstrained" else f"prompt_constrained_{part}.bmp"
    path = layout.file(part)
    if path.suffix == ".csv":
        rows = layout.rows(path, header=("text", "second"), optional=("text", "second"))
    else:
        rows = layout.lines(path)
    for row in rows:
        cells = {
            "id": f"{part}-{row.number}",
            "text": row.cells["text"],
            "label": "unsafe",
            "family": f"visualadv_{part}",
            "image": (f"adversarial_images/{name}", name),
        }
        yield row._replace(cells=cells)


def read_bap(layout: Layout, part: str) -> Iterator[Row]:
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


READERS = (
    Reader(
        name="visualadv",
        title="VisualAdv",
        licence="see there",
        where="github.com/Unispac/Visual-Adversarial-Examples-Jailbreak-Large-Language-Models",
        files=dict.fromkeys(
            reversed(CONSTRAINTS),
            ("requests.txt", "harmful_corpus/manual_harmful_instructions.csv", "manual_harmful_instructions.csv"),
        ),
        columns="no header: an instruction and an empty cell; or a request a line in requests.txt",
        labels="all unsafe",
        counts={part: {"prompts": 40, "unsafe": 40, "pictures": 1} for part in CONSTRAINTS},
        source="Qi et al., Visual adversarial examples (arXiv 2306.13213)",
        read=read_visualadv,
    ),
    Reader(
        name="bap",
        title="BAP",
        licence="see there",
        where="github.com/NY1024/BAP-Jailbreak-Vision-Language-Models-via-Bi-Modal-Adversarial-Prompt",
        files={"requests": ("requests.txt", *(f"requests{ending}" for ending in TABLES))},
        columns="a request a line in requests.txt, or a table with text and perhaps category; pictures under images",
        labels="all unsafe",
        counts={"requests": {}},
        source="Ying et al., Jailbreak vision language models via bi-modal adversarial prompt (arXiv 2406.04031)",
        read=read_bap,
    ),
)
