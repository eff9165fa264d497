"""VisualAdv: adversarial pictures, each beside every instruction of a list."""

from collections.abc import Iterator

from workbench.prompts.readers.layout import Layout, Reader
from workbench.prompts.tables import Row

CONSTRAINTS = ("16", "32", "64", "unconstrained")
# A person's own requests come before the forty published ones.
REQUESTS = ("requests.txt", "harmful_corpus/manual_harmful_instructions.csv", "manual_harmful_instructions.csv")


def read(layout: Layout, part: str) -> Iterator[Row]:
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


READER = Reader(
    name="visualadv",
    title="VisualAdv",
    licence="none stated in its repository",
    where="github.com/Unispac/Visual-Adversarial-Examples-Jailbreak-Large-Language-Models",
    files=dict.fromkeys(reversed(CONSTRAINTS), REQUESTS),
    columns="no header: an instruction and an empty cell; or a request a line in requests.txt",
    labels="all unsafe",
    counts={part: {"prompts": 40, "unsafe": 40, "pictures": 1} for part in CONSTRAINTS},
    source="Qi et al., Visual adversarial examples (arXiv 2306.13213)",
    read=read,
)
