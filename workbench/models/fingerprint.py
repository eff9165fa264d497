"""What a model makes of a prompt, as hashes: its weights and all else that its numbers depend on, and its inputs.

A stored run, a stored detector and the explorer know a model by these. The weights are only a part: another chat
template, picture setting, tokenizer or rotary table gives other numbers under the same weights.
"""

import hashlib
import json
from dataclasses import is_dataclass
from functools import lru_cache
from typing import Any

import torch

from workbench.errors import WorkbenchError
from workbench.models.encode import Encoded, templated_text
from workbench.models.hooked import HookedLVLM
from workbench.models.offloaded import add_tensor
from workbench.prompts.prompt import Prompt, image_hash

# Where files were read from, and by what: not what they say.
_PLACES = ("name_or_path", "_name_or_path", "transformers_version", "_commit_hash", "cache_dir", "auto_map")
_READERS = ("image_processor", "video_processor", "feature_extractor", "tokenizer")


def fingerprint(model: HookedLVLM) -> str:
    """SHA-256 over weights, buffers, configuration, processor, tokenizer and chat template; 16 hex digits.

    Nothing is encoded and the model is not run.

    Examples:
        >>> import workbench as wb
        >>> from workbench.models.fingerprint import fingerprint
        >>> model = wb.load_model("planted")
        >>> before = fingerprint(model)
        >>> model.tokenizer.chat_template = model.tokenizer.chat_template + " "
        >>> fingerprint(model) == before
        False
    """
    digest = hashlib.sha256(model.weight_hash.encode())
    for name, buffer in _buffers(model):
        add_tensor(digest, name, buffer)
    readers = [model.processor, model.tokenizer, *(getattr(model.processor, name, None) for name in _READERS)]
    for reader in {id(r): r for r in readers if r is not None}.values():
        digest.update(_described(reader))
    digest.update(_plain([model.hf.config.to_dict(), model.family.name, model.family.chat_template, model.template]))
    for name, module in model.hf.named_modules():
        if hasattr(module, "merged_adapters"):  # peft's: how its weights act is written in no weight
            acts = [module.active_adapters, module.merged_adapters, module.disable_adapters]
            digest.update(_plain([name, *acts, getattr(module, "scaling", None)]))
    return digest.hexdigest()[:16]


def request_hash(model: HookedLVLM, prompt: Prompt) -> str:
    """SHA-256 over the text after the chat template and the picture's pixels; 16 hex digits. Nothing is encoded."""
    try:
        text = templated_text(model, prompt)
    except WorkbenchError:
        text = f"{prompt.text}\0no template takes it"  # said when it is encoded; other prompts are not concerned
    return hashlib.sha256(f"{text}\0{image_hash(prompt.image)}".encode()).hexdigest()[:16]


def input_hash(encoded: Encoded) -> bytes:
    """SHA-256 over everything that the model is given for a prompt: ids, pixels and the rest; 32 bytes."""
    digest = hashlib.sha256()
    for name, value in sorted(encoded.model_inputs.items()):
        if isinstance(value, torch.Tensor):
            add_tensor(digest, name, value)
        else:
            digest.update(name.encode() + _plain(value))
    return digest.digest()


def _buffers(model: HookedLVLM) -> Any:
    """Buffers by name; of tables that change as longer prompts come, the one they begin with."""
    changing = {
        name
        for name, module in model.hf.named_modules()
        if getattr(module, "rope_type", "default") in ("dynamic", "longrope") and hasattr(module, "original_inv_freq")
    }
    for name, buffer in sorted(model.hf.named_buffers()):
        owner, _, own = name.rpartition(".")
        if owner in changing and own == "inv_freq":
            buffer = model.hf.get_submodule(owner).original_inv_freq
        if isinstance(buffer, torch.Tensor) and buffer.device.type != "meta":
            yield name, buffer


def _described(reader: Any) -> bytes:
    """A processor or tokenizer in plain values, as JSON."""
    found = {"class": type(reader).__name__, "chat_template": getattr(reader, "chat_template", None)}
    backend = getattr(reader, "backend_tokenizer", None)
    if backend is None and hasattr(reader, "get_vocab"):
        found["vocab"] = reader.get_vocab()
    if hasattr(reader, "special_tokens_map"):
        found["special"] = {k: str(v) for k, v in reader.special_tokens_map.items()}
        found["sides"] = [reader.padding_side, reader.truncation_side]
    elif hasattr(reader, "to_dict"):
        found["settings"] = reader.to_dict()
    return _plain(found) if backend is None else _with_backend(_plain(found).decode(), backend.to_str())


@lru_cache(maxsize=8)
def _with_backend(found: str, backend: str) -> bytes:
    """A fast tokenizer in plain values, as JSON; kept, since reading a large vocabulary takes a second."""
    # How it was last called is part of what it says of itself.
    said = {k: v for k, v in json.loads(backend).items() if k not in ("padding", "truncation")}
    return _plain(json.loads(found) | {"backend": said})


def _plain(value: Any) -> bytes:
    """A value as JSON, the same on every machine: places of files dropped, objects by the name of their class."""

    def known(item: Any) -> Any:
        if isinstance(item, dict):
            return {str(k): known(v) for k, v in item.items() if k not in _PLACES}
        if isinstance(item, list | tuple):
            return [known(v) for v in item]
        if item is None or isinstance(item, bool | int | float | str):
            return item
        if hasattr(item, "tolist"):
            return known(item.tolist())
        if is_dataclass(item) and not isinstance(item, type):
            return known(vars(item))
        return str(item) if isinstance(item, torch.dtype) else type(item).__name__

    return json.dumps(known(value), sort_keys=True).encode()
