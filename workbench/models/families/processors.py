"""Processors that need no torchvision, and are the same where it is installed.

transformers' processors of several families demand a video processor, and all video processors demand torchvision. The
video slot is never used here, so `images_only` leaves it out; everything else is the family's own code. Pictures are
read with Pillow everywhere: with torchvision they come out up to a grey level different, and have no way back for
gradients (`workbench.models.pixels`).
"""

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any


def named_class(name: str) -> Any:
    """A processor class of transformers, by its name, or by `"internvl.InternVLProcessor"`.

    transformers' top level replaces classes that lack torchvision by stand-ins; the second form goes past it.
    """
    import transformers

    model, _, name = name.rpartition(".")
    return getattr(
        importlib.import_module(f"transformers.models.{model}.processing_{model}") if model else transformers, name
    )


@cache
def images_only(name: str) -> Any:
    """The same processor class without its video slot."""
    original = named_class(name)
    attributes = classmethod(lambda cls: ["image_processor", "tokenizer"])
    return type(original.__name__, (original,), {"get_attributes": attributes, "__doc__": original.__doc__})


def loads(found: Callable[[], Any]) -> Callable[[str, dict[str, Any]], Any]:
    """A `Family.processor` that loads the class that `found` gives."""
    return lambda where, options: found().from_pretrained(where, **options)


def with_pillow(processor: Any, where: str, options: dict[str, Any]) -> Any:
    """A processor just loaded, its pictures read with Pillow where transformers chose torchvision and knows both."""
    from transformers import AutoImageProcessor
    from transformers.image_processing_backends import TorchvisionBackend

    if isinstance(getattr(processor, "image_processor", None), TorchvisionBackend):
        processor.image_processor = AutoImageProcessor.from_pretrained(where, backend="pil", **options)
    return processor


def load_with_our_images(
    where: str, options: dict[str, Any], *, processor: str, images: str, hears: bool = False, settings: bool = False
) -> Any:
    """The processor with an image processor of `pil_images`: transformers' own needs torchvision.

    Args:
        hears: It has a feature extractor for sound too.
        settings: Its own settings are kept in the checkpoint.
    """
    from transformers import AutoFeatureExtractor, AutoTokenizer

    from workbench.models.families import pil_images

    parts = [getattr(pil_images, images).from_pretrained(where, **options)]
    if hears:
        parts.append(AutoFeatureExtractor.from_pretrained(where, **options))
    tokenizer, kept = AutoTokenizer.from_pretrained(where, **options), {}
    if settings:
        stored, _ = named_class(processor).get_processor_dict(where, **options)
        kept = {k: v for k, v in stored.items() if k not in ("image_processor", "processor_class", "tokenizer")}
    return named_class(processor)(*parts, tokenizer, **{"chat_template": tokenizer.chat_template} | kept)
