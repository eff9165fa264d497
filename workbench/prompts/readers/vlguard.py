"""VLGuard: photographs and screenshots; a safe picture carries a safe and an unsafe instruction."""

from collections.abc import Iterator

from workbench.errors import PromptError
from workbench.prompts.readers.layout import Layout, Reader
from workbench.prompts.tables import Row


def read(layout: Layout, part: str) -> Iterator[Row]:
    """A prompt an instruction; the two of a safe picture are a pair."""
    optional = ("harmful_category", "harmful_subcategory")
    path = layout.file(part)
    for row in layout.objects(path, "id", "image", "safe", "instr-resp", optional=optional):
        safe = row.cells["safe"] in (True, "True", "true")
        asked = {
            name: turn[name]
            for turn in row.cells["instr-resp"]
            for name in ("safe_instruction", "unsafe_instruction", "instruction")
            if name in turn
        }
        wanted = {"safe_instruction", "unsafe_instruction"} if safe else {"instruction"}
        if set(asked) != wanted:
            raise PromptError(
                f"{path}, entry {row.number}: a {'safe' if safe else 'unsafe'} picture comes with "
                f"{' and '.join(sorted(wanted))}; got {', '.join(sorted(asked)) or 'none'}."
            )
        for name in sorted(asked):
            family = {"safe_instruction": "safe_safe", "unsafe_instruction": "safe_unsafe"}.get(name, "unsafe")
            picture = row.cells["image"]
            cells = {
                "id": f"{part}-{row.cells['id']}-{family}",
                "text": asked[name],
                "label": "safe" if name == "safe_instruction" else "unsafe",
                "family": family,
                "category": row.cells.get("harmful_category") or "",
                "pair_id": f"{part}-{row.number}" if safe else "",
                "image": (f"{part}/{picture}", picture),
            }
            yield row._replace(cells=cells)


READER = Reader(
    name="vlguard",
    title="VLGuard",
    licence="research use only, as its page on the Hub says",
    where="huggingface.co/datasets/ys-zong/VLGuard",
    files={part: (f"{part}.json", f"data/{part}.json") for part in ("test", "train")},
    columns="id, image, safe, instr-resp; of unsafe pictures harmful_category, harmful_subcategory too",
    labels="the safe instruction on a safe picture is safe; all others are unsafe",
    counts={
        "test": {"prompts": 1558, "unsafe": 1000, "pictures": 1000},
        "train": {"prompts": 2977, "unsafe": 2000, "pictures": 1999},
    },
    source="Zong et al., VLGuard (arXiv 2402.02207)",
    read=read,
    images=(".", "data", "images", "test.zip", "train.zip"),
)
