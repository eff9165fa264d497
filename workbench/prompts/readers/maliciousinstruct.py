"""MaliciousInstruct: unsafe requests in words."""

from workbench.prompts.readers.layout import Reader, request_rows

READER = Reader(
    name="maliciousinstruct",
    title="MaliciousInstruct",
    licence="none stated in its repository",
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
    counts={"instructions": {"prompts": 100, "unsafe": 100, "pictures": 0}},
    source="Huang et al., Catastrophic jailbreak (arXiv 2310.06987)",
    read=request_rows("input"),
)
