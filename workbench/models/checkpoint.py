"""What a checkpoint has to be before its numbers are believed: whole, its own, made of numbers."""

import json
import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from transformers.utils import cached_file

from workbench.errors import ModelError, WorkbenchError
from workbench.models.families import FAMILIES
from workbench.models.hooked import HookedLVLM
from workbench.models.offloaded import named_weights

# Buffers that older checkpoints keep, and that transformers computes anew.
BENIGN = re.compile(r"(rotary_emb\.inv_freq|position_ids|attn\.masked_bias)$")
NAMED = 5  # keys that a message names, out of many


def refuse_strange_files(name: str, where: str, options: dict[str, Any]) -> None:
    """Refuse an adapter beside the model, and an index of weights that names files elsewhere."""

    def found(file: str) -> str | None:
        missing = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
        kept = {k: v for k, v in options.items() if k != "trust_remote_code"}
        return attempt(name, file, lambda: cached_file(where, file, **kept, **missing))

    if found("adapter_config.json"):
        raise ModelError(
            f"{name!r} holds an adapter (adapter_config.json) beside its model, and the model alone is not what was "
            "trained. Merge it with peft (`merge_and_unload()`, then `save_pretrained`) and load the result; or take "
            "adapter_config.json away, to load the model without it on purpose."
        )
    if index := found("model.safetensors.index.json"):
        text = Path(index).read_text(encoding="utf-8")
        names = attempt(name, "its index of weights", lambda: set(json.loads(text)["weight_map"].values()))
        outside = [n for n in map(str, names) if not _is_inside(n)]
        if outside:
            raise ModelError(
                f"{name!r}: its index of weights names {', '.join(map(repr, sorted(outside)[:NAMED]))}, which is no "
                "safetensors file in its own folder. Nothing was read; do not use this checkpoint."
            )


def _is_inside(file: str) -> bool:
    path, windows = PurePosixPath(file), PureWindowsPath(file)
    away = path.is_absolute() or windows.drive or windows.root or ".." in (*path.parts, *windows.parts)
    return not away and path.suffix == ".safetensors"


def refuse_incomplete(name: str, found: dict[str, Any]) -> None:
    """Refuse a checkpoint that is not wholly the model: what it lacks would be random numbers."""
    keys = {
        "lacks": {str(k) for k in found.get("missing_keys", ())},
        "has besides": {k for k in map(str, found.get("unexpected_keys", ())) if not BENIGN.search(k)},
        "has in another shape": {str(k[0] if isinstance(k, tuple) else k) for k in found.get("mismatched_keys", ())},
    }
    keys["lacks"] -= keys["has in another shape"]
    if told := [f"it {what} {len(of)} weights ({_some(of)})" for what, of in keys.items() if of]:
        raise ModelError(
            f"{name!r} is not wholly a checkpoint of its model type: {'; '.join(told)}. What is missing would be "
            "random numbers, so it is refused. Save it again with save_pretrained, or convert its names."
        )
    if errors := found.get("error_msgs"):
        raise ModelError(f"{name!r}: its weights could not be loaded: {errors[0]}")


def refuse_broken_weights(model: HookedLVLM) -> None:
    """Refuse weights that were never loaded, and weights that are not numbers, e.g. after a cast."""
    broken = {}
    for name, weight in named_weights(model.hf):
        if weight.is_meta:
            raise ModelError(
                f"{model.name!r}: the weight {name} is offloaded, with nothing to bring it back, or was never loaded. "
                "Load the model again, with device_map= where it is too large for one device."
            )
        if weight.is_floating_point() and weight.element_size() > 1 and not weight.isfinite().all():
            broken[name] = int((~weight.isfinite()).sum())
    if broken:
        raise ModelError(
            f"{model.name!r}: {sum(broken.values())} weights are not finite numbers in {model.dtype} (in "
            f"{_some(broken)}). They do not fit this dtype, or the checkpoint is damaged: load it in float32 or "
            "bfloat16."
        )


def _some(names: Any) -> str:
    names = sorted(names)
    return ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")


def attempt(name: str, what: str, load: Any) -> Any:
    """Call a loader; say what could not be loaded, and why, in one sentence of ours.

    Whatever a library raises on a strange file becomes ours: checkpoints come from anyone.
    """
    try:
        return load()
    except WorkbenchError:
        raise
    except Exception as error:
        reason = (str(error).strip() or "no reason given").split("\n")[0]
        raise ModelError(
            f"{name!r}: {what} could not be loaded ({type(error).__name__}: {reason}). A checkpoint directory needs "
            "config.json, safetensors weights and the processor's (or tokenizer's) files together; a Hub id needs the "
            f"network or a local cache. Supported model types: {', '.join(sorted(FAMILIES))}."
        ) from error
