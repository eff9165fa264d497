"""`Decoder`: the ground a model stands on: its sizes, the sites at which heads are masked, its norm and unembedding.

What runs prompts stands on it: the walk (`workbench.models.walk`), masks, the bridge, and above them all
`workbench.models.hooked.HookedLVLM`, which is what users hold.
"""

import hashlib
import threading
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from workbench.errors import MaskError
from workbench.models.attention import IMPLEMENTATION, install_sites
from workbench.models.families.family import Family
from workbench.models.offloaded import add_tensor, device_of, named_weights
from workbench.models.precision import double_kept

# Openings by which instruction-tuned models refuse; only their first tokens are read, those a tokenizer knows.
REFUSAL_OPENINGS = (
    "I cannot",
    "I can't",
    "I can’t",
    "I'm sorry",
    "I’m sorry",
    "Sorry",
    "I apologize",
    "Unfortunately",
    "As an AI",
)


@dataclass
class Work:
    """Counts of the work done, which do not depend on the machine's mood.

    Attributes:
        layer_tokens: Decoder-layer evaluations, counted in token positions (layers x rows x positions).
        rows: Rows that left a decoder layer.
        vision_passes: Images sent through the image tower.
        readouts: Masked states whose next-token distribution was computed and measured.
    """

    layer_tokens: int = 0
    rows: int = 0
    vision_passes: int = 0
    readouts: int = 0

    def count(self, layers: int, rows: int, positions: int) -> None:
        self.layer_tokens += layers * rows * positions
        self.rows += layers * rows


class Lock:
    """One thread at a time, which may come in again; a copy, in this process or another, is a lock of its own."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __reduce__(self) -> Any:
        return Lock, ()


class Decoder:
    """A loaded transformers model, and what is known of its text decoder; attributes as `HookedLVLM` has them.

    Masks and recordings are held on the modules, which all threads share: whatever sets them, or reads what others
    might set, holds `lock` meanwhile.
    """

    template = "chat"

    def __init__(
        self,
        hf: Any,
        family: Family,
        *,
        name: str,
        tokenizer: Any,
        processor: Any = None,
        revision: str = "",
        truth: dict[str, Any] | None = None,
    ) -> None:
        self.hf: Any = hf.eval()
        self.hf.requires_grad_(False)
        self.family, self.name, self.revision = family, name, revision
        self.tokenizer, self.processor, self.truth = tokenizer, processor, truth
        self.decoder: Any = family.decoder(hf)
        self.layers = family.decoder_layers(hf)
        self.final_norm: nn.Module = family.final_norm(self.decoder)
        self.attentions = family.attentions(hf)
        self.sites = install_sites(self.attentions)
        family.prepare(hf)
        for config in self.attention_configs():
            config._attn_implementation = {"": IMPLEMENTATION}  # and not that of an image tower configured inside it
        text = self.decoder.config
        self.n_layers, self.n_heads = len(self.layers), int(text.num_attention_heads)
        self.n_kv_heads = int(getattr(text, "num_key_value_heads", None) or self.n_heads)
        self.d_model = int(text.hidden_size)
        # The module knows; a config's head_dim is not heeded by every family, and the quotient is wrong for many.
        attention = next(iter(self.attentions.values()))
        width = getattr(attention, "head_dim", None) or getattr(text, "head_dim", None)
        self.d_head = int(width or self.d_model // self.n_heads)
        self.d_vocab = int(hf.get_output_embeddings().weight.shape[0])
        self.masked_layers = tuple(self.attentions)
        self.work, self.lock = Work(), Lock()
        for module in hf.modules():
            if "dynamic" in str(getattr(module, "rope_type", "")):
                module.register_forward_pre_hook(_forget_lengths)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.name!r}, {self.family.name}, {self.n_layers} layers x {self.n_heads} heads, "
            f"{str(self.dtype).removeprefix('torch.')} on {self.device})"
        )

    def attention_configs(self) -> list[Any]:
        """The configurations that say which attention function the decoder's layers call."""
        configs = (self.decoder.config, *(attention.config for attention in self.attentions.values()))
        return list({id(config): config for config in configs}.values())

    @property
    def dtype(self) -> torch.dtype:
        return self.hf.dtype

    @property
    def device(self) -> torch.device:
        return device_of(self.hf)

    @cached_property
    def weight_hash(self) -> str:
        """SHA-256 over every parameter's name, shape and bytes; 16 hex digits."""
        digest = hashlib.sha256()
        for name, parameter in named_weights(self.hf):
            add_tensor(digest, name, parameter)
        return digest.hexdigest()[:16]

    @cached_property
    def refusal_tokens(self) -> tuple[int, ...]:
        """Ids of the tokens that open a refusal, out of `REFUSAL_OPENINGS`; empty when the tokenizer knows none."""
        unknown = {getattr(self.tokenizer, "unk_token_id", None)}
        found = set()
        for opening in REFUSAL_OPENINGS:
            for text in (opening, " " + opening, opening.lower()):
                ids = self.tokenizer.encode(text, add_special_tokens=False)
                # A lone space or a byte piece opens everything; such a token says nothing about refusing.
                first = next((i for i in ids if self.tokenizer.decode([i]).strip()), None)
                if first is not None and first not in unknown:
                    found.add(int(first))
        return tuple(sorted(found))

    def normed(self, residual: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """Final states: the residual stream after the final norm."""
        with self.lock, double_kept(self.dtype):  # another thread may be listening to the norm for a pass of its own
            return self.final_norm(residual)

    def unembed(self, state: Float[Tensor, "... d_model"]) -> Float[Tensor, "... vocab"]:
        """Logits (float32 or wider) of states after the final norm."""
        with double_kept(self.dtype):
            logits = self.family.logits(self.hf, state.to(self.dtype))
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def output(self, layer: int) -> Any:
        """The module that is W_O of a layer: from its heads' outputs z, side by side, to what it writes."""
        return getattr(self.attentions[layer], self.family.output)

    def query_weights(self, layer: int) -> tuple[nn.Module, int]:
        """The module whose output begins with the queries of a layer, and how many of its channels are queries."""
        attention = self.attentions[layer]
        if self.family.query_weights is not None:
            return self.family.query_weights(attention)
        module = getattr(attention, "q_proj", None)
        if module is None:
            raise MaskError(
                f"Family {self.family.name!r} has no separate query projection, so the published mask is not defined. "
                "Use Mask(form='limit') or Mask(form='scale')."
            )
        return module, self.n_heads * self.d_head


def _forget_lengths(rotary: Any, args: Any) -> None:
    """Let dynamic rotary tables depend on the prompt at hand alone.

    transformers keeps the frequencies of the longest prompt so far for all that are longer than the original context,
    so that a prompt's numbers would depend on what was asked before it.
    """
    for name in [n for n in dir(rotary) if n.endswith("original_inv_freq")]:
        prefix = name.removesuffix("original_inv_freq")
        now = getattr(rotary, f"{prefix}inv_freq")
        rotary.register_buffer(f"{prefix}inv_freq", getattr(rotary, name).to(now), persistent=False)
        setattr(rotary, f"{prefix}max_seq_len_cached", rotary.original_max_seq_len)
