"""Operation counts of a forward and of the exact engine, and the machine's own matmul rate.

A multiplication and an addition count as two. Attention counts every key for every query, as dense kernels compute it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.benchmark import Timer

from workbench.models.encode import Encoded
from workbench.models.hooked import HookedLVLM


class Counts:
    """Floating-point operations of a model's parts."""

    def __init__(self, model: HookedLVLM) -> None:
        text: Any = model.decoder.config
        width = model.n_heads * model.d_head
        self.model, self.width = model, width
        self.query_output = 2 * 2 * model.d_model * width
        self.key_value = 2 * 2 * model.d_model * model.n_kv_heads * model.d_head
        self.mlp = 3 * 2 * model.d_model * int(text.intermediate_size)
        self.unembed = 2 * model.d_model * model.d_vocab

    def layer(self, positions: int, keys: int) -> int:
        """One decoder layer over `positions` that see `keys`."""
        return positions * (self.query_output + self.key_value + self.mlp + 4 * keys * self.width)

    def tower(self, encoded: Encoded) -> int:
        """The image tower of one prompt, for CLIP-like towers."""
        vision = getattr(self.model.hf.config, "vision_config", None)
        if vision is None or encoded.image_span is None:
            return 0
        patches = (vision.image_size // vision.patch_size) ** 2 + 1
        width, inner = vision.hidden_size, vision.intermediate_size
        layer = patches * (8 * width**2 + 4 * width * inner + 4 * patches * width)
        return vision.num_hidden_layers * layer

    def forward(self, encoded: Encoded) -> int:
        """One full forward, the next token's logits included."""
        n = encoded.n_tokens
        return self.model.n_layers * self.layer(n, n) + self.tower(encoded) + self.unembed

    def cell(self, n: int, layer: int) -> int:
        """One cell of the exact engine: from the masked layer on, closed form, last position only in the last layer."""
        write, last = 2 * self.model.d_model * self.model.d_head, self.model.n_layers - 1
        if layer == last:
            return write + self.mlp + self.unembed
        above = (last - layer - 1) * self.layer(n, n)
        end = n * self.key_value + self.query_output + self.mlp + 4 * n * self.width
        return n * (write + self.mlp) + above + end + self.unembed

    def naive_map(self, encoded: Sequence[Encoded], projections: int = 2) -> int:
        """All heads, one forward each, and one unmasked."""
        cells = projections * len(self.model.masked_layers) * self.model.n_heads
        return sum(self.forward(e) for e in encoded) * (1 + cells)

    def exact_map(self, encoded: Sequence[Encoded], projections: int = 2) -> int:
        """The same by the exact engine."""
        rows = projections * self.model.n_heads
        masked = sum(rows * self.cell(e.n_tokens, layer) for e in encoded for layer in self.model.masked_layers)
        return masked + sum(self.forward(e) for e in encoded)


def matmul_rate(device: torch.device, dtype: torch.dtype, size: int = 1024, repeats: int = 5) -> float:
    """Operations a second of one large matrix product on this device, with the threads in use; the best of a few."""
    size = size if device.type == "cpu" else 8192
    one, other = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    timer = Timer("one @ other", globals={"one": one, "other": other}, num_threads=torch.get_num_threads())
    return 2 * size**3 / min(timer.timeit(1).mean for _ in range(repeats))


def copy_rate(device: torch.device, repeats: int = 5) -> float:
    """Bytes a second that a large copy reads and writes, both counted; the best of a few."""
    size = 2**26 if device.type == "cpu" else 2**32
    one = torch.ones(size, dtype=torch.uint8, device=device)
    other = torch.empty_like(one)
    timer = Timer("other.copy_(one)", globals={"one": one, "other": other}, num_threads=torch.get_num_threads())
    return 2 * size / min(timer.timeit(1).mean for _ in range(repeats))
