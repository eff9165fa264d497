"""Sets of requests in words, a row each: AdvBench, MaliciousInstruct, JailbreakBench, XSTest, IFEval."""

from collections.abc import Callable, Iterator

from workbench.errors import PromptError
from workbench.prompts.readers.layout import Layout, Reader
from workbench.prompts.tables import Row


def _requests(
    text: str, *columns: str, optional: tuple[str, ...] = (), label: str = "unsafe", category: str = ""
) -> Callable[[Layout, str], Iterator[Row]]:
    """A reader of one request a row: a CSV or JSON lines with these columns, or a text file with a request a line."""

    def read(layout: Layout, part: str) -> Iterator[Row]:
        path = layout.file(part)
        named = path.suffix != ".txt"
        for row in layout.rows(path, text, *columns, optional=optional) if named else layout.lines(path):
            cells = {
                "id": f"{part}-{row.number}",
                "text": row.cells[text if named else "text"],
                "label": "safe" if part == "benign" else label,
                "family": "text",
                "category": (row.cells.get(category) or "") if category else "",
            }
            yield row._replace(cells=cells)

    return read


def _read_xstest(layout: Layout, part: str) -> Iterator[Row]:
    for row in layout.rows(layout.file(part), "id", "prompt", "type", "label", "focus", "note"):
        kind, label = row.cells["type"], row.cells["label"].strip().lower()
        if label not in ("safe", "unsafe") or (label == "unsafe") != kind.startswith("contrast"):
            raise PromptError(f"XSTest, {row.place}: type {kind!r} and label {label!r} contradict each other.")
        cells = {"id": f"{part}-{row.cells['id']}", "text": row.cells["prompt"], "label": label, "family": "text"}
        yield row._replace(cells=cells | {"category": kind})


def _read_ifeval(layout: Layout, part: str) -> Iterator[Row]:
    for row in layout.rows(layout.file(part), "key", "prompt", "instruction_id_list", optional=("kwargs",)):
        kinds = row.cells["instruction_id_list"]
        cells = {"id": f"{part}-{row.cells['key']}", "text": row.cells["prompt"], "label": "safe", "family": "text"}
        yield row._replace(cells=cells | {"category": kinds[0].partition(":")[0] if kinds else ""})


def _all(n: int, unsafe: int) -> dict[str, int]:
    return {"prompts": n, "unsafe": unsafe, "pictures": 0}


READERS = (
    Reader(
        name="advbench",
        title="AdvBench",
        licence="see there",
        where="github.com/llm-attacks/llm-attacks",
        files={
            "behaviors": (
                "harmful_behaviors.csv",
                "data/advbench/harmful_behaviors.csv",
                "advbench/harmful_behaviors.csv",
                "advbench.txt",
                "data/advbench.txt",
            )
        },
        columns="goal, target; or a request a line",
        labels="all unsafe",
        counts={"behaviors": _all(520, 520)},
        source="Zou et al., Universal and transferable adversarial attacks (arXiv 2307.15043)",
        read=_requests("goal", "target"),
    ),
    Reader(
        name="maliciousinstruct",
        title="MaliciousInstruct",
        licence="see there",
        where="github.com/Princeton-SysML/Jailbreak_LLM",
        files={
            "instructions": (
                "MaliciousInstruct.txt",
                "data/MaliciousInstruct.txt",
                "MaliciousInstruct.csv",
                "data/MaliciousInstruct.csv",
            )
        },
        columns="a request a line; or a CSV with the column input",
        labels="all unsafe",
        counts={"instructions": _all(100, 100)},
        source="Huang et al., Catastrophic jailbreak (arXiv 2310.06987)",
        read=_requests("input"),
    ),
    Reader(
        name="jailbreakbench",
        title="JailbreakBench",
        licence="see there",
        where="huggingface.co/datasets/JailbreakBench/JBB-Behaviors",
        files={
            name: (f"data/{name}-behaviors.csv", f"{name}-behaviors.csv", f"{name}_behaviors.csv")
            for name in ("harmful", "benign")
        },
        columns="Goal, Target, Behavior, Category; in later files Index and Source too",
        labels="harmful: all unsafe; benign: all safe",
        counts={"harmful": _all(100, 100), "benign": _all(100, 0)},
        source="Chao et al., JailbreakBench (arXiv 2404.01318)",
        read=_requests("Goal", "Target", "Behavior", "Category", optional=("Index", "Source"), category="Category"),
    ),
    Reader(
        name="xstest",
        title="XSTest",
        licence="CC-BY-4.0",
        where="github.com/paul-rottger/exaggerated-safety",
        files={"prompts": ("xstest_prompts.csv", "data/xstest_prompts.csv", "xstest_v2_prompts.csv")},
        columns="id, prompt, type, label, focus, note",
        labels="as published: the contrast types are unsafe",
        counts={"prompts": _all(450, 200)},
        source="Röttger et al., XSTest (arXiv 2308.01263)",
        read=_read_xstest,
    ),
    Reader(
        name="ifeval",
        title="IFEval",
        licence="see there",
        where="huggingface.co/datasets/google/IFEval",
        files={"prompts": ("ifeval_input_data.jsonl", "input_data.jsonl", "data/input_data.jsonl")},
        columns="key, prompt, instruction_id_list, kwargs",
        labels="all safe: ordinary requests, whose checkers are not used",
        counts={"prompts": _all(541, 0)},
        source="Zhou et al., IFEval (arXiv 2311.07911)",
        read=_read_ifeval,
    ),
)
