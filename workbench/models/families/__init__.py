"""Which architectures the workbench can mask, by transformers' model type."""

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
from workbench.registry import Registry

FAMILIES: Registry[Family] = Registry(
    "model family",
    (
        family
        for module in (llava, qwen_vl, cohere, phi, gemma, internvl, idefics, llama4, mistral3, mllama, text)
        for family in module.FAMILIES
    ),
    error=ModelError,
)
register_family = FAMILIES.register
"""Make a family known in this process; one of the same name is replaced. Prove it with `conformance`."""

# What a new family needs, for a model type that is not known; CONTRIBUTING.md walks through a worked one.
TEMPLATE = """
    from functools import partial

    from workbench.models.families import register_family
    from workbench.models.families.family import Family
    from workbench.models.families.tiny_parts import WIDE, tiny_parts

    register_family(
        Family(
            name="{model_type}",
            architecture="{architecture}",   # transformers' class
            has_images=False,                 # with pictures: True, and more for tiny_parts (see its docstring)
            layers="layers",                  # names inside the decoder, hf.get_decoder()
            norm="norm",
            attention="self_attn",            # inside a layer; its output projection is
            output="o_proj",
            query_norm=False,                 # True if a norm follows the query projection
            sliding=False,                    # True if some layers see only a window
            # A small random model: add two kinds of layer if it has two, by the names in its configuration.
            tiny=partial(tiny_parts, "{model_type}", WIDE),
        )
    )

    from workbench.models.conformance.report import conformance
    from workbench.models.tiny import build_tiny
    print(conformance(build_tiny("{model_type}")).verdict)
"""


def family_of(model_type: str) -> Family:
    """The family of a `model_type`; else a ModelError that lists the known ones and shows how to add it."""
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    words = "".join(part.capitalize() for part in model_type.replace("-", "_").split("_")) or "Your"
    template = TEMPLATE.format(model_type=model_type or "your_type", architecture=f"{words}ForCausalLM")
    raise ModelError(
        f"No family for model type {model_type!r}. Supported: {', '.join(sorted(FAMILIES))}.\n"
        "If transformers has a class for it, these lines may be all it takes (CONTRIBUTING.md, 'Add a model family'):\n"
        f"{template}"
    )
