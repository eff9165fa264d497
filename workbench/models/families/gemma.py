"""Gemma 3 and PaliGemma with pictures; Gemma 2 and 3 without.

Gemma 3 norms its queries, mixes windowed and full layers, and lets image tokens see each other in both directions.
PaliGemma's whole prompt sees itself in both directions (a prefix language model). Gemma 2 caps its attention scores.
"""

from typing import Any

from workbench.models.families.family import Family, TinyParts

LAYERS = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]


def _siglip() -> Any:
    from transformers import SiglipVisionConfig

    return SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8,
        projection_dim=48, vision_use_head=False,
    )  # fmt: skip


def tiny_gemma3() -> TinyParts:
    """A window shorter than the image block."""
    from transformers import (
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        Gemma3ImageProcessorPil,
        Gemma3Processor,
        Gemma3TextConfig,
    )

    from workbench.models.families.tiny_parts import D_HEAD, text_sizes, tiny_tokenizer

    start, end, image = "<start_of_image>", "<end_of_image>", "<image_soft_token>"
    named = {"boi_token": start, "eoi_token": end, "image_token": image}
    tokenizer = tiny_tokenizer([start, end, image], image=start, named=named)
    text = Gemma3TextConfig(
        **text_sizes(tokenizer, head_dim=D_HEAD, query_pre_attn_scalar=D_HEAD, sliding_window=6, layer_types=LAYERS)
    )
    config = Gemma3Config(
        text_config=text, vision_config=_siglip(), mm_tokens_per_image=4, image_token_index=tokenizer.image_token_id,
        boi_token_index=tokenizer.boi_token_id, eoi_token_index=tokenizer.eoi_token_id,
    )  # fmt: skip
    images = Gemma3ImageProcessorPil(size={"height": 32, "width": 32})
    processor = Gemma3Processor(images, tokenizer, image_seq_length=4, chat_template=tokenizer.chat_template)
    return TinyParts(Gemma3ForConditionalGeneration(config), tokenizer, processor)


def tiny_paligemma() -> TinyParts:
    """PaliGemma 2: Gemma 2 text."""
    from transformers import (
        Gemma2Config,
        PaliGemmaConfig,
        PaliGemmaForConditionalGeneration,
        PaliGemmaProcessor,
        SiglipImageProcessorPil,
    )

    from workbench.models.families.tiny_parts import D_HEAD, text_sizes, tiny_tokenizer

    tokenizer = tiny_tokenizer(["<image>"], image="<image>", named={"image_token": "<image>"})
    images = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    images.image_seq_length = 16
    # The processor adds its location and segmentation tokens to the tokenizer, so it comes before the sizes.
    processor = PaliGemmaProcessor(images, tokenizer, chat_template=tokenizer.chat_template)
    text = Gemma2Config(
        **text_sizes(tokenizer, head_dim=D_HEAD, query_pre_attn_scalar=D_HEAD, sliding_window=8, layer_types=LAYERS)
    )
    config = PaliGemmaConfig(
        text_config=text,
        vision_config=_siglip(),
        image_token_index=tokenizer.image_token_id,
        projection_dim=48,
        hidden_size=48,
    )
    return TinyParts(PaliGemmaForConditionalGeneration(config), tokenizer, processor)


def tiny_gemma2() -> TinyParts:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    from workbench.models.families.tiny_parts import D_HEAD, text_sizes, tiny_tokenizer

    tokenizer = tiny_tokenizer()
    sizes = text_sizes(tokenizer, head_dim=D_HEAD, query_pre_attn_scalar=D_HEAD, sliding_window=4, layer_types=LAYERS)
    return TinyParts(
        Gemma2ForCausalLM(Gemma2Config(**sizes, attn_logit_softcapping=2.0, final_logit_softcapping=3.0)), tokenizer
    )


def tiny_gemma3_text() -> TinyParts:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    from workbench.models.families.tiny_parts import D_HEAD, text_sizes, tiny_tokenizer

    tokenizer = tiny_tokenizer()
    sizes = text_sizes(tokenizer, head_dim=D_HEAD, query_pre_attn_scalar=D_HEAD, sliding_window=4, layer_types=LAYERS)
    return TinyParts(Gemma3ForCausalLM(Gemma3TextConfig(**sizes)), tokenizer)


# Instruction-tuned PaliGemma checkpoints come without a chat template: the prompt is the picture, then the text.
PALIGEMMA_TEMPLATE = (
    "{% for m in messages %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}"
)
GEMMA3 = Family(
    "gemma3", "Gemma3ForConditionalGeneration", query_norm=True, sliding=True, tiny=tiny_gemma3,
    limits="one view of the picture: pan and scan stays off, as in transformers",
)  # fmt: skip
PALIGEMMA = Family(
    "paligemma", "PaliGemmaForConditionalGeneration", sliding=True, chat_template=PALIGEMMA_TEMPLATE,
    tiny=tiny_paligemma, limits="needs a picture with every prompt (its processor does)",
)  # fmt: skip
GEMMA2 = Family("gemma2", "Gemma2ForCausalLM", has_images=False, sliding=True, tiny=tiny_gemma2)
GEMMA3_TEXT = Family(
    "gemma3_text", "Gemma3ForCausalLM", has_images=False, query_norm=True, sliding=True, tiny=tiny_gemma3_text
)
FAMILIES = (GEMMA3, PALIGEMMA, GEMMA2, GEMMA3_TEXT)
