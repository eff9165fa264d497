"""`HookedLVLM`: one vision-language model, to look at through TransformerLens and to sweep at full speed.

Two module trees share one set of weights. The TransformerLens bridge (`model.bridge`, built when first used) has
the familiar hook names and forces eager attention; the other tree keeps transformers' fast kernels and carries the
sites at which heads are masked.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Annotated, Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache, GenerationConfig

from workbench.axes import MASKABLE, Head, as_heads
from workbench.checking import Converted, OneOf, Whole, checked
from workbench.errors import MaskError
from workbench.models.attention import attention_pattern, sites_set
from workbench.models.bound import Bound
from workbench.models.decoder import Decoder
from workbench.models.encode import Encoded, encode
from workbench.models.masks import Mask, SomeMask, published_queries
from workbench.models.precision import double_kept
from workbench.models.probes import probe_prompt
from workbench.models.walk import BasePass, base_pass, join
from workbench.prompts.prompt import OnePrompt, Prompt

SomeHeads = Annotated[Sequence[Head], Converted(as_heads)]
Projection = Annotated[str, OneOf(MASKABLE)]


class HookedLVLM(Decoder):
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
        template: How prompts are put to it: "chat", "raw", or the source of a Jinja template; see `load_model`.
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

    def encode(self, prompt: Prompt) -> Encoded:
        """The prompt as this model reads it; see `workbench.models.encode.encode` for shapes and errors."""
        return encode(self, prompt)

    def base(self, prompt: Prompt) -> BasePass:
        """The unmasked pass of one prompt, with everything it recorded."""
        return base_pass(self, [self.encode(prompt)])

    @contextmanager
    def masked(
        self, heads: Sequence[tuple[int, int]], projection: str, mask: Mask, batch: Sequence[Encoded] = ()
    ) -> Iterator[None]:
        """Hold a mask on (layer, head) pairs for the length of a block; every forward inside it sees the mask.

        Args:
            batch: The prompts of those forwards, in row order. Without them the mask acts at all positions, and forms
                that go by the prompt are refused.
        """
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
            stack.enter_context(self.lock)
            if projection == "query" and mask.form == "as_published":
                stack.enter_context(published_queries(self, by_layer, mask.factor))
            else:
                held = Bound(self, mask, batch)
                edits = {layer: held.edit(projection, layer, [chosen]) for layer, chosen in by_layer.items()}
                for layer, edit in edits.items():
                    stack.enter_context(sites_set([self.sites[layer]], edit=edit))
            yield

    @checked
    @torch.no_grad()
    def state(
        self,
        prompt: OnePrompt,
        *,
        heads: SomeHeads = (),
        projection: Projection = "query",
        mask: SomeMask = None,
    ) -> Float[Tensor, " d_model"]:
        """Final state after the final norm at the last prompt position, with the given (layer, head) pairs masked."""
        encoded, mask = self.encode(prompt), mask or Mask()
        if heads and mask.phase == "decoding":
            raise MaskError(
                "phase='decoding' masks tokens of the reply, and the state of the prompt's last position is there "
                "before any: the mask could not change it. Use generate, or phase='reading'."
            )
        kept: list[Tensor] = []
        with (
            self.masked(heads, projection, mask, [encoded]),
            self.final_norm.register_forward_hook(lambda module, args, output: kept.append(output[0, -1])),
            double_kept(self.dtype),
        ):
            self.hf(**encoded.model_inputs, use_cache=False, logits_to_keep=1)
        return kept[-1]

    @checked
    def logits(
        self,
        prompt: OnePrompt,
        *,
        heads: SomeHeads = (),
        projection: Projection = "query",
        mask: SomeMask = None,
    ) -> Float[Tensor, " vocab"]:
        """Next-token logits at the last prompt position, with the given (layer, head) pairs masked."""
        return self.unembed(self.state(prompt, heads=heads, projection=projection, mask=mask))

    @checked
    def generate(
        self,
        prompt: OnePrompt,
        *,
        max_new_tokens: Annotated[int, Whole(1)] = 32,
        heads: SomeHeads = (),
        projection: Projection = "query",
        mask: SomeMask = None,
        **options: Any,
    ) -> str:
        """Greedy reply, with the given heads masked in the prompt and while decoding.

        `options` go to transformers' `generate` (streamer, logits_processor, do_sample, …).
        """
        out = self.generated(
            prompt, max_new_tokens=max_new_tokens, heads=heads, projection=projection, mask=mask, **options
        )
        return self.tokenizer.decode(out.sequences[0, out.n_prompt_tokens :], skip_special_tokens=True).strip()

    @checked
    @torch.no_grad()
    def generated(
        self,
        asked: Prompt | Sequence[Encoded],
        *,
        max_new_tokens: Annotated[int, Whole(1)] = 32,
        heads: SomeHeads = (),
        projection: Projection = "query",
        mask: SomeMask = None,
        **options: Any,
    ) -> Any:
        """What `generate` decodes: transformers' output record, with `sequences` and our `n_prompt_tokens`.

        `asked` may be encoded prompts that can share a batch; then there is a sequence for each of them.
        """
        batch, mask = [self.encode(asked)] if isinstance(asked, Prompt) else list(asked), mask or Mask()
        # A cache without sliding layers, so that a position keeps its index while decoding.
        options = {
            "do_sample": False,
            "past_key_values": DynamicCache(),
            "return_dict_in_generate": True,
            **options,
        }
        with self.masked(heads, projection, mask, batch), self.plain_generation(), double_kept(self.dtype):
            out = self.hf.generate(**join(batch), max_new_tokens=max_new_tokens, **options)
        out.n_prompt_tokens = batch[0].n_tokens
        self.work.count(self.n_layers, *out.sequences.shape)
        return out

    @contextmanager
    def plain_generation(self) -> Iterator[None]:
        """For the length of a block, transformers' `generate` is greedy and no more.

        A checkpoint's generation settings (penalties, suppressed and forced tokens, sampling) would make the reply
        another than that of the logits; only the ids that begin, end and pad a text are kept.
        """
        before = self.hf.generation_config
        pad = before.pad_token_id
        if pad is None:
            pad = self.tokenizer.pad_token_id or self.tokenizer.eos_token_id or 0
        ends = {"bos_token_id": before.bos_token_id, "eos_token_id": before.eos_token_id, "pad_token_id": pad}
        with self.lock:
            self.hf.generation_config = GenerationConfig(**ends)
            try:
                yield
            finally:
                self.hf.generation_config = before

    def attention(self, prompt: Prompt) -> Float[Tensor, "layer head key"]:
        """Attention of the last prompt position over the keys, NaN in layers without maskable heads."""
        base = self.base(prompt)
        shown = torch.full((self.n_layers, self.n_heads, base.n_pos), torch.nan)
        for layer in base.recordings:
            shown[layer] = last_attention(base, layer)[0].float().cpu()
        return shown

    def head_outputs(self, prompt: Prompt) -> Float[Tensor, "layer head d_head"]:
        """z of every head at the last prompt position, before W_O, unmasked."""
        shown = torch.full((self.n_layers, self.n_heads, self.d_head), torch.nan)
        for layer, seen in self.base(prompt).recordings.items():
            shown[layer] = seen.z[0, -1].float().cpu()
        return shown

    @cached_property
    def bridge(self) -> Any:
        """The TransformerLens bridge over a second module tree on the same weights (its hook names, its cache).

        Raises:
            ModelError: When TransformerLens has none for the architecture, or one that is not right for this model.
        """
        from workbench.models.bridge import build_bridge

        prompt = probe_prompt(self)
        probes = [prompt]
        if prompt.image is not None and not self.family.needs_image:
            probes.append(dataclasses.replace(prompt, image=None))
        with self.lock:
            return build_bridge(self, [self.encode(p) for p in probes])

    def run_with_cache(self, prompt: Prompt, **options: Any) -> tuple[Tensor, Any]:
        """TransformerLens' `run_with_cache`, image included: (logits `[1, pos, vocab]`, ActivationCache)."""
        return self._through_bridge(self.bridge.run_with_cache, prompt, options)

    def run_with_hooks(self, prompt: Prompt, fwd_hooks: Sequence[tuple[Any, Any]] = (), **options: Any) -> Tensor:
        """TransformerLens' `run_with_hooks`, image included: logits `[1, pos, vocab]`."""
        return self._through_bridge(self.bridge.run_with_hooks, prompt, {"fwd_hooks": list(fwd_hooks), **options})

    def _through_bridge(self, run: Any, prompt: Prompt, options: dict[str, Any]) -> Any:
        inputs = dict(self.encode(prompt).model_inputs)
        with self.lock, torch.no_grad(), double_kept(self.dtype):
            return run(inputs.pop("input_ids"), **inputs, **options)


def last_attention(base: BasePass, layer: int) -> Float[Tensor, "prompt head key"]:
    """Attention weights of the last position of each prompt of a base pass."""
    return attention_pattern(base.recordings[layer].at_last())[:, :, 0]


def _span(layers: Sequence[int]) -> str:
    plain = list(layers) == list(range(layers[0], layers[-1] + 1))
    return f"{layers[0]}..{layers[-1]}" if plain else ", ".join(map(str, layers))
