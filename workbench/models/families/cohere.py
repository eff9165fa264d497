"""Aya-Vision and Command-A-Vision: Cohere2 text (attention and MLP side by side, sliding windows in most layers)."""

from typing import Any

from torch import Tensor

from workbench.models.families.family import Family, TinyParts
from workbench.models.families.layout import Tile, tiles_and_whole
from workbench.models.families.processors import named_class

AYA_SPECIALS = ("<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>")
COMMAND_A_SPECIALS = ("<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>")


def unscaled_logits(hf: Any, state: Tensor) -> Tensor:
    """Unembedding alone: transformers' vision classes leave out Cohere2's logit scale, and we follow them."""
    return hf.get_output_embeddings()(state)


def aya_layout(encoded: Any, model: Any, picture: Any) -> list[Tile] | None:
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

    images = model.processor.image_processor
    tile = (images.size["height"], images.size["width"])
    canvas = get_optimal_tiled_canvas((picture.height, picture.width), tile, images.min_patches, images.max_patches)
    columns, rows = canvas
    return tiles_and_whole(columns, rows, tokens_across(model))


def command_a_layout(encoded: Any, model: Any, picture: Any) -> list[Tile] | None:
    from workbench.models.families.pil_images import least_scaling_canvas

    images = model.processor.image_processor
    return tiles_and_whole(
        *least_scaling_canvas(picture.size, images.size["height"], images.max_patches), tokens_across(model)
    )


def tokens_across(model: Any) -> int:
    """Image tokens along one side of a tile."""
    config = model.hf.config
    return config.vision_config.image_size // config.vision_config.patch_size // config.downsample_factor


def load_command_a(where: str, options: dict[str, Any]) -> Any:
    """The processor with our PIL image processor: transformers' own needs torchvision."""
    from transformers import AutoTokenizer

    from workbench.models.families.pil_images import Cohere2VisionImages

    images = Cohere2VisionImages.from_pretrained(where, **options)
    tokenizer = AutoTokenizer.from_pretrained(where, **options)
    return named_class("cohere2_vision.processing_cohere2_vision", "Cohere2VisionProcessor")(
        images, tokenizer, chat_template=tokenizer.chat_template
    )


def _text(tokenizer: Any) -> Any:
    from transformers import Cohere2Config

    from workbench.models.families.tiny_parts import D_HEAD, text_sizes

    layers = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]
    return Cohere2Config(
        **text_sizes(tokenizer, head_dim=D_HEAD, sliding_window=8, layer_types=layers, logit_scale=0.25)
    )


def _vision() -> Any:
    from transformers import SiglipVisionConfig

    return SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8,
        vision_use_head=False,
    )  # fmt: skip


def tiny_aya() -> TinyParts:
    from transformers import (
        AyaVisionConfig,
        AyaVisionForConditionalGeneration,
        AyaVisionProcessor,
        GotOcr2ImageProcessorPil,
    )

    from workbench.models.families.tiny_parts import tiny_tokenizer

    tiles = [f"TILE_{i}" for i in range(1, 5)] + ["TILE_GLOBAL"]
    tokenizer = tiny_tokenizer([*AYA_SPECIALS, *tiles], image="<image>")
    image_id = tokenizer.convert_tokens_to_ids("<|IMG_PATCH|>")
    config = AyaVisionConfig(vision_config=_vision(), text_config=_text(tokenizer), image_token_index=image_id)
    images = GotOcr2ImageProcessorPil(size={"height": 32, "width": 32}, max_patches=4)
    processor = AyaVisionProcessor(
        images, tokenizer, patch_size=8, downsample_factor=2, img_size=32, chat_template=tokenizer.chat_template
    )
    return TinyParts(AyaVisionForConditionalGeneration(config), tokenizer, processor)


def tiny_command_a() -> TinyParts:
    from transformers import Cohere2VisionConfig, Cohere2VisionForConditionalGeneration

    from workbench.models.families.pil_images import Cohere2VisionImages
    from workbench.models.families.tiny_parts import tiny_tokenizer

    start, end, image, line_break = COMMAND_A_SPECIALS
    named = {"boi_token": start, "eoi_token": end, "image_token": image, "img_line_break_token": line_break}
    tokenizer = tiny_tokenizer(COMMAND_A_SPECIALS, image=image, named=named)
    config = Cohere2VisionConfig(
        vision_config=_vision(), text_config=_text(tokenizer), alignment_intermediate_size=64,
        image_token_id=tokenizer.image_token_id,
    )  # fmt: skip
    # The processor's `patch_size` is the number of tokens along a tile.
    images = Cohere2VisionImages(size={"height": 32, "width": 32}, max_patches=4, patch_size=2)
    processor_class = named_class("cohere2_vision.processing_cohere2_vision", "Cohere2VisionProcessor")
    processor = processor_class(images, tokenizer, chat_template=tokenizer.chat_template)
    return TinyParts(Cohere2VisionForConditionalGeneration(config), tokenizer, processor)


_LOGITS = (
    "transformers leaves out Cohere2's logit scale in this class, so logits (and KL) are at its unscaled temperature"
)
AYA = Family(
    "aya_vision", "AyaVisionForConditionalGeneration", sliding=True, logits=unscaled_logits, layout=aya_layout,
    tiny=tiny_aya, limits=_LOGITS,
)  # fmt: skip
COMMAND_A = Family(
    "cohere2_vision", "Cohere2VisionForConditionalGeneration", sliding=True, logits=unscaled_logits,
    layout=command_a_layout, processor=load_command_a, tiny=tiny_command_a, limits=_LOGITS,
)  # fmt: skip
FAMILIES = (AYA, COMMAND_A)
