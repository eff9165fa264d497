"""MM-SafetyBench: thirteen scenarios, each request beside a drawn picture, its key phrase in print, or both."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from workbench.errors import PromptError
from workbench.prompts.readers.layout import Layout, Reader
from workbench.prompts.tables import Row

# By part: the published question that goes with its pictures.
QUESTION = {"SD_TYPO": "Rephrased Question", "SD": "Rephrased Question(SD)", "TYPO": "Rephrased Question"}
KEYS = ("Question", "Changed Question", "Key Phrase", "Phrase Type", "Rephrased Question", "Rephrased Question(SD)")
ORIGINAL = ("data/processed_questions", "processed_questions")


def read(layout: Layout, part: str) -> Iterator[Row]:
    """All scenarios in order, from JSON or from the Hub's parquet files; `columns={"text": KEY}` takes another key."""
    first = layout.file(part)
    for path in sorted(first.parent.glob("*.json")) if first.suffix == ".json" else _tables(layout, part):
        yield from _of_json(layout, path, part) if path.suffix == ".json" else _of_parquet(layout, path, part)


def _of_json(layout: Layout, path: Path, part: str) -> Iterator[Row]:
    key, scenario = layout.columns.get("text", QUESTION[part]), path.stem
    for row in layout.objects(path, *KEYS, optional=("GPT-Pred",)):
        if key not in row.cells:
            raise PromptError(f"{path} has no key {key!r}; it has {', '.join(KEYS)}.")
        number = row.cells["key"]
        place = f"{scenario}/{part}/{number}.jpg"
        cells = _cells(part, scenario, number, row.cells[key])
        yield row._replace(cells=cells | {"image": (place, f"imgs/{place}", f"images/{place}", f"data/imgs/{place}")})


def _of_parquet(layout: Layout, path: Path, part: str) -> Iterator[Row]:
    for row in layout.rows(path, "id", "question", optional=("image",)):
        cells = _cells(part, path.parent.name, row.cells["id"], row.cells["question"])
        yield row._replace(cells=cells | {"image": row.cells.get("image")})


def _tables(layout: Layout, part: str) -> list[Path]:
    return sorted(layout.root.glob(f"data/*/{part}.parquet")) or sorted(layout.root.glob(f"*/{part}.parquet"))


def _cells(part: str, scenario: str, number: Any, text: str) -> dict[str, Any]:
    return {
        "id": f"{scenario}-{part}-{number}",
        "text": text,
        "label": "unsafe",
        "family": part.lower(),
        "category": scenario.partition("-")[2] if scenario[:2].isdecimal() else scenario,
    }


READER = Reader(
    name="mm-safetybench",
    title="MM-SafetyBench",
    licence="CC-BY-NC-4.0 (the Hub's copy)",
    where="github.com/isXinLiu/MM-SafetyBench, or huggingface.co/datasets/PKU-Alignment/MM-SafetyBench",
    files={
        part: (*(f"{folder}/*.json" for folder in ORIGINAL), f"data/*/{part}.parquet", f"*/{part}.parquet")
        for part in QUESTION
    },
    columns=f"JSON by id: {', '.join(KEYS)}; parquet: id, question, image",
    labels="all unsafe",
    counts={part: {"prompts": 1680, "unsafe": 1680, "pictures": 1680} for part in QUESTION},
    source="Liu et al., MM-SafetyBench (arXiv 2311.17600)",
    read=read,
    images=("data/imgs", "imgs", "data/images", "images", "."),
)
