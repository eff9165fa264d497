"""How a sweep is cut into pieces before it starts: blocks of prompts, batches of equal length, rows a batch."""

from collections.abc import Iterable

import psutil
import torch

from workbench.models.encode import Encoded
from workbench.models.hooked import HookedLVLM
from workbench.models.walk import batch_key
from workbench.runs.job import Partition
from workbench.runs.vocabulary import CPU_BLOCK, GPU_BLOCK, LOGITS_BLOCK

# A batch of this many token positions keeps a CPU busy without leaving its caches; on Pocket the time was flat, within
# what other programs disturb, from 1,024 to 8,192.
CPU_TOKENS = 4096
# On an H200 a 7B-like model reached 0.66 of the rate of a large matrix product with 8 rows of 605 positions, 0.71 with
# 32 and 0.68 with 64; with 256 a whole map took a fifth longer than foreseen from 32.
GPU_TOKENS = 2**15
# The share of free memory a batch may plan to fill; the rest is for weights in flight, kernels and other programs.
MEMORY_SHARE = 0.4
BLOCK = 32


def row_bytes(model: HookedLVLM, n_pos: int) -> int:
    """Working memory of one row in one layer: residual copies and the write, and the MLP or the attention.

    A 7B-like model in bfloat16 took 66 MB a row of 605 positions on an H200, and this says 65.
    """
    text = model.decoder.config
    d_mlp = int(getattr(text, "intermediate_size", 4 * model.d_model))
    attention = 4 * (model.n_heads + model.n_kv_heads) * model.d_head
    return n_pos * (5 * model.d_model + max(3 * d_mlp, attention)) * _item(model)


def base_bytes(model: HookedLVLM, n_pos: int) -> int:
    """What one prompt's base pass keeps: layer inputs, attention outputs, queries, keys, values and z of all layers."""
    width = 2 * model.d_model + 2 * model.n_heads * model.d_head + 2 * model.n_kv_heads * model.d_head
    return model.n_layers * n_pos * width * _item(model)


def weight_bytes(model: HookedLVLM) -> int:
    """Bytes of the model's parameters."""
    return sum(parameter.nbytes for parameter in model.hf.parameters())


def batch_bytes(model: HookedLVLM, n_pos: int, rows: int) -> int:
    """What a batch of rows takes while it is computed and measured."""
    entries = min(LOGITS_BLOCK, rows * model.d_vocab)
    work = CPU_BLOCK if model.device.type == "cpu" else GPU_BLOCK
    # Logits in the model's dtype and wide, and some five arrays of a block in float64.
    return rows * row_bytes(model, n_pos) + 2 * 4 * entries + 5 * 8 * min(work, entries)


def planned_bytes(model: HookedLVLM, longest: int, partition: Partition, n_prompts: int) -> int:
    """What a sweep is planned to take besides what is held when it begins: a block's base passes, a batch of rows."""
    passes = min(partition.block, n_prompts) * base_bytes(model, longest)
    return passes + batch_bytes(model, longest, partition.rows)


def _item(model: HookedLVLM) -> int:
    return torch.finfo(model.dtype).bits // 8


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
        rows = min(rows, (CPU_TOKENS if model.device.type == "cpu" else GPU_TOKENS) // longest)
    if rows < 1:
        rows = 1
    return Partition(block, rows)


def batches(encoded: Iterable[Encoded], most: int) -> list[list[int]]:
    """Indices of prompts that can share a batch without padding, at most `most` together, in order of first use."""
    together: dict[object, list[int]] = {}
    for index, prompt in enumerate(encoded):
        together.setdefault(batch_key(prompt), []).append(index)
    return [group[i : i + most] for group in together.values() for i in range(0, len(group), most)]
