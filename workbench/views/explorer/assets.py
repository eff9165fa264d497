"""The browser's code and style: plain ES modules, put after one another where a page takes one script only."""

import re
from functools import cache
from pathlib import Path

STATIC = Path(__file__).parent / "static"
# Each after what it imports.
MODULES = (
    "dom", "state", "statistics", "pen", "data", "heatmap", "maps", "threshold", "distribution", "details", "overlay",
    "strip", "pattern", "looking", "prompts", "overlap", "compare", "steps", "bench", "trace", "save", "hosts",
    "explorer",
)  # fmt: skip
_IMPORT = re.compile(r'^import \{[^}]*\} from "\./\w+\.js";\n', re.M)
_EXPORT = re.compile(r"^export (?=function|const|class|async)", re.M)


@cache
def style() -> str:
    return (STATIC / "style.css").read_text(encoding="utf-8")


@cache
def script() -> str:
    """The modules as one: notebooks and pages without a network cannot import one from another.

    All share one scope, in which the browser refuses a name that two of them declare.
    """
    parts = ((STATIC / f"{name}.js").read_text(encoding="utf-8") for name in MODULES)
    return "".join(_EXPORT.sub("", _IMPORT.sub("", part)) for part in parts)
