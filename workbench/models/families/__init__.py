"""Which architectures the workbench can mask, by transformers' model type: `FAMILIES`, `family_of`."""

from workbench.errors import ModelError
from workbench.models.families import (
    cohere,
    gemma,
    idefics,
    internvl,
    llama4,
    llava,
    mistral3,
    mllama,
    phi,
    qwen_vl,
    text,
)
from workbench.models.families.family import Family

FAMILIES: dict[str, Family] = {
    family.name: family
    for module in (llava, qwen_vl, cohere, phi, gemma, internvl, idefics, llama4, mistral3, mllama, text)
    for family in module.FAMILIES
}


def family_of(model_type: str) -> Family:
    """The family of a transformers `model_type`; a ModelError that lists the known ones otherwise."""
    if model_type not in FAMILIES:
        raise ModelError(
            f"No adapter for model type {model_type!r}. Supported: {', '.join(sorted(FAMILIES))}. "
            "CONTRIBUTING.md shows the 30 lines that add one."
        )
    return FAMILIES[model_type]
