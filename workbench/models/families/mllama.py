"""Llama 3.2 Vision: text layers with self-attention, and between them layers that look at the picture alone.

Only the self-attention layers have heads that are masked. The cross-attention layers attend to the image tower's
output, not to positions of the prompt, so "even attention over the allowed keys" would mean something else there; they
keep their numbers (runs hold NaN in those rows), and they are left out altogether for a prompt without a picture.
"""

from typing import Any

from torch import nn

from workbench.models.families.family import Family, TinyParts
from workbench.models.families.tiny_parts import tiny_parts, tiny_tokenizer


def is_cross_attention(layer: nn.Module) -> bool:
    return hasattr(layer, "cross_attn")


def no_layout(encoded: Any, model: Any, picture: Any) -> None:
    """The picture is one placeholder in the prompt; its patches are keys of the cross-attention layers only."""
    return


def tiny() -> TinyParts:
    """Two of five layers look at the picture; their gates are open."""
    specials = ["<|python_tag|>", "<|image|>"]
    text = {
        "model_type": "mllama_text_model", "num_hidden_layers": 5, "cross_attention_layers": [1, 3],
        # The embedding has eight rows more than the vocabulary: one of them is the image token.
        "vocab_size": len(tiny_tokenizer(specials)) - 1,
    }  # fmt: skip
    vision = {
        "num_global_layers": 1, "attention_heads": 2, "max_num_tiles": 4, "intermediate_layers_indices": [0, 1],
        "vision_output_dim": 96,
    }  # fmt: skip
    return tiny_parts(
        "mllama", text, vision, specials=specials, tokenizer={"image": "<|image|>"},
        ids={"image_token_index": "<|image|>"}, processor="MllamaProcessor",
        images=("MllamaImageProcessorPil", {"size": {"height": 32, "width": 32}, "max_image_tiles": 4}),
    )  # fmt: skip


FAMILIES = (
    Family(
        "mllama", "MllamaForConditionalGeneration", skips_layer=is_cross_attention, layout=no_layout, tiny=tiny,
        position_arguments={"cross_attention_mask": -2, "full_text_row_masked_out_mask": -2},
        limits="self-attention layers are masked, cross-attention layers are not; no attention over patches to show",
    ),
)  # fmt: skip
