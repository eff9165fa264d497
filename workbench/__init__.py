"""Find, compare and use the attention heads that carry safety inside vision-language models.

The public names below are imported when first used: `import workbench` loads no weights, touches no GPU, and changes
no setting of the process.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from workbench.errors import lacking

if TYPE_CHECKING:
    from workbench import plot, studies
    from workbench.attacks import attack
    from workbench.comparison import arena, faithfulness
    from workbench.criteria import score, top_heads
    from workbench.finding.find import find_heads
    from workbench.models.hooked import HookedLVLM
    from workbench.models.loading import load_model
    from workbench.models.masks import Mask
    from workbench.prompts import load_prompts, mix
    from workbench.prompts.prompt import Prompt, PromptSet
    from workbench.replies import generate
    from workbench.runs.opening import open_run
    from workbench.studies import study
    from workbench.sweeps.forecast import plan
    from workbench.sweeps.sweep import sweep
    from workbench.tracing.stored import open_trace
    from workbench.tracing.trace import trace
    from workbench.views.explorer.explore import explore
    from workbench.views.explorer.page import save_report
    from workbench.views.figures.save import save_figures

_HOME = {
    "HookedLVLM": "workbench.models.hooked",
    "Mask": "workbench.models.masks",
    "Prompt": "workbench.prompts.prompt",
    "PromptSet": "workbench.prompts.prompt",
    "arena": "workbench.comparison",
    "attack": "workbench.attacks",
    "explore": "workbench.views.explorer.explore",
    "faithfulness": "workbench.comparison",
    "find_heads": "workbench.finding.find",
    "generate": "workbench.replies",
    "load_model": "workbench.models.loading",
    "load_prompts": "workbench.prompts",
    "mix": "workbench.prompts",
    "open_run": "workbench.runs.opening",
    "open_trace": "workbench.tracing.stored",
    "plan": "workbench.sweeps.forecast",
    "save_figures": "workbench.views.figures.save",
    "save_report": "workbench.views.explorer.page",
    "score": "workbench.criteria",
    "study": "workbench.studies",
    "sweep": "workbench.sweeps.sweep",
    "top_heads": "workbench.criteria",
    "trace": "workbench.tracing.trace",
}
__version__ = "0.1.0"
__all__ = [
    "HookedLVLM",
    "Mask",
    "Prompt",
    "PromptSet",
    "__version__",
    "arena",
    "attack",
    "explore",
    "faithfulness",
    "find_heads",
    "generate",
    "load_model",
    "load_prompts",
    "mix",
    "open_run",
    "open_trace",
    "plan",
    "plot",
    "save_figures",
    "save_report",
    "score",
    "studies",
    "study",
    "sweep",
    "top_heads",
    "trace",
]


def __getattr__(name: str) -> Any:
    if name in ("plot", "studies"):
        return import_module(f"workbench.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'workbench' has no attribute {name!r}; it has {', '.join(__all__)}")
    try:
        return getattr(import_module(_HOME[name]), name)
    except ModuleNotFoundError as error:
        raise lacking(error) from error


def __dir__() -> list[str]:
    return sorted(__all__)
