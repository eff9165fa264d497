"""Which architectures the workbench can mask, by transformers' model type: `FAMILIES`, `family_of`."""

from workbench.errors import ModelError
from workbench.models.families.family import Family
from workbench.models.families import llava, qwen_vl
from workbench.models.families.llama import LLAMA

FAMILIES: dict[str, Family] = {f.name: f for f in (*llava.FAMILIES, *qwen_vl.FAMILIES, LLAMA)}


def family_of(model_type: str) -> Family:
    """The family of a transformers `model_type`; a ModelError that lists the known ones otherwise."""
    if model_type not in FAMILIES:
        raise ModelError(
            f"No adapter for model type {model_type!r}. Supported: {', '.join(sorted(FAMILIES))}. "
            "CONTRIBUTING.md shows the 30 lines that add one."
        )
    return FAMILIES[model_type]
