"""Aya-Vision and Command-A-Vision: Cohere2 text (attention and MLP side by side, sliding windows in most layers)."""

from functools import partial
from typing import Any

from torch import Tensor

from workbench.models.families.family import Family, TinyParts
from workbench.models.families.layout import Tile, optimal_tiles, tiles_and_whole
from workbench.models.families.processors import load_with_our_images
from workbench.models.families.tiny_parts import WIDE, tiny_parts

COMMAND_A_SPECIALS = ("<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>")
AYA_SPECIALS = ("<image>", *COMMAND_A_SPECIALS)


def unscaled_logits(hf: Any, state: Tensor) -> Tensor:
    """Unembedding alone: transformers' vision classes leave out Cohere2's logit scale, and we follow them."""
    return hf.get_output_embeddings()(state)


def aya_layout(encoded: Any, model: Any, picture: Any) -> list[Tile] | None:
    return tiles_and_whole(*optimal_tiles(model, picture), tokens_across(model))


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


TEXT = WIDE | {
    "model_type": "cohere2", "sliding_window": 8, "logit_scale": 0.25,
    "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
}  # fmt: skip
VISION = {"model_type": "siglip_vision_model", "vision_use_head": False}
COMMAND_A_PROCESSOR = "cohere2_vision.Cohere2VisionProcessor"


def tiny_aya() -> TinyParts:
    tiles = [f"TILE_{i}" for i in range(1, 5)] + ["TILE_GLOBAL"]
    return tiny_parts(
        "aya_vision", TEXT, VISION, specials=[*AYA_SPECIALS, *tiles], tokenizer={"image": "<image>"},
        ids={"image_token_index": "<|IMG_PATCH|>"}, processor="AyaVisionProcessor",
        images=("GotOcr2ImageProcessorPil", {"size": {"height": 32, "width": 32}, "max_patches": 4}),
        patch_size=8, downsample_factor=2, img_size=32,
    )  # fmt: skip


def tiny_command_a() -> TinyParts:
    from workbench.models.families.pil_images import Cohere2VisionImages

    names = ("boi_token", "eoi_token", "image_token", "img_line_break_token")
    named = dict(zip(names, COMMAND_A_SPECIALS, strict=True))
    return tiny_parts(
        "cohere2_vision", TEXT, VISION, specials=COMMAND_A_SPECIALS,
        tokenizer={"image": "<|IMG_PATCH|>", "named": named}, ids={"image_token_id": "<|IMG_PATCH|>"},
        config={"alignment_intermediate_size": 64}, processor=COMMAND_A_PROCESSOR,
        # The processor's `patch_size` is the number of tokens along a tile.
        images=(Cohere2VisionImages, {"size": {"height": 32, "width": 32}, "max_patches": 4, "patch_size": 2}),
    )  # fmt: skip


_SHARED: dict[str, Any] = {
    "sliding": True,
    "logits": unscaled_logits,
    "limits": "transformers leaves out Cohere2's logit scale in this class, so logits (and KL) are at its unscaled "
    "temperature",
}
FAMILIES = (
    Family("aya_vision", "AyaVisionForConditionalGeneration", layout=aya_layout, tiny=tiny_aya, **_SHARED),
    Family(
        "cohere2_vision", "Cohere2VisionForConditionalGeneration", layout=command_a_layout, tiny=tiny_command_a,
        processor=partial(load_with_our_images, processor=COMMAND_A_PROCESSOR, images="Cohere2VisionImages"),
        **_SHARED,
    ),
)  # fmt: skip
