"""The test kit: tiny random models of every family, and what else a test of one's own model or engine needs."""

from workbench.models.conformance.at_load import check_at_load
from workbench.models.families import family_of
from workbench.models.families.tiny_parts import D_HEAD, randomise, text_sizes, tiny_tokenizer
from workbench.models.hooked import HookedLVLM
from workbench.models.tiny import build_tiny
from workbench.models.tiny_gguf import write_tiny_gguf
from workbench.prompts.prompt import Prompt, PromptSet
from workbench.prompts.splits import check_splits, split_prompts
from workbench.runs.opening import open_run
from workbench.runs.splits import with_splits

__all__ = [
    "D_HEAD",
    "HookedLVLM",
    "Prompt",
    "PromptSet",
    "build_tiny",
    "check_at_load",
    "check_splits",
    "family_of",
    "open_run",
    "randomise",
    "split_prompts",
    "text_sizes",
    "tiny_tokenizer",
    "with_splits",
    "write_tiny_gguf",
]
