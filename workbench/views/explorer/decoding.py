"""A reply step by step: what the heads see, and what masking does, at each token that is decoded."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from workbench.axes import Head
from workbench.models.encode import Encoded
from workbench.models.masks import Mask
from workbench.models.precision import double_kept
from workbench.models.walk import BasePass, base_pass
from workbench.prompts.prompt import Prompt

if TYPE_CHECKING:
    from workbench.models.hooked import HookedLVLM


@dataclasses.dataclass(eq=False, repr=False)
class Decoded:
    """A prompt with the reply that was decoded behind it.

    Attributes:
        prompt: As it was asked, with its picture.
        encoded: The prompt's tokens, then the reply's.
        asked: The prompt's tokens alone.
        masked: Whether the mask was on while it was decoded.
        heads: What the mask is about; may be none.
    """

    prompt: Prompt
    encoded: Encoded
    asked: Encoded
    masked: bool
    heads: Sequence[Head]
    projection: str
    mask: Mask

    @classmethod
    def of(
        cls,
        model: "HookedLVLM",
        prompt: Prompt,
        ids: Tensor,
        *,
        masked: bool,
        heads: Sequence[Head],
        projection: str,
        mask: Mask,
    ) -> "Decoded":
        """The prompt and the token ids of its reply, `[pos]`."""
        asked = model.encode(prompt)
        return cls(prompt, _continued(model, asked, ids), asked, masked, heads, projection, mask)

    def __repr__(self) -> str:
        return f"Decoded({self.encoded.prompt_id!r}, {len(self.tokens)} tokens)"

    @property
    def first(self) -> int:
        """Position from which the first token of the reply was chosen: the prompt's last."""
        return self.asked.n_tokens - 1

    @property
    def tokens(self) -> list[str]:
        """Of the reply."""
        return self.encoded.tokens[self.first + 1 :]

    def look(self, model: "HookedLVLM") -> BasePass:
        """One pass over all of it, as it was decoded.

        A head whose query is masked looks as evenly, or as blurred, as the mask makes it.
        """
        if not self.masked:
            return base_pass(model, [self.encoded])
        with model.masked(self.heads, self.projection, self.mask, [self.asked]):
            seen = base_pass(model, [self.encoded])
        # The published form masks before what is recorded, and forms that put something into z leave queries alone.
        if self.projection == "query" and self.mask.form != "as_published" and not self.mask.puts_in("query"):
            masked = slice(self.mask.start(self.asked), self.mask.stop(self.asked, "query"))
            rows = self.mask.row_heads(model.n_heads, model.n_kv_heads)
            for layer, head in self.heads:
                query = seen.recordings[layer].query.clone()
                query[:, list(rows[head]), masked] *= self.mask.factor
                seen.recordings[layer].query = query
        return seen

    @torch.no_grad()
    def states(self, model: "HookedLVLM", *, masked: bool) -> Tensor:
        """Final states from which the reply's tokens are chosen, with or without the mask, `[step, d_model]`."""
        kept: list[Tensor] = []
        with (
            model.masked(self.heads if masked else (), self.projection, self.mask, [self.asked]),
            model.final_norm.register_forward_hook(lambda module, args, output: kept.append(output[0])),
            double_kept(model.dtype),
        ):
            model.hf(**self.encoded.model_inputs, use_cache=False, logits_to_keep=1)
        return kept[-1][self.first : -1]


def _continued(model: "HookedLVLM", encoded: Encoded, ids: Tensor) -> Encoded:
    """The prompt with the tokens of its reply behind it.

    What else is said of each position (its kind, whether it may see the picture) is what transformers says of a new one
    while it decodes.
    """
    said = dict(encoded.model_inputs)
    for _ in ids:
        said = model.hf._update_model_kwargs_for_generation(
            outputs=ModelOutput(), model_kwargs=dict(said), is_encoder_decoder=False
        )
    inputs = {name: said.get(name, value) for name, value in encoded.model_inputs.items()}
    inputs["input_ids"] = torch.cat([encoded.input_ids, ids[None].to(encoded.input_ids)], dim=1)
    tokens = [str(token) for token in model.tokenizer.convert_ids_to_tokens(ids.tolist())]
    where = torch.cat([encoded.image_positions, torch.zeros(len(ids), dtype=torch.bool)])
    return dataclasses.replace(encoded, model_inputs=inputs, tokens=[*encoded.tokens, *tokens], image_positions=where)
