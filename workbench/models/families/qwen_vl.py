"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL and its mixture-of-experts sibling.

Rotary positions have three parts (time, height, width). Qwen3-VL norms its queries, and adds features of the image
tower to the image positions after each of its first decoder layers ("deepstack"): going on from such a layer must add
them again.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from workbench.models.families.family import Family, TinyParts
from workbench.models.families.layout import Tile
from workbench.models.families.processors import images_only
from workbench.models.families.tiny_parts import tiny_parts

SPECIALS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")


def merged_grid(encoded: Any, model: Any, picture: Any) -> list[Tile] | None:
    """One grid over the resized picture: neighbouring patches are merged into one token."""
    merge = model.hf.config.vision_config.spatial_merge_size
    _, height, width = encoded.model_inputs["image_grid_thw"][0].tolist()
    return [Tile(height // merge, width // merge)]


def add_deepstack(layer: int, hidden: Tensor, recorded: dict[str, Any], n_rows: int, start: int) -> Tensor:
    """What Qwen3-VL's decoder does after each of its first layers, for `n_rows` rows a prompt from position `start`."""
    features = recorded["deepstack_visual_embeds"]
    if features is None or layer >= len(features):
        return hidden
    where = recorded["visual_pos_masks"]
    here = torch.zeros(*where.shape, hidden.shape[-1], dtype=hidden.dtype, device=hidden.device)
    here[where] = features[layer].to(here)
    # The last decoder layer may be asked for its last position only.
    return hidden + here.repeat_interleave(n_rows, dim=0)[:, start:][:, -hidden.shape[1] :]


PROCESSORS = {"qwen2_vl": "qwen2_vl.Qwen2VLProcessor", "qwen2_5_vl": "qwen2_5_vl.Qwen2_5_VLProcessor"}


def processor_class(model_type: str) -> Any:
    """The family's processor without its video slot, which alone needs torchvision."""
    return images_only(PROCESSORS.get(model_type, "qwen3_vl.Qwen3VLProcessor"))


def load_processor(where: str, options: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    return processor_class(AutoConfig.from_pretrained(where, **options).model_type).from_pretrained(where, **options)


def _tiny(model_type: str, vision: dict[str, Any], text: dict[str, Any]) -> TinyParts:
    from transformers import AutoModelForImageTextToText

    start, end, image, video = SPECIALS
    common = {"depth": 3, "num_heads": 2, "in_channels": 3, "patch_size": 8, "temporal_patch_size": 2}
    text = {"model_type": f"{model_type}_text"} | text
    return tiny_parts(
        model_type, text, specials=SPECIALS, config={"vision_config": common | vision},
        tokenizer={"before": start, "image": image, "after": end},
        ids={
            "image_token_id": image, "video_token_id": video, "vision_start_token_id": start,
            "vision_end_token_id": end,
        },
        images=(
            "Qwen2VLImageProcessorPil",
            {"patch_size": 8, "merge_size": 2, "size": {"shortest_edge": 32 * 32, "longest_edge": 64 * 64}},
        ),
        processor=partial(processor_class, model_type),
        # Plain experts: the grouped product has no float64.
        model=partial(AutoModelForImageTextToText.from_config, experts_implementation="eager"),
    )  # fmt: skip


def _rope(sections: list[int], **other: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections, **other}}


# A sliding window in the upper half of the decoder.
_QWEN2_TEXT = _rope([2, 1, 1]) | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}
_VISION = {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 48}
_QWEN2_5_VISION = _VISION | {"window_size": 32, "fullatt_block_indexes": [1]}
_QWEN3_VISION = _VISION | {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
# Query norm, heads wider than hidden_size / heads.
_QWEN3_TEXT = _rope([2, 2, 2], mrope_interleaved=True) | {"head_dim": 12}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1}
_DEEPSTACK: dict[str, Any] = {
    "query_norm": True,
    "after_layer": add_deepstack,
    "decoder_record": ("deepstack_visual_embeds", "visual_pos_masks"),
}
_LIMITS = "images, not videos"
_ROUTED = f"{_LIMITS}; in half precision rounding may send a token to other experts, and engines then differ"
FAMILIES = tuple(
    Family(
        name, f"{words}ForConditionalGeneration", layout=merged_grid, processor=load_processor,
        tiny=partial(_tiny, name, vision, text), **{"limits": _LIMITS} | facts,
    )
    for name, words, vision, text, facts in (
        ("qwen2_vl", "Qwen2VL", {"embed_dim": 32, "hidden_size": 48}, _QWEN2_TEXT, {"sliding": True}),
        ("qwen2_5_vl", "Qwen2_5_VL", _QWEN2_5_VISION, _QWEN2_TEXT, {"sliding": True}),
        ("qwen3_vl", "Qwen3VL", _QWEN3_VISION, _QWEN3_TEXT, _DEEPSTACK),
        ("qwen3_vl_moe", "Qwen3VLMoe", _QWEN3_VISION, _QWEN3_TEXT | _EXPERTS, _DEEPSTACK | {"limits": _ROUTED}),
    )
)  # fmt: skip
