"""JailbreakBench: unsafe requests in words, and safe ones on the same topics."""

from workbench.prompts.readers.layout import Reader, request_rows

READER = Reader(
    name="jailbreakbench",
    title="JailbreakBench",
    licence="MIT",
    where="huggingface.co/datasets/JailbreakBench/JBB-Behaviors",
    files={
        name: (f"data/{name}-behaviors.csv", f"{name}-behaviors.csv", f"{name}_behaviors.csv")
        for name in ("harmful", "benign")
    },
    columns="Goal, Target, Behavior, Category; in later files Index and Source too",
    labels="harmful: all unsafe; benign: all safe",
    counts={
        "harmful": {"prompts": 100, "unsafe": 100, "pictures": 0},
        "benign": {"prompts": 100, "unsafe": 0, "pictures": 0},
    },
    source="Chao et al., JailbreakBench (arXiv 2404.01318)",
    read=request_rows("Goal", "Target", "Behavior", "Category", optional=("Index", "Source"), category="Category"),
)
