"""Models that people hold already: a transformers model, one wrapped in peft's adapters, a TransformerLens bridge."""

import copy
from typing import Any

from transformers import PreTrainedModel

from workbench.errors import ModelError
from workbench.models.checkpoint import attempt
from workbench.models.families import family_of
from workbench.models.hooked import HookedLVLM


def around(held: Any, processor: Any) -> HookedLVLM:
    """The workbench's model around one that is loaded already.

    Raises:
        ModelError: It is none of these, or what it needs beside it is not there.
    """
    kind = type(held).__name__
    if hasattr(held, "peft_config"):
        hf = _adapted(held, kind)
    elif hasattr(held, "original_model"):
        hf = attempt(kind, "the model inside it", lambda: _unbridged(held))
        processor = processor or getattr(held, "processor", None) or held.tokenizer
    else:
        hf = held
    if not isinstance(hf, PreTrainedModel):
        raise ModelError(
            "load_model takes a name, a directory, a .gguf file, a Hub id, or a model that is loaded already "
            f"(transformers', peft's, or a TransformerLens bridge); got an object of type {kind}."
        )
    family = family_of(hf.config.model_type)
    tokenizer = getattr(processor, "tokenizer", None) or (None if family.has_images else processor)
    if tokenizer is None:
        raise ModelError(
            f"A {kind} object that is loaded already needs its {'processor' if family.has_images else 'tokenizer'} "
            "beside it: load_model(model, processor=AutoProcessor.from_pretrained(…))."
        )
    name = hf.config._name_or_path or type(hf).__name__
    given = processor if family.has_images else None
    return attempt(name, "its parts", lambda: HookedLVLM(hf, family, name=name, tokenizer=tokenizer, processor=given))


def _adapted(wrapper: Any, kind: str) -> Any:
    """The transformers model inside a peft wrapper: its projections carry the adapters, so that all that runs has them.

    Raises:
        ModelError: The wrapper itself adds something, such as learned prompt tokens.
    """
    learned = [c.peft_type for c in wrapper.peft_config.values() if getattr(c, "is_prompt_learning", False)]
    if learned:
        raise ModelError(
            f"This {kind} puts learned tokens before a prompt ({', '.join(map(str, learned))}), which a sweep, whose "
            "positions are the prompt's, would leave out. Adapters inside the projections (LoRA and its kin) are taken."
        )
    hf = wrapper
    while hasattr(hf, "peft_config") and callable(getattr(hf, "get_base_model", None)):
        hf = hf.get_base_model()
    return hf


def _unbridged(bridge: Any) -> PreTrainedModel:
    """A transformers model on the weights of a bridge, which rewires the modules of the one it wraps."""
    from accelerate import init_empty_weights

    if getattr(bridge, "_weights_processed", False) or getattr(bridge, "compatibility_mode", False):
        raise ModelError(
            "This TransformerLens bridge has folded or centred its weights (enable_compatibility_mode), so that they "
            "are no longer the model's. Give the bridge as it is booted, or the model by its name."
        )
    inside = bridge.original_model
    held = {name.replace("._original_component", ""): tensor for name, tensor in inside.state_dict().items()}
    config = copy.deepcopy(inside.config)
    config._attn_implementation = "sdpa"
    with init_empty_weights(include_buffers=False):
        hf = type(inside)(config)
    hf.load_state_dict({name: held[name] for name in hf.state_dict()}, assign=True)
    hf.tie_weights()
    return hf
