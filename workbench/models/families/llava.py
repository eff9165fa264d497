"""LLaVA-1.5 and what is saved in its classes (CLIP or SigLIP tower; Llama-like text), LLaVA-NeXT, LLaVA-OneVision."""

from functools import partial
from typing import Any

import torch

from workbench.models.families.family import Family, TinyParts
from workbench.models.families.layout import Tile
from workbench.models.families.processors import images_only, loads
from workbench.models.families.tiny_parts import WIDE, tiny_parts


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


def onevision_processor() -> Any:
    """The processor without its video slot, which alone needs torchvision."""
    return images_only("llava_onevision.LlavaOnevisionProcessor")


PINPOINTS = {"image_grid_pinpoints": [[32, 64], [64, 32], [64, 64]]}
CLIP: dict[str, Any] = {"model_type": "clip_vision_model"}
SHORTEST: dict[str, Any] = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
LLAVA_OPTIONS: dict[str, Any] = {
    "patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1
}  # fmt: skip
_tiny = partial(tiny_parts, tokenizer={"image": "<image>"})


def tiny_llava() -> TinyParts:
    """CLIP tower, Llama text with heads wider than hidden_size / heads."""
    return _tiny(
        "llava", WIDE | {"model_type": "llama"}, CLIP, specials=["<image>"], ids={"image_token_id": "<image>"},
        config={"image_seq_length": 16}, images=("CLIPImageProcessorPil", SHORTEST), processor="LlavaProcessor",
        **LLAVA_OPTIONS,
    )  # fmt: skip


def tiny_llava_next() -> TinyParts:
    """Mistral text with a sliding window shorter than the prompt; a picture becomes a thumbnail and two tiles."""
    return _tiny(
        "llava_next", WIDE | {"model_type": "mistral", "sliding_window": 16}, CLIP, specials=["<image>"],
        ids={"image_token_index": "<image>"}, config=PINPOINTS,
        images=("LlavaNextImageProcessorPil", SHORTEST | PINPOINTS), processor="LlavaNextProcessor", **LLAVA_OPTIONS,
    )  # fmt: skip


def tiny_llava_onevision() -> TinyParts:
    """SigLIP tower, Qwen2 text (biases on queries, keys and values)."""
    vision = {"model_type": "siglip_vision_model", "vision_use_head": False}
    return _tiny(
        "llava_onevision", WIDE | {"model_type": "qwen2"}, vision,
        specials=["<image>", "<video>"], ids={"image_token_index": "<image>", "video_token_index": "<video>"},
        config=PINPOINTS, processor=onevision_processor,
        images=("LlavaOnevisionImageProcessorPil", {"size": {"height": 32, "width": 32}} | PINPOINTS),
        num_image_tokens=16, vision_feature_select_strategy="full",
    )  # fmt: skip


FAMILIES = (
    Family("llava", "LlavaForConditionalGeneration", tiny=tiny_llava),
    Family("llava_next", "LlavaNextForConditionalGeneration", layout=anyres_layout, tiny=tiny_llava_next),
    Family(
        "llava_onevision", "LlavaOnevisionForConditionalGeneration", layout=anyres_layout,
        processor=loads(onevision_processor), tiny=tiny_llava_onevision, limits="images, not videos",
    ),
)  # fmt: skip
