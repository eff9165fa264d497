"""Llama 4: chunked and full layers, query norm after the rotary step, query temperature by position, experts."""

from typing import Any

from workbench.models.families.family import Family, TinyParts
from workbench.models.families.layout import Tile, tiles_of
from workbench.models.families.processors import named_class

SPECIALS = (
    "<|image|>",
    "<|image_start|>",
    "<|image_end|>",
    "<|patch|>",
    "<|tile_x_separator|>",
    "<|tile_y_separator|>",
)


def layout(encoded: Any, model: Any, picture: Any) -> list[Tile] | None:
    """Tiles of a padded canvas, read off the separators in the prompt, then the whole picture."""
    config, images = model.hf.config.vision_config, model.processor.image_processor
    side = int(config.image_size // config.patch_size * config.pixel_shuffle_ratio)
    rows = encoded.tokens.count("<|tile_y_separator|>")
    if rows == 0:
        region = padded_region(picture.size, (config.image_size, config.image_size), images)
        return [Tile(side, side, region)]
    columns = encoded.tokens.count("<|tile_x_separator|>") // rows + 1
    canvas = (columns * config.image_size, rows * config.image_size)
    return [*tiles_of(rows, columns, side, padded_region(picture.size, canvas, images)), Tile(side, side)]


def padded_region(picture: tuple[int, int], canvas: tuple[int, int], images: Any) -> tuple[float, float, float, float]:
    """What the canvas covers in units of the picture: more than 1 where it is padded on the right or below."""
    tile = images.size["height"]
    width, height = canvas
    if not images.resize_to_max_canvas:
        width, height = (min(max(side, tile), limit) for side, limit in zip(picture, canvas, strict=True))
    scale = min(width / picture[0], height / picture[1])
    return (0.0, 0.0, canvas[0] / (picture[0] * scale), canvas[1] / (picture[1] * scale))


def load_processor(where: str, options: dict[str, Any]) -> Any:
    """The processor with our PIL image processor: transformers' own needs torchvision."""
    from transformers import AutoTokenizer

    from workbench.models.families.pil_images import Llama4Images

    processor_class = named_class("llama4.processing_llama4", "Llama4Processor")
    settings, _ = processor_class.get_processor_dict(where, **options)
    kept = {k: v for k, v in settings.items() if k not in ("image_processor", "processor_class", "tokenizer")}
    tokenizer = AutoTokenizer.from_pretrained(where, **options)
    kept.setdefault("chat_template", tokenizer.chat_template)
    return processor_class(Llama4Images.from_pretrained(where, **options), tokenizer, **kept)


def tiny() -> TinyParts:
    """Chunks of 8 positions in three layers of four; experts in every second layer."""
    from transformers import Llama4Config, Llama4ForConditionalGeneration
    from transformers.models.llama4.configuration_llama4 import Llama4TextConfig, Llama4VisionConfig

    from workbench.models.families.pil_images import Llama4Images
    from workbench.models.families.tiny_parts import D_HEAD, text_sizes, tiny_tokenizer

    tokenizer = tiny_tokenizer(SPECIALS, image="<|image|>")
    text = Llama4TextConfig(
        **text_sizes(tokenizer, head_dim=D_HEAD, intermediate_size_mlp=64, num_local_experts=4),
        interleave_moe_layer_step=2, num_experts_per_tok=2, attention_chunk_size=8, floor_scale=4, attn_scale=0.5,
        no_rope_layer_interval=4,
    )  # fmt: skip
    vision = Llama4VisionConfig(
        hidden_size=32, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8,
        vision_output_dim=64, projector_input_dim=64, projector_output_dim=64,
    )  # fmt: skip
    config = Llama4Config(
        vision_config=vision, text_config=text, image_token_index=tokenizer.convert_tokens_to_ids("<|patch|>"),
        boi_token_index=tokenizer.convert_tokens_to_ids("<|image_start|>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<|image_end|>"),
    )  # fmt: skip
    images = Llama4Images(size={"height": 32, "width": 32}, max_patches=4)
    processor = named_class("llama4.processing_llama4", "Llama4Processor")(
        images, tokenizer, patch_size=8, chat_template=tokenizer.chat_template
    )
    return TinyParts(Llama4ForConditionalGeneration(config), tokenizer, processor)


FAMILIES = (
    Family(
        "llama4", "Llama4ForConditionalGeneration", query_norm=True, sliding=True, layout=layout,
        processor=load_processor, tiny=tiny,
        limits="the query norm is absent in checkpoints that switch it off, and in layers without rotary positions",
    ),
)  # fmt: skip
