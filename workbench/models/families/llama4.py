"""Llama 4: chunked and full layers, query norm after the rotary step, query temperature by position, experts."""

from functools import partial
from typing import Any

from workbench.models.families.family import Family, TinyParts
from workbench.models.families.layout import Tile, tiles_of
from workbench.models.families.processors import load_with_our_images
from workbench.models.families.tiny_parts import WIDE, tiny_parts

PROCESSOR = "llama4.Llama4Processor"
SPECIALS = (
    "<|image|>", "<|image_start|>", "<|image_end|>", "<|patch|>", "<|tile_x_separator|>", "<|tile_y_separator|>"
)  # fmt: skip


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


def tiny() -> TinyParts:
    """Chunks of 8 positions in three layers of four; experts in every second layer."""
    from workbench.models.families.pil_images import Llama4Images

    text = WIDE | {
        "model_type": "llama4_text", "intermediate_size_mlp": 64, "num_local_experts": 4,
        "interleave_moe_layer_step": 2, "num_experts_per_tok": 2, "attention_chunk_size": 8, "floor_scale": 4,
        "attn_scale": 0.5, "no_rope_layer_interval": 4,
    }  # fmt: skip
    vision = {"intermediate_size": 128} | dict.fromkeys(
        ("vision_output_dim", "projector_input_dim", "projector_output_dim"), 64
    )
    return tiny_parts(
        "llama4", text, vision, specials=SPECIALS, tokenizer={"image": "<|image|>"},
        ids={
            "image_token_index": "<|patch|>", "boi_token_index": "<|image_start|>", "eoi_token_index": "<|image_end|>"
        },
        images=(Llama4Images, {"size": {"height": 32, "width": 32}, "max_patches": 4}), processor=PROCESSOR,
        patch_size=8,
    )  # fmt: skip


FAMILIES = (
    Family(
        "llama4", "Llama4ForConditionalGeneration", query_norm=True, sliding=True, layout=layout,
        mlp="feed_forward", tiny=tiny, no_pixel_road="its processor rounds pixels to bfloat16, as the original does",
        processor=partial(load_with_our_images, processor=PROCESSOR, images="Llama4Images", settings=True),
        limits="the query norm is absent in checkpoints that switch it off, and in layers without rotary positions",
    ),
)  # fmt: skip
