"""Idefics3 and SmolVLM: the picture in tiles, each after its `<row_r_col_c>` tag, then the whole picture."""

from functools import partial
from typing import Any

from workbench.models.families.family import Family, TinyParts
from workbench.models.families.layout import Tile, tiles_of
from workbench.models.families.processors import images_only, loads
from workbench.models.families.tiny_parts import WIDE, tiny_parts

SPECIALS = ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>")
NAMED = (SPECIALS[0], SPECIALS[1], SPECIALS[3])


def layout(encoded: Any, model: Any, picture: Any) -> list[Tile] | None:
    """Rows and columns of tiles are read off the tags in the prompt."""
    config = model.hf.config
    side = config.vision_config.image_size // config.vision_config.patch_size // config.scale_factor
    tags = [t.strip("<>").split("_") for t in encoded.tokens if t.startswith("<row_")]
    whole = Tile(side, side)
    if not tags:
        return [whole]
    return [*tiles_of(max(int(t[1]) for t in tags), max(int(t[3]) for t in tags), side), whole]


def smolvlm_processor_class() -> Any:
    """SmolVLM's processor without its video slot: that needs torchvision, and num2words to write out frame counts."""
    from transformers.processing_utils import ProcessorMixin

    original = images_only("smolvlm.SmolVLMProcessor")

    class SmolVLMImages(original):  # type: ignore[misc, valid-type]
        def __init__(
            self, image_processor: Any, tokenizer: Any, image_seq_len: int = 169, chat_template: Any = None, **_: Any
        ):
            for name, token in zip(("fake_image_token", "image_token", "global_image_token"), NAMED, strict=True):
                setattr(self, name, getattr(tokenizer, name, token))
            self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
            self.image_seq_len = image_seq_len
            ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

        def apply_chat_template(self, conversation: Any, chat_template: Any = None, **options: Any) -> Any:
            return ProcessorMixin.apply_chat_template(self, conversation, chat_template, **options)

    SmolVLMImages.__name__ = "SmolVLMProcessor"
    return SmolVLMImages


def _tiny(model_type: str, name: str, processor: Any) -> TinyParts:
    tags = [f"<row_{r}_col_{c}>" for r in range(1, 4) for c in range(1, 4)]
    return tiny_parts(
        model_type, WIDE | {"model_type": "llama"}, {}, specials=[*SPECIALS, *tags], tokenizer={"image": "<image>"},
        ids={"image_token_id": "<image>"}, config={"scale_factor": 2, "pad_token_id": 0},
        images=(
            f"{name}ImageProcessorPil", {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}
        ),
        processor=processor, image_seq_len=4,
    )  # fmt: skip


FAMILIES = (
    Family(
        "idefics3", "Idefics3ForConditionalGeneration", layout=layout,
        tiny=partial(_tiny, "idefics3", "Idefics3", "Idefics3Processor"),
    ),
    Family(
        "smolvlm", "SmolVLMForConditionalGeneration", layout=layout, processor=loads(smolvlm_processor_class),
        tiny=partial(_tiny, "smolvlm", "SmolVLM", smolvlm_processor_class), limits="images, not videos",
    ),
)  # fmt: skip
