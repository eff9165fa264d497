"""Weights that a device map keeps on the CPU or the disk between calls, brought back for as long as they are read.

transformers has accelerate load such weights whenever their module is called. Whoever reads a weight without calling
its module comes through here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def at_hand(module: nn.Module) -> Iterator[nn.Module]:
    """The module with its own weights for the length of a block; as it is where they are never away."""
    if not any(p.is_meta for p in module.parameters(recurse=False)):
        yield module
        return
    from accelerate.utils import align_module_device

    with align_module_device(module):
        yield module


def named_weights(hf: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter by its name, in the order of names; one at a time where they are away."""
    for name, parameter in sorted(hf.named_parameters()):
        owner, _, own = name.rpartition(".")
        with at_hand(hf.get_submodule(owner)) as module:
            yield name, getattr(module, own) if parameter.is_meta else parameter


def add_tensor(digest: Any, name: str, tensor: Tensor) -> None:
    """Have a digest of hashlib take in a tensor: its name, shape and bytes."""
    digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def device_of(hf: nn.Module) -> torch.device:
    """The device that a model is given its inputs on."""
    first = next(hf.parameters()).device
    if first.type != "meta":
        return first
    return next(torch.device(h.execution_device) for m in hf.modules() if (h := getattr(m, "_hf_hook", None)))
