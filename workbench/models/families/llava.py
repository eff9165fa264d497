"""LLaVA-1.5 and what is saved in its classes (CLIP or SigLIP tower; Llama-like text), LLaVA-NeXT, LLaVA-OneVision."""

from typing import Any

import torch

from workbench.models.families.family import Family, TinyParts
from workbench.models.families.layout import Tile
from workbench.models.families.processors import images_only


def anyres_layout(encoded: Any, model: Any, picture: Any) -> list[Tile] | None:
    """The picture at the tower's own size, then tiles joined into one grid with a separator after each row."""
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

    config = model.hf.config
    side = config.vision_config.image_size // config.vision_config.patch_size
    sizes = encoded.model_inputs["image_sizes"][0]
    pinpoints = config.image_grid_pinpoints
    rows, columns = get_anyres_image_grid_shape(sizes.tolist(), pinpoints, config.vision_config.image_size)
    _, height, width = unpad_image(torch.empty(1, rows * side, columns * side), sizes.tolist()).shape
    if (aspect := getattr(config, "vision_aspect_ratio", "")).startswith("anyres_max_"):
        ratio = (height * width / (int(aspect.removeprefix("anyres_max_")) * side**2)) ** 0.5
        if ratio > 1.1:
            height, width = int(height // ratio), int(width // ratio)
    return [Tile(side, side), Tile(height, width, row_breaks=True)]


def onevision_processor(where: str, options: dict[str, Any]) -> Any:
    """The processor without its video slot, which alone needs torchvision."""
    from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor

    return images_only(LlavaOnevisionProcessor).from_pretrained(where, **options)


def tiny_llava() -> TinyParts:
    """CLIP tower, Llama text with heads wider than hidden_size / heads."""
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    from workbench.models.families.tiny_parts import D_HEAD, text_sizes, tiny_tokenizer

    tokenizer = tiny_tokenizer(["<image>"], image="<image>")
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    text = LlamaConfig(**text_sizes(tokenizer, head_dim=D_HEAD))
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=image_id, image_seq_length=16)
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = LlavaProcessor(
        images, tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )  # fmt: skip
    return TinyParts(LlavaForConditionalGeneration(config), tokenizer, processor)


def tiny_llava_next() -> TinyParts:
    """Mistral text with a sliding window shorter than the prompt; a picture becomes a thumbnail and two tiles."""
    from transformers import (
        CLIPVisionConfig,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessorPil,
        LlavaNextProcessor,
        MistralConfig,
    )

    from workbench.models.families.tiny_parts import D_HEAD, text_sizes, tiny_tokenizer

    tokenizer = tiny_tokenizer(["<image>"], image="<image>")
    pinpoints = [[32, 64], [64, 32], [64, 64]]
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    text = MistralConfig(**text_sizes(tokenizer, head_dim=D_HEAD, sliding_window=16))
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    config = LlavaNextConfig(
        vision_config=vision, text_config=text, image_token_index=image_id, image_grid_pinpoints=pinpoints
    )
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=pinpoints
    )
    processor = LlavaNextProcessor(
        images, tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )  # fmt: skip
    return TinyParts(LlavaNextForConditionalGeneration(config), tokenizer, processor)


def tiny_llava_onevision() -> TinyParts:
    """SigLIP tower, Qwen2 text (biases on queries, keys and values)."""
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionImageProcessorPil,
        Qwen2Config,
        SiglipVisionConfig,
    )
    from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor

    from workbench.models.families.tiny_parts import D_HEAD, text_sizes, tiny_tokenizer

    tokenizer = tiny_tokenizer(["<image>", "<video>"], image="<image>")
    pinpoints = [[32, 64], [64, 32], [64, 64]]
    vision = SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8,
        vision_use_head=False,
    )  # fmt: skip
    text = Qwen2Config(**text_sizes(tokenizer, head_dim=D_HEAD))
    config = LlavaOnevisionConfig(
        vision_config=vision, text_config=text, image_grid_pinpoints=pinpoints,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
    )  # fmt: skip
    images = LlavaOnevisionImageProcessorPil(size={"height": 32, "width": 32}, image_grid_pinpoints=pinpoints)
    processor = images_only(LlavaOnevisionProcessor)(
        images,
        tokenizer,
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=tokenizer.chat_template,
    )
    return TinyParts(LlavaOnevisionForConditionalGeneration(config), tokenizer, processor)


LLAVA = Family(name="llava", architecture="LlavaForConditionalGeneration", tiny=tiny_llava)
LLAVA_NEXT = Family(
    name="llava_next", architecture="LlavaNextForConditionalGeneration", layout=anyres_layout, tiny=tiny_llava_next
)
LLAVA_ONEVISION = Family(
    name="llava_onevision",
    architecture="LlavaOnevisionForConditionalGeneration",
    layout=anyres_layout,
    processor=onevision_processor,
    tiny=tiny_llava_onevision,
    limits="images, not videos",
)
FAMILIES = (LLAVA, LLAVA_NEXT, LLAVA_ONEVISION)
