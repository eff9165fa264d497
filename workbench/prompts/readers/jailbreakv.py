"""JailbreakV-28K: text jailbreaks beside any picture, FigStep's lists, and pictures made from the request."""

from collections.abc import Iterator

from workbench.errors import PromptError
from workbench.prompts.readers.layout import Layout, Reader
from workbench.prompts.tables import Row

COLUMNS = (
    "id", "jailbreak_query", "redteam_query", "format", "policy", "image_path", "from", "selected_mini",
    "transfer_from_llm",
)  # fmt: skip
# By the published format, case dropped.
FAMILIES = {
    "template": "llm_transfer",
    "persuade": "llm_transfer",
    "logic": "llm_transfer",
    "figstep": "figstep",
    "sd": "query_relevant",
    "sd_typo": "query_relevant",
    "typo": "query_relevant",
}
# The policy that the two files of the set name differently.
POLICIES = {"Child Abuse Content": "Child Abuse"}


def read(layout: Layout, part: str) -> Iterator[Row]:
    """A row a jailbreak; `redteam` holds the 2,000 plain requests. `columns={"text": "redteam_query"}` asks plainly."""
    path = layout.file(part)
    if part == "redteam":
        for row in layout.rows(path, "id", "question", "policy", "from"):
            yield row._replace(cells=_cells(row, part, row.cells["question"], "text"))
        return
    text = layout.columns.get("text", "jailbreak_query")
    for row in layout.rows(path, *COLUMNS):
        kind = row.cells["format"].strip().lower()
        if kind not in FAMILIES:
            raise PromptError(
                f"{path}, {row.place}: the format {row.cells['format']!r} is none of {', '.join(FAMILIES)}."
            )
        cells = _cells(row, part, row.cells[text], FAMILIES[kind])
        yield row._replace(cells=cells | {"image": row.cells["image_path"]})


def _cells(row: Row, part: str, text: str, family: str) -> dict[str, str]:
    policy = row.cells["policy"].strip()
    return {
        "id": f"{part}-{row.cells['id']}",
        "text": text,
        "label": "unsafe",
        "family": family,
        "category": POLICIES.get(policy, policy),
    }


def _files(name: str) -> tuple[str, ...]:
    return f"JailBreakV_28K/{name}", name, f"*/{name}"


READER = Reader(
    name="jailbreakv",
    title="JailBreakV-28K",
    licence="MIT",
    where="huggingface.co/datasets/JailbreakV-28K/JailBreakV-28k",
    files={
        "full": _files("JailBreakV_28K.csv"),
        "mini": _files("mini_JailBreakV_28K.csv"),
        "redteam": _files("RedTeam_2K.csv"),
    },
    columns=f"full, mini: {', '.join(COLUMNS)}; redteam: id, question, policy, from",
    labels="all unsafe",
    counts={
        "full": {"prompts": 28000, "unsafe": 28000},
        "mini": {"prompts": 280, "unsafe": 280},
        "redteam": {"prompts": 2000, "unsafe": 2000, "pictures": 0},
    },
    source="Luo et al., JailBreakV (arXiv 2404.03027)",
    read=read,
    images=("JailBreakV_28K", ".", "images"),
)
