"""Phi: Phi-3 and 3.5 (text), Phi-3.5-Vision, Phi-4-multimodal. Queries, keys and values come out of one projection."""

from functools import partial
from typing import Any

from workbench.models.families.family import Family, TinyParts
from workbench.models.families.layout import SEPARATOR, Tile
from workbench.models.families.processors import load_with_our_images
from workbench.models.families.tiny_parts import WIDE, tiny_parts, tiny_tokenizer

INTERPOLATES = "its processor interpolates the whole picture in torch, after normalising"
PHI4_SPECIALS = ("<|image|>", "<|audio|>")


def fused_queries(attention: Any) -> tuple[Any, int]:
    """The queries are the first channels of `qkv_proj`."""
    return attention.qkv_proj, attention.config.num_attention_heads * attention.head_dim


def bidirectional_tower(hf: Any) -> None:
    """Let the image tower look both ways under SDPA as it does under eager attention.

    transformers 5.23 marks its layers causal, and SDPA takes that at its word whenever no patch is padding.
    """
    tower = hf.model.embed_tokens_extend.image_embed.img_processor
    for module in tower.modules():
        if hasattr(module, "is_causal"):
            module.is_causal = False


def phi4_image_token(hf: Any) -> int:
    return int(hf.config.vision_config.image_token_id)


def phi4_layout(encoded: Any, model: Any, picture: Any) -> list[Tile] | None:
    """The crops as one grid without its padding, a separator, then the whole canvas; separators end all rows."""
    crop = model.processor.image_processor.size["height"]
    mask = encoded.model_inputs["image_attention_mask"][0, 1:, 0::2, 0::2]
    canvas_height, canvas_width = (int(pixels) for pixels in encoded.model_inputs["image_sizes"][0])
    height, width, side = canvas_height // crop, canvas_width // crop, mask.shape[-1]
    grid = (
        mask[: height * width].reshape(height, width, side, side).transpose(1, 2).reshape(height * side, width * side)
    )
    rows, columns = int(grid[:, 0].sum()), int(grid[0].sum())
    # The picture lies in the canvas's top left corner; what lies past 1 is padding.
    scale = min(canvas_width / picture.width, canvas_height / picture.height)
    right, bottom = canvas_width / (picture.width * scale), canvas_height / (picture.height * scale)
    crops = (0.0, 0.0, right * columns / (width * side), bottom * rows / (height * side))
    return [
        Tile(rows, columns, crops, row_breaks=True),
        SEPARATOR,
        Tile(side, side, (0.0, 0.0, right, bottom), row_breaks=True),
    ]


def _phi3_vision(name: str, *, called: bool = False) -> Any:
    """A function or class of `phi3_vision`, which imports much of transformers, so only when asked for."""

    def given(*arguments: Any) -> Any:
        from workbench.models.families import phi3_vision

        found = getattr(phi3_vision, name)
        return found(*arguments) if called else found

    return given


PHI4_PROCESSOR = "phi4_multimodal.Phi4MultimodalProcessor"


def tiny_phi4() -> TinyParts:
    """The whole picture must be 16 x 16 tokens, a number its processor has written in."""
    from transformers import Phi4MultimodalForCausalLM

    from workbench.models.families.pil_images import Phi4Images

    image, audio = PHI4_SPECIALS
    vocabulary = tiny_tokenizer(PHI4_SPECIALS).get_vocab()
    small = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    vision = small | {"image_size": 64, "crop_size": 64, "patch_size": 2, "image_token_id": vocabulary[image]}
    hearing = small | {
        "num_blocks": 1, "ext_pw_out_channel": 16, "depthwise_separable_out_channel": 16, "nemo_conv_channels": 16,
        "input_size": 80, "audio_token_id": vocabulary[audio],
    }  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    return tiny_parts(
        "phi4_multimodal", WIDE | {"rope_parameters": rope}, vision, specials=PHI4_SPECIALS,
        tokenizer={"image": image, "named": {"image_token": image, "audio_token": audio}},
        config={"audio_config": hearing}, processor=PHI4_PROCESSOR, extractor="Phi4MultimodalFeatureExtractor",
        images=(Phi4Images, {"size": {"height": 64, "width": 64}, "patch_size": 2, "dynamic_hd": 4}),
        model=Phi4MultimodalForCausalLM,
    )  # fmt: skip


FAMILIES = (
    Family(
        "phi3", "Phi3ForCausalLM", has_images=False, query_weights=fused_queries, sliding=True,
        tiny=partial(tiny_parts, "phi3", WIDE | {"sliding_window": 4}),
    ),
    Family(
        "phi4_multimodal", "Phi4MultimodalForCausalLM", query_weights=fused_queries, image_token=phi4_image_token,
        layout=phi4_layout, prepare=bidirectional_tower, tiny=tiny_phi4,
        processor=partial(load_with_our_images, processor=PHI4_PROCESSOR, images="Phi4Images", hears=True),
        no_pixel_road=INTERPOLATES,
        limits="images, not sound; the checkpoint's vision adapter (LoRA) is not applied unless merged or loaded with "
        "peft",
    ),
    Family(
        "phi3_v", "Phi3VForCausalLM", query_weights=fused_queries, sliding=True,
        own_class=_phi3_vision("Phi3VForCausalLM"), layout=_phi3_vision("layout", called=True),
        processor=_phi3_vision("load_processor", called=True), tiny=_phi3_vision("tiny", called=True),
        no_pixel_road=INTERPOLATES,
        limits="our own class, as transformers has none; not yet held against the released weights",
    ),
)  # fmt: skip
