"""How a sweep is cut into pieces before it starts: blocks of prompts, batches of equal length, rows a batch."""

from collections.abc import Sequence

import psutil
import torch

from workbench.models.encode import Encoded
from workbench.models.hooked import HookedLVLM
from workbench.models.walk import batch_key
from workbench.runs.job import Partition

# A batch of this many token positions keeps a CPU busy without leaving its caches; on Pocket the time was flat, within
# what other programs disturb, from 1,024 to 8,192.
CPU_TOKENS = 4096
# The share of free memory a batch may plan to fill; the rest is for weights in flight, kernels and other programs.
MEMORY_SHARE = 0.4
BLOCK = 32


def row_bytes(model: HookedLVLM, n_pos: int) -> int:
    """Working memory of one row in one layer: residual copies, queries, keys, values, the MLP, and the logits."""
    text = model.decoder.config
    d_mlp = int(getattr(text, "intermediate_size", 4 * model.d_model))
    width = 6 * model.d_model + 3 * d_mlp + 3 * model.n_heads * model.d_head + 2 * model.n_kv_heads * model.d_head
    item = torch.finfo(model.dtype).bits // 8
    return n_pos * width * item + 6 * 8 * model.d_vocab


def base_bytes(model: HookedLVLM, n_pos: int) -> int:
    """What one prompt's base pass keeps: layer inputs, attention outputs, queries, keys, values and z of all layers."""
    width = 2 * model.d_model + 2 * model.n_heads * model.d_head + 2 * model.n_kv_heads * model.d_head
    return model.n_layers * n_pos * width * (torch.finfo(model.dtype).bits // 8)


def weight_bytes(model: HookedLVLM) -> int:
    """Bytes of the model's parameters."""
    return sum(parameter.nbytes for parameter in model.hf.parameters())


def planned_bytes(model: HookedLVLM, longest: int, partition: Partition, n_prompts: int) -> int:
    """What a sweep is planned to hold at once: weights, the base passes of a block, and one batch of rows."""
    passes = min(partition.block, n_prompts) * base_bytes(model, longest)
    return weight_bytes(model) + passes + partition.rows * row_bytes(model, longest)


def free_bytes(model: HookedLVLM) -> int:
    """Free memory of the device the model runs on; on a GPU with what PyTorch holds there and does not use."""
    if model.device.type == "cuda":
        held = torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
        return int(torch.cuda.mem_get_info(model.device)[0]) + held
    return int(psutil.virtual_memory().available)


def plan(model: HookedLVLM, longest: int, *, rows: int | None = None, block: int = BLOCK) -> Partition:
    """The partition for prompts of at most `longest` positions, from what memory is free now."""
    budget = MEMORY_SHARE * free_bytes(model)
    block = max(1, min(block, int(budget / 2 / max(1, base_bytes(model, longest)))))
    if rows is None:
        rows = int(budget / 2 / row_bytes(model, longest))
        if model.device.type == "cpu":
            rows = min(rows, CPU_TOKENS // longest)
    if rows < 1:
        rows = 1
    return Partition(block, rows)


def batches(encoded: Sequence[Encoded], most: int) -> list[list[int]]:
    """Indices of prompts that can share a batch without padding, at most `most` together, in order of first use."""
    together: dict[object, list[int]] = {}
    for index, prompt in enumerate(encoded):
        together.setdefault(batch_key(prompt), []).append(index)
    return [group[i : i + most] for group in together.values() for i in range(0, len(group), most)]
