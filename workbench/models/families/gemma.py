"""Gemma 3 and PaliGemma with pictures; Gemma 2 and 3 without.

Gemma 3 norms its queries, mixes windowed and full layers, and lets image tokens see each other in both directions.
PaliGemma's whole prompt sees itself in both directions (a prefix language model). Gemma 2 caps its attention scores.
"""

from functools import partial
from typing import Any

from workbench.models.families.family import Family, TinyParts
from workbench.models.families.tiny_parts import D_HEAD, WIDE, tiny_parts

LAYERS = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]


SIGLIP = {"model_type": "siglip_vision_model", "projection_dim": 48, "vision_use_head": False}
SIZE = {"size": {"height": 32, "width": 32}}


def _text(window: int, **other: Any) -> dict[str, Any]:
    return WIDE | {"query_pre_attn_scalar": D_HEAD, "sliding_window": window, "layer_types": LAYERS, **other}


def tiny_gemma3() -> TinyParts:
    """A window shorter than the image block."""
    start, end, image = "<start_of_image>", "<end_of_image>", "<image_soft_token>"
    return tiny_parts(
        "gemma3", _text(6, model_type="gemma3_text"), SIGLIP, specials=[start, end, image],
        tokenizer={"image": start, "named": {"boi_token": start, "eoi_token": end, "image_token": image}},
        ids={"image_token_index": image, "boi_token_index": start, "eoi_token_index": end},
        config={"mm_tokens_per_image": 4}, images=("Gemma3ImageProcessorPil", SIZE), processor="Gemma3Processor",
        image_seq_length=4,
    )  # fmt: skip


def tiny_paligemma() -> TinyParts:
    """PaliGemma 2: Gemma 2 text."""
    return tiny_parts(
        "paligemma", _text(8, model_type="gemma2"), SIGLIP, specials=["<image>"],
        tokenizer={"image": "<image>", "named": {"image_token": "<image>"}}, ids={"image_token_index": "<image>"},
        config={"projection_dim": 48, "hidden_size": 48}, processor="PaliGemmaProcessor",
        images=("SiglipImageProcessorPil", SIZE | {"image_seq_length": 16}),
    )  # fmt: skip


# Instruction-tuned PaliGemma checkpoints come without a chat template: the prompt is the picture, then the text.
PALIGEMMA_TEMPLATE = (
    "{% for m in messages %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}"
)
FAMILIES = (
    Family(
        "gemma3", "Gemma3ForConditionalGeneration", query_norm=True, sliding=True, tiny=tiny_gemma3,
        limits="one view of the picture: pan and scan stays off, as in transformers",
    ),
    Family(
        "paligemma", "PaliGemmaForConditionalGeneration", sliding=True, chat_template=PALIGEMMA_TEMPLATE,
        needs_image=True,
        tiny=tiny_paligemma, limits="needs a picture with every prompt (its processor does)",
    ),
    Family(
        "gemma2", "Gemma2ForCausalLM", has_images=False, sliding=True,
        tiny=partial(tiny_parts, "gemma2", _text(4, attn_logit_softcapping=2.0, final_logit_softcapping=3.0)),
    ),
    Family(
        "gemma3_text", "Gemma3ForCausalLM", has_images=False, query_norm=True, sliding=True,
        tiny=partial(tiny_parts, "gemma3_text", _text(4)),
    ),
)  # fmt: skip
