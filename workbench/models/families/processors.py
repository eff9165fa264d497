"""Processors for machines without torchvision: transformers' own, less the parts that cannot be built there.

transformers' processors of several families demand a video processor, and all video processors demand torchvision. The
video slot is never used here, so `images_only` leaves it out; everything else is the family's own code.
"""

from functools import cache
from typing import Any


@cache
def images_only(processor_class: Any) -> Any:
    """The same processor class without its video slot."""

    def attributes(cls: type) -> list[str]:
        return ["image_processor", "tokenizer"]

    name = processor_class.__name__
    return type(
        name, (processor_class,), {"get_attributes": classmethod(attributes), "__doc__": processor_class.__doc__}
    )


def named_class(module: str, name: str) -> Any:
    """A class from a transformers module; transformers' top level replaces those that lack torchvision by stand-ins."""
    import importlib

    return getattr(importlib.import_module(f"transformers.models.{module}"), name)
