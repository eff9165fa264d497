"""InternVL, in transformers' own classes (checkpoints whose names end in `-hf`)."""

from functools import partial
from typing import Any

from workbench.models.families.family import Family, TinyParts
from workbench.models.families.layout import Tile, optimal_tiles, tiles_and_whole
from workbench.models.families.processors import images_only, loads
from workbench.models.families.tiny_parts import WIDE, tiny_parts

# Without its video slot, which alone needs torchvision.
processor_class = partial(images_only, "internvl.InternVLProcessor")


def layout(encoded: Any, model: Any, picture: Any) -> list[Tile] | None:
    """Tiles in reading order, then the whole picture."""
    config = model.hf.config
    side = config.vision_config.image_size[0] // config.vision_config.patch_size[0] * config.downsample_ratio
    return tiles_and_whole(*optimal_tiles(model, picture), int(side))


def tiny() -> TinyParts:
    """Qwen2 text; a picture becomes up to four tiles and a thumbnail."""
    named = {
        "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }  # fmt: skip
    size = {"height": 32, "width": 32}
    return tiny_parts(
        "internvl", WIDE | {"model_type": "qwen2"},
        {"model_type": "internvl_vision", "image_size": [32, 32], "patch_size": [8, 8]},
        specials=list(named.values()), tokenizer={"image": "<IMG_CONTEXT>", "named": named},
        ids={"image_token_id": "<IMG_CONTEXT>"}, config={"image_seq_length": 4},
        images=("GotOcr2ImageProcessorPil", {"size": size, "crop_to_patches": True, "max_patches": 4}),
        processor=processor_class, image_seq_length=4,
    )  # fmt: skip


FAMILIES = (
    Family(
        "internvl", "InternVLForConditionalGeneration", layout=layout, processor=loads(processor_class), tiny=tiny,
        limits="images, not videos; transformers' classes, not the checkpoints' own code",
    ),
)  # fmt: skip
