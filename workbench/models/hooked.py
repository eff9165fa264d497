"""`HookedLVLM`: one vision-language model, to look at through TransformerLens and to sweep at full speed.

Two module trees share one set of weights. The TransformerLens bridge (`model.bridge`, built when first used) has
the familiar hook names and forces eager attention; the other tree keeps transformers' fast kernels and carries the
sites at which heads are masked.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import DynamicCache

from workbench.errors import MaskError, ModelError
from workbench.models.attention import IMPLEMENTATION, attention_pattern, install_sites, sites_set
from workbench.models.encode import Encoded, encode
from workbench.models.families.family import Family
from workbench.models.masks import Mask
from workbench.models.precision import double_kept
from workbench.models.walk import BasePass, base_pass, published_queries
from workbench.prompts.prompt import Prompt

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
    """

    layer_tokens: int = 0
    rows: int = 0
    vision_passes: int = 0

    def count(self, layers: int, rows: int, positions: int) -> None:
        self.layer_tokens += layers * rows * positions
        self.rows += layers * rows


class HookedLVLM:
    """A loaded model. Build one with `workbench.load_model`.

    Attributes:
        name: What it was asked for by; `revision` is the Hub revision, if any.
        hf: The transformers model (fast tree).
        family: What the workbench knows about the architecture.
        tokenizer: As transformers loaded it.
        processor: As transformers loaded it; None for a text-only model.
        n_layers: Layers of the text decoder.
        n_heads: Query heads of a layer.
        n_kv_heads: Key/value heads of a layer.
        d_head: Width of a head.
        d_model: Width of the residual stream.
        d_vocab: Entries of the vocabulary.
        masked_layers: Decoder layers whose heads can be masked; all but cross-attention layers.
        work: Counts of the work done so far.
        truth: For the planted models, which heads carry the signal; None for all others.

    Examples:
        >>> import workbench as wb
        >>> model = wb.load_model("planted")
        >>> prompt = wb.load_prompts("planted", n=2)[0]
        >>> model.state(prompt).shape
        torch.Size([64])
        >>> model.generate(prompt)
        'i cannot help with that'
        >>> model.generate(prompt, heads=[(3, 1)])
        'sure here it is'
    """

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
        self.final_norm: nn.Module = getattr(self.decoder, family.norm)
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
        self.work = Work()

    def __repr__(self) -> str:
        return (
            f"HookedLVLM({self.name!r}, {self.family.name}, {self.n_layers} layers x {self.n_heads} heads, "
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
        return self.hf.device

    @cached_property
    def weight_hash(self) -> str:
        """SHA-256 over every parameter's name, shape and bytes; 16 hex digits."""
        digest = hashlib.sha256()
        for name, parameter in sorted(self.hf.named_parameters()):
            flat = parameter.detach().cpu().contiguous().view(-1)
            digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
            digest.update(flat.view(torch.uint8).numpy().tobytes())
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

    def encode(self, prompt: Prompt) -> Encoded:
        """The prompt as this model reads it; see `workbench.models.encode.encode` for shapes and errors."""
        return encode(self, prompt)

    def normed(self, residual: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """Final states: the residual stream after the final norm."""
        with double_kept(self.dtype):
            return self.final_norm(residual)

    def unembed(self, state: Float[Tensor, "... d_model"]) -> Float[Tensor, "... vocab"]:
        """Logits (float32 or wider) of states after the final norm."""
        with double_kept(self.dtype):
            logits = self.family.logits(self.hf, state.to(self.dtype))
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

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

    def base(self, prompt: Prompt) -> BasePass:
        """The unmasked pass of one prompt, with everything it recorded."""
        return base_pass(self, [self.encode(prompt)])

    @contextmanager
    def masked(self, heads: Sequence[tuple[int, int]], projection: str, mask: Mask, start: int = 0) -> Iterator[None]:
        """Hold a mask on (layer, head) pairs for the length of a block; every forward inside it sees the mask."""
        by_layer: dict[int, list[int]] = {}
        rows = mask.row_heads(self.n_heads, self.n_kv_heads)
        for layer, head in heads:
            if layer not in self.sites or not 0 <= head < len(rows):
                raise MaskError(
                    f"There is no maskable head L{layer}H{head} in {self.name!r}: layers are "
                    f"{_span(self.masked_layers)}, heads are 0..{len(rows) - 1} at grain {mask.grain!r}."
                )
            by_layer.setdefault(layer, []).extend(rows[head])
        with ExitStack() as stack:
            if projection == "query" and mask.form == "as_published":
                stack.enter_context(published_queries(self, by_layer, mask.factor))
            else:
                for layer, chosen in by_layer.items():
                    edit = mask.edit(projection, [chosen], self.n_heads, start, self.device)
                    stack.enter_context(sites_set([self.sites[layer]], edit=edit))
            yield

    @torch.no_grad()
    def state(
        self,
        prompt: Prompt,
        *,
        heads: Sequence[tuple[int, int]] = (),
        projection: str = "query",
        mask: Mask | None = None,
    ) -> Float[Tensor, " d_model"]:
        """Final state after the final norm at the last prompt position, with the given (layer, head) pairs masked."""
        encoded, mask = self.encode(prompt), mask or Mask()
        kept: list[Tensor] = []
        handle = self.final_norm.register_forward_hook(lambda module, args, output: kept.append(output[0, -1]))
        try:
            with self.masked(heads, projection, mask, mask.start(encoded) if heads else 0), double_kept(self.dtype):
                self.hf(**encoded.model_inputs, use_cache=False, logits_to_keep=1)
        finally:
            handle.remove()
        return kept[-1]

    def logits(
        self,
        prompt: Prompt,
        *,
        heads: Sequence[tuple[int, int]] = (),
        projection: str = "query",
        mask: Mask | None = None,
    ) -> Float[Tensor, " vocab"]:
        """Next-token logits at the last prompt position, with the given (layer, head) pairs masked."""
        return self.unembed(self.state(prompt, heads=heads, projection=projection, mask=mask))

    def generate(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = 32,
        heads: Sequence[tuple[int, int]] = (),
        projection: str = "query",
        mask: Mask | None = None,
        **options: Any,
    ) -> str:
        """Greedy reply, with the given heads masked in the prompt and while decoding.

        `options` go to transformers' `generate` (streamer, logits_processor, do_sample, …).
        """
        out = self.generated(
            prompt, max_new_tokens=max_new_tokens, heads=heads, projection=projection, mask=mask, **options
        )
        return self.tokenizer.decode(out.sequences[0, out.n_prompt_tokens :], skip_special_tokens=True).strip()

    @torch.no_grad()
    def generated(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = 32,
        heads: Sequence[tuple[int, int]] = (),
        projection: str = "query",
        mask: Mask | None = None,
        **options: Any,
    ) -> Any:
        """What `generate` decodes: transformers' output record, with `sequences` and our `n_prompt_tokens`."""
        encoded, mask = self.encode(prompt), mask or Mask()
        # A cache without sliding layers, so that a position keeps its index while decoding.
        options = {
            "do_sample": False,
            "past_key_values": DynamicCache(),
            "return_dict_in_generate": True,
            **options,
        }
        if self.hf.generation_config.pad_token_id is None:
            options.setdefault("pad_token_id", self.tokenizer.pad_token_id or self.tokenizer.eos_token_id or 0)
        with self.masked(heads, projection, mask, mask.start(encoded) if heads else 0), double_kept(self.dtype):
            out = self.hf.generate(**encoded.model_inputs, max_new_tokens=max_new_tokens, **options)
        out.n_prompt_tokens = encoded.n_tokens
        return out

    def attention(self, prompt: Prompt) -> Float[Tensor, "layer head key"]:
        """Attention of the last prompt position over the keys, NaN in layers without maskable heads."""
        base = self.base(prompt)
        shown = torch.full((self.n_layers, self.n_heads, base.n_pos), torch.nan)
        for layer in base.recordings:
            shown[layer] = last_attention(base, layer)[0].float().cpu()
        return shown

    def head_outputs(self, prompt: Prompt) -> Float[Tensor, "layer head d_head"]:
        """z of every head at the last prompt position, before W_O, unmasked."""
        base = self.base(prompt)
        shown = torch.full((self.n_layers, self.n_heads, self.d_head), torch.nan)
        for layer, seen in base.recordings.items():
            shown[layer] = seen.z[0, -1].float().cpu()
        return shown

    @cached_property
    def bridge(self) -> Any:
        """The TransformerLens bridge over a second module tree on the same weights (its hook names, its cache)."""
        from workbench.models.bridge import build_bridge

        return build_bridge(self)

    def run_with_cache(self, prompt: Prompt, **options: Any) -> tuple[Tensor, Any]:
        """TransformerLens' `run_with_cache`, image included: (logits `[1, pos, vocab]`, ActivationCache)."""
        inputs = self.encode(prompt).model_inputs
        with torch.no_grad(), double_kept(self.dtype):
            return self.bridge.run_with_cache(inputs["input_ids"], **_other(inputs), **options)

    def run_with_hooks(self, prompt: Prompt, fwd_hooks: Sequence[tuple[Any, Any]] = (), **options: Any) -> Tensor:
        """TransformerLens' `run_with_hooks`, image included: logits `[1, pos, vocab]`."""
        inputs = self.encode(prompt).model_inputs
        with torch.no_grad(), double_kept(self.dtype):
            return self.bridge.run_with_hooks(
                inputs["input_ids"], fwd_hooks=list(fwd_hooks), **_other(inputs), **options
            )


def last_attention(base: BasePass, layer: int) -> Float[Tensor, "prompt head key"]:
    """Attention weights of the last position of each prompt of a base pass."""
    seen = base.recordings[layer]
    mask = seen.mask[:, :, -1:] if seen.mask is not None else None
    pattern = attention_pattern(seen.query[:, :, -1:], seen.key, mask, seen.scaling, softcap=seen.extras.get("softcap"))
    return pattern[:, :, 0]


def _other(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if name != "input_ids"}


def _span(layers: Sequence[int]) -> str:
    if not layers:
        raise ModelError("This model has no layer whose heads can be masked.")
    plain = list(layers) == list(range(layers[0], layers[-1] + 1))
    return f"{layers[0]}..{layers[-1]}" if plain else ", ".join(map(str, layers))
