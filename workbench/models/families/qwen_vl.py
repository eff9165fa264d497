"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL and its mixture-of-experts sibling.

Rotary positions have three parts (time, height, width). Qwen3-VL norms its queries, and adds features of the image
tower to the image positions after each of its first decoder layers ("deepstack"): going on from such a layer must add
them again.
"""

from typing import Any

import torch
from torch import Tensor

from workbench.models.families.family import Family, TinyParts
from workbench.models.families.layout import Tile
from workbench.models.families.processors import images_only

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


def load_processor(where: str, options: dict[str, Any]) -> Any:
    """The checkpoint's processor without its video slot, which alone needs torchvision."""
    from transformers import AutoConfig

    return _processor_class(AutoConfig.from_pretrained(where, **options).model_type).from_pretrained(where, **options)


def _processor_class(model_type: str) -> Any:
    from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
    from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor
    from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

    classes = {"qwen2_vl": Qwen2VLProcessor, "qwen2_5_vl": Qwen2_5_VLProcessor}
    return images_only(classes.get(model_type, Qwen3VLProcessor))


def _tiny(model_type: str, vision: dict[str, Any], text: dict[str, Any]) -> TinyParts:
    from transformers import AutoConfig, AutoModelForImageTextToText, Qwen2VLImageProcessorPil

    from workbench.models.families.tiny_parts import text_sizes, tiny_tokenizer

    tokenizer = tiny_tokenizer(SPECIALS, before=SPECIALS[0], image=SPECIALS[2], after=SPECIALS[1])
    start, end, image, video = tokenizer.convert_tokens_to_ids(list(SPECIALS))
    config = AutoConfig.for_model(
        model_type,
        vision_config={"depth": 3, "num_heads": 2, "in_channels": 3, "patch_size": 8, "temporal_patch_size": 2}
        | vision,
        text_config=text_sizes(tokenizer, **text),
        image_token_id=image, video_token_id=video, vision_start_token_id=start, vision_end_token_id=end,
    )  # fmt: skip
    images = Qwen2VLImageProcessorPil(
        patch_size=8, merge_size=2, size={"shortest_edge": 32 * 32, "longest_edge": 64 * 64}
    )
    processor = _processor_class(model_type)(images, tokenizer, chat_template=tokenizer.chat_template)
    # Plain experts: the grouped product has no float64.
    hf = AutoModelForImageTextToText.from_config(config, experts_implementation="eager")
    return TinyParts(hf, tokenizer, processor)


def _rope(sections: list[int], **other: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections, **other}}


# A sliding window in the upper half of the decoder.
_QWEN2_TEXT = _rope([2, 1, 1]) | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}


def tiny_qwen2_vl() -> TinyParts:
    return _tiny("qwen2_vl", {"embed_dim": 32, "hidden_size": 48}, _QWEN2_TEXT)


def tiny_qwen2_5_vl() -> TinyParts:
    """Windowed attention in the image tower."""
    vision = {
        "hidden_size": 32,
        "out_hidden_size": 48,
        "intermediate_size": 64,
        "window_size": 32,
        "fullatt_block_indexes": [1],
    }
    return _tiny("qwen2_5_vl", vision, _QWEN2_TEXT)


_QWEN3_VISION = {
    "hidden_size": 32, "out_hidden_size": 48, "intermediate_size": 64, "num_position_embeddings": 64,
    "deepstack_visual_indexes": [0, 1],
}  # fmt: skip
_QWEN3_TEXT = _rope([2, 2, 2], mrope_interleaved=True) | {"head_dim": 12}


def tiny_qwen3_vl() -> TinyParts:
    """Query norm, heads wider than hidden_size / heads, image features after the first two decoder layers."""
    return _tiny("qwen3_vl", _QWEN3_VISION, _QWEN3_TEXT)


def tiny_qwen3_vl_moe() -> TinyParts:
    """The same with four experts, two a token."""
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1}
    return _tiny("qwen3_vl_moe", _QWEN3_VISION, _QWEN3_TEXT | experts)


_SHARED: dict[str, Any] = {"layout": merged_grid, "processor": load_processor, "limits": "images, not videos"}
_DEEPSTACK: dict[str, Any] = {
    "query_norm": True,
    "after_layer": add_deepstack,
    "decoder_record": ("deepstack_visual_embeds", "visual_pos_masks"),
}
QWEN2_VL = Family("qwen2_vl", "Qwen2VLForConditionalGeneration", sliding=True, tiny=tiny_qwen2_vl, **_SHARED)
QWEN2_5_VL = Family("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", sliding=True, tiny=tiny_qwen2_5_vl, **_SHARED)
QWEN3_VL = Family("qwen3_vl", "Qwen3VLForConditionalGeneration", tiny=tiny_qwen3_vl, **_SHARED, **_DEEPSTACK)
QWEN3_VL_MOE = Family(
    "qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration", tiny=tiny_qwen3_vl_moe, **_SHARED, **_DEEPSTACK
)
FAMILIES = (QWEN2_VL, QWEN2_5_VL, QWEN3_VL, QWEN3_VL_MOE)
