"""AdvBench: unsafe requests in words."""

from workbench.prompts.readers.layout import Reader, request_rows

READER = Reader(
    name="advbench",
    title="AdvBench",
    licence="MIT",
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
    counts={"behaviors": {"prompts": 520, "unsafe": 520, "pictures": 0}},
    source="Zou et al., Universal and transferable adversarial attacks (arXiv 2307.15043)",
    read=request_rows("goal", "target"),
)
