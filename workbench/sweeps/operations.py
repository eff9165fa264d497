"""Operation counts of a forward and of the exact engine, and what a sweep's work is held against.

A multiplication and an addition count as two. Attention counts every key for every query, as dense kernels compute it.
"""

from collections.abc import Sequence
from typing import Any

from workbench.models.encode import Encoded
from workbench.models.hooked import HookedLVLM
from workbench.runs.vocabulary import OF_VOCABULARY
from workbench.sweeps.plan import planned_bytes
from workbench.sweeps.tasks import Sweep


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


def foreseen(sweep: Sweep, lengths: Sequence[int], images: int) -> dict[str, int]:
    """What a sweep's work is held against, as attributes of its run.

    Args:
        sweep: As it is about to begin.
        lengths: Of each prompt, in tokens.
        images: How many of the prompts have one.

    Returns:
        `naive_layer_tokens, naive_vision_passes`: of one full forward a cell and one unmasked; `naive_readouts`: of
        the former, as many masked states;
        `layer_token_operations, readout_operations`: what one of each costs at the mean length, 0 where nothing is
        read from the vocabulary; `planned_bytes`: memory that the partition plans for.
    """
    model, job, counts = sweep.model, sweep.job, Counts(sweep.model)
    tokens, passes = job.naive_work(model, lengths, images)
    forwards = tokens // (model.n_layers * max(1, sum(lengths)))
    reads = bool(set(job.measures) & set(OF_VOCABULARY))
    return {
        "naive_layer_tokens": tokens,
        "naive_vision_passes": passes,
        "naive_readouts": (forwards - 1) * len(lengths) * max(1, len(job.readout)) if reads else 0,
        "layer_token_operations": counts.layer(1, round(sum(lengths) / max(1, len(lengths)))),
        "readout_operations": counts.unembed if reads else 0,
        "planned_bytes": planned_bytes(model, max(lengths), sweep.sink.partition, len(lengths)),
    }
