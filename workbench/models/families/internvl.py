"""InternVL, in transformers' own classes (checkpoints whose names end in `-hf`)."""

from typing import Any

from workbench.models.families.family import Family, TinyParts
from workbench.models.families.layout import Tile, tiles_and_whole
from workbench.models.families.processors import images_only, named_class


def layout(encoded: Any, model: Any, picture: Any) -> list[Tile] | None:
    """Tiles in reading order, then the whole picture."""
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

    config, images = model.hf.config, model.processor.image_processor
    tile = (images.size["height"], images.size["width"])
    canvas = get_optimal_tiled_canvas((picture.height, picture.width), tile, images.min_patches, images.max_patches)
    side = config.vision_config.image_size[0] // config.vision_config.patch_size[0] * config.downsample_ratio
    columns, rows = canvas
    return tiles_and_whole(columns, rows, int(side))


def load_processor(where: str, options: dict[str, Any]) -> Any:
    """The processor without its video slot, which alone needs torchvision."""
    return images_only(named_class("internvl.processing_internvl", "InternVLProcessor")).from_pretrained(
        where, **options
    )


def tiny() -> TinyParts:
    """Qwen2 text; a picture becomes up to four tiles and a thumbnail."""
    from transformers import (
        GotOcr2ImageProcessorPil,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLVisionConfig,
        Qwen2Config,
    )

    from workbench.models.families.tiny_parts import D_HEAD, text_sizes, tiny_tokenizer

    named = {
        "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }  # fmt: skip
    tokenizer = tiny_tokenizer(list(named.values()), image="<IMG_CONTEXT>", named=named)
    vision = InternVLVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=[32, 32],
        patch_size=[8, 8],
    )
    text = Qwen2Config(**text_sizes(tokenizer, head_dim=D_HEAD))
    config = InternVLConfig(
        vision_config=vision, text_config=text, image_token_id=tokenizer.context_image_token_id, image_seq_length=4
    )
    images = GotOcr2ImageProcessorPil(size={"height": 32, "width": 32}, crop_to_patches=True, max_patches=4)
    processor = images_only(named_class("internvl.processing_internvl", "InternVLProcessor"))(
        images, tokenizer, image_seq_length=4, chat_template=tokenizer.chat_template
    )
    return TinyParts(InternVLForConditionalGeneration(config), tokenizer, processor)


FAMILIES = (
    Family(
        "internvl", "InternVLForConditionalGeneration", layout=layout, processor=load_processor, tiny=tiny,
        limits="images, not videos; transformers' classes, not the checkpoints' own code",
    ),
)  # fmt: skip
