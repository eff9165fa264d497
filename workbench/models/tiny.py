"""Tiny random models of transformers' real classes, built offline: for `workbench check FAMILY --tiny` and the tests.

Each family's own file says how its tiny one is made, from the parts in `workbench.models.families.tiny_parts`.
"""

import torch

from workbench.errors import ModelError
from workbench.models.families import FAMILIES, family_of
from workbench.models.families.family import TinyParts
from workbench.models.families.tiny_parts import cast, randomise
from workbench.models.hooked import HookedLVLM


def build_tiny(name: str, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> HookedLVLM:
    """The tiny random model of a family, not yet checked.

    Raises:
        ModelError: For an unknown family.
    """
    family = family_of(name)
    if family.tiny is None:
        raise ModelError(
            f"Family {name!r} has no tiny model. Those that have: "
            f"{', '.join(n for n, f in FAMILIES.items() if f.tiny)}."
        )
    parts: TinyParts = family.tiny()
    cast(randomise(parts.hf), dtype)
    return HookedLVLM(
        parts.hf.to(device), family, name=f"tiny {name}", tokenizer=parts.tokenizer, processor=parts.processor
    )
