"""IFEval: ordinary requests with checkable instructions, here without the checks."""

from collections.abc import Iterator

from workbench.prompts.readers.layout import Layout, Reader
from workbench.prompts.tables import Row


def read(layout: Layout, part: str) -> Iterator[Row]:
    for row in layout.rows(layout.file(part), "key", "prompt", "instruction_id_list", optional=("kwargs",)):
        kinds = row.cells["instruction_id_list"]
        cells = {"id": f"{part}-{row.cells['key']}", "text": row.cells["prompt"], "label": "safe", "family": "text"}
        yield row._replace(cells=cells | {"category": kinds[0].partition(":")[0] if kinds else ""})


READER = Reader(
    name="ifeval",
    title="IFEval",
    licence="Apache-2.0",
    where="huggingface.co/datasets/google/IFEval",
    files={"prompts": ("ifeval_input_data.jsonl", "input_data.jsonl", "data/input_data.jsonl")},
    columns="key, prompt, instruction_id_list, kwargs",
    labels="all safe: ordinary requests, whose checkers are not used",
    counts={"prompts": {"prompts": 541, "unsafe": 0, "pictures": 0}},
    source="Zhou et al., IFEval (arXiv 2311.07911)",
    read=read,
)
