"""A model taken apart, to be sent to other processes: the modules without weights, and the weights as plain arrays.

Whoever moves the arrays may keep one copy of them a machine: `together` lays the weights over the arrays' own memory.
"""

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY

from workbench.errors import ModelError
from workbench.models.hooked import HookedLVLM

Weights = dict[str, np.ndarray]


def apart(model: HookedLVLM) -> tuple[HookedLVLM, Weights]:
    """(the model with empty parameters, the bytes of each parameter by its first name); the model itself is unchanged.

    Raises:
        ModelError: For weights that are no plain arrays here: quantised ones, and those offloaded elsewhere.
    """
    named = dict(model.hf.named_parameters())
    odd = sorted({type(p).__name__ for p in named.values()} - {"Parameter"})
    if odd:
        raise ModelError(
            f"The weights of {model.name!r} are quantised ({', '.join(odd)}) and cannot be sent to other processes. "
            "Sweep in this process, or load the model unquantised."
        )
    if away := [name for name, p in named.items() if p.is_meta]:
        raise ModelError(
            f"{len(away)} weights of {model.name!r} are offloaded to the CPU or the disk (first: {away[0]}) and cannot "
            "be sent to other processes. Load the model on devices that hold all of it."
        )
    empty = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False) for p in named.values()}
    alone = copy.copy(model)
    alone.__dict__.pop("bridge", None)  # a second tree, which nobody sweeps with
    bare = copy.deepcopy(alone, memo=dict(empty))
    if shared_out(model):
        from accelerate.hooks import remove_hook_from_submodules

        remove_hook_from_submodules(bare.hf)
    for module in bare.hf.modules():
        # transformers hangs its recorders on a model when it first runs, as functions that cannot leave the process,
        # and does so anew where they are missing.
        module._forward_hooks.clear()
        if hasattr(module, "_output_capturing_hooks_installed"):
            module._output_capturing_hooks_installed = False
    # As bytes: NumPy has no bfloat16.
    arrays = {name: p.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy() for name, p in named.items()}
    return bare, arrays


def shared_out(model: HookedLVLM) -> dict[str, Any]:
    """The device of each part, for a model that transformers laid over several devices; else nothing.

    GPUs are numbered from 0, as another process counts those it is given.
    """
    places = getattr(model.hf, "hf_device_map", None) or {}
    if len(set(map(str, places.values()))) < 2:
        return {}
    gpus = sorted({number for place in places.values() if (number := _gpu(place)) is not None})
    renumbered: dict[int | None, int] = {number: rank for rank, number in enumerate(gpus)}
    return {part: renumbered.get(_gpu(place), place) for part, place in places.items()}


def _gpu(place: Any) -> int | None:
    """The number of a GPU as a device map writes it (2, "cuda:2", a device); None for the CPU and the disk."""
    if isinstance(place, int):
        return place
    kind, _, number = str(place).partition(":")
    return int(number or 0) if kind == "cuda" else None


def together(bare: HookedLVLM, weights: Weights, device: torch.device, places: dict[str, Any]) -> HookedLVLM:
    """The model with its weights, which stay where the arrays are on a CPU and are copied to other devices.

    Args:
        places: From `shared_out`; the parts are laid over this process's devices alike.
    """
    full: dict[int, nn.Parameter] = {}
    for name, empty in bare.hf.named_parameters():
        full[id(empty)] = nn.Parameter(_tensor(weights[name], empty), requires_grad=False)
    for module in bare.hf.modules():
        if isinstance(module, PreTrainedModel):  # as its constructor does, which never ran in this process
            _CAN_RECORD_REGISTRY[module] = module._can_record_outputs
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = full[id(parameter)]
    if places:
        from accelerate import dispatch_model

        dispatch_model(bare.hf, device_map=places)
    else:
        bare.hf.to(device)
    return bare


def _tensor(raw: np.ndarray, like: Tensor) -> Tensor:
    # The arrays may be read-only memory that others share; nothing here writes to weights.
    return torch.from_numpy(raw).view(like.dtype).view(like.shape)
