"""`Family`: the few facts about an architecture that the rest of the workbench cannot read off the model itself.

Most facts need no entry here, because the attention door (`workbench.models.attention`) sees every family at the
same point: after any query norm, with the layer's real mask, per query head. A family says where its parts hang
in transformers' module tree, how a picture's tokens are laid out, and what it cannot do.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from workbench.errors import ModelError
from workbench.models.families.layout import Tile, one_square


def logits_from_state(hf: Any, state: Tensor) -> Tensor:
    """Logits from final states (after the final norm): unembedding, then the logit scale or cap of the config."""
    text = hf.config.get_text_config(decoder=True)
    logits = hf.get_output_embeddings()(state)
    if (scale := getattr(text, "logit_scale", None)) is not None:
        logits = logits * scale
    if (cap := getattr(text, "final_logit_softcapping", None)) is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits


def configured_image_token(hf: nn.Module) -> int | None:
    """Id of the placeholder that stands for one image token, under either of the names configurations use."""
    for name in ("image_token_id", "image_token_index"):
        if (token_id := getattr(hf.config, name, None)) is not None:
            return int(token_id)
    return None


def nothing_between(layer: int, hidden: Tensor, recorded: dict[str, Any], n_rows: int, start: int) -> Tensor:
    """Most decoders pass one layer's output to the next unchanged."""
    return hidden


@dataclass(frozen=True)
class TinyParts:
    """A tiny random model: transformers' real class from a small configuration, tokenizer and processor built here."""

    hf: nn.Module
    tokenizer: Any
    processor: Any = None


@dataclass(frozen=True)
class Family:
    """One architecture.

    Attributes:
        name: transformers' `model_type`.
        architecture: transformers' class name, under which TransformerLens knows the adapter.
        has_images: Whether the family has an image tower.
        layers: Name inside the decoder (`hf.get_decoder()`).
        norm: Likewise, of the final norm.
        attention: Name of the self-attention inside a layer.
        output: Name of W_O inside the attention.
        mlp: Name of the MLP (or the experts) inside a layer.
        query_weights: Given the attention module, the module whose output begins with the queries (before any
            query norm) and how many of its channels are queries; for the published mask, which scales weights.
        logits: From the HF model and final states `[..., d_model]` to logits `[..., vocab]`.
        image_token: From the HF model to the id of the placeholder that stands for one image token.
        layout: From an encoded prompt, the model and the picture to the grids its image tokens form, in token order
            (`workbench.models.families.layout`); None when that is not known.
        after_layer: What the decoder adds between layers: `(layer, hidden, recorded, n_rows, start) -> hidden`, where
            `recorded` holds the decoder arguments named in `decoder_record`.
        decoder_record: Names of the decoder's keyword arguments that `after_layer` needs.
        position_arguments: Arguments of decoder layers with a position axis beyond the usual ones: name to axis,
            counted from the end.
        skips_layer: Layers whose self-attention heads are not masked (cross-attention), from the decoder's layer.
        chat_template: Used when the checkpoint's tokenizer has none.
        needs_image: True when the processor takes no prompt without a picture.
        query_norm: True when a norm follows the query projection, so that scaling weights is not scaling scores.
        sliding: True when some layers see only a window or a chunk of the sequence.
        own_class: Gives the model class, where transformers has none.
        prepare: Called once on the loaded HF model, where transformers' own needs a repair.
        processor: Loads the processor from a directory or Hub id and its options, where transformers' own class cannot
            be built without torchvision.
        tiny: Builds a tiny random model of the family, for `workbench check FAMILY --tiny` and the tests.
        no_pixel_road: Why no gradients lead to its pixels (`workbench.models.pixels`); empty where they do.
        limits: What a user should know; shown by `workbench models`.
    """

    name: str
    architecture: str
    has_images: bool = True
    layers: str = "layers"
    norm: str = "norm"
    attention: str = "self_attn"
    output: str = "o_proj"
    mlp: str = "mlp"
    query_weights: Callable[[nn.Module], tuple[nn.Module, int]] | None = None
    logits: Callable[[nn.Module, Tensor], Tensor] = logits_from_state
    image_token: Callable[[nn.Module], int | None] = configured_image_token
    layout: Callable[[Any, Any, Any], list[Tile] | None] = one_square
    after_layer: Callable[[int, Tensor, dict[str, Any], int, int], Tensor] = nothing_between
    decoder_record: tuple[str, ...] = ()
    position_arguments: Mapping[str, int] = field(default_factory=dict)
    skips_layer: Callable[[nn.Module], bool] = lambda layer: False
    chat_template: str | None = None
    needs_image: bool = False
    query_norm: bool = False
    sliding: bool = False
    own_class: Callable[[], Any] | None = None
    prepare: Callable[[nn.Module], None] = lambda hf: None
    processor: Callable[[str, dict[str, Any]], Any] | None = None
    tiny: Callable[[], TinyParts] | None = None
    no_pixel_road: str = ""
    limits: str = ""

    def model_class(self) -> Any:
        """The class the checkpoint is loaded in: transformers' own, by the name of the architecture."""
        if self.own_class is not None:
            return self.own_class()
        import transformers

        return getattr(transformers, self.architecture)

    def decoder(self, hf: Any) -> Any:
        """The text decoder that holds the layers and the final norm."""
        decoder = hf.get_decoder()
        # Some classes give the language model together with its unembedding.
        while not hasattr(decoder, self.layers):
            decoder = decoder.model
        return decoder

    def decoder_layers(self, hf: nn.Module) -> list[nn.Module]:
        """Every decoder layer in order, cross-attention layers included."""
        return list(getattr(self.decoder(hf), self.layers))

    def final_norm(self, decoder: Any) -> Any:
        """The norm after the last decoder layer."""
        if (found := getattr(decoder, self.norm, None)) is None:
            raise ModelError(
                f"Family {self.name!r} expects `{self.norm}` in its text decoder; {type(decoder).__name__} has "
                f"{', '.join(n for n, _ in decoder.named_children())}, so this text model cannot be masked here."
            )
        return found

    def attentions(self, hf: Any) -> dict[int, Any]:
        """The self-attention module of each decoder layer that has maskable heads, by layer."""
        found = {}
        for number, layer in enumerate(self.decoder_layers(hf)):
            if self.skips_layer(layer):
                continue
            module = getattr(layer, self.attention, None)
            if module is None:
                raise ModelError(
                    f"Family {self.name!r} expects `{self.attention}` in decoder layer {number}; "
                    f"{type(layer).__name__} has {', '.join(n for n, _ in layer.named_children())}."
                )
            found[number] = module
        return found
