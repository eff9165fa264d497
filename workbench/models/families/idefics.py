"""Idefics3 and SmolVLM: the picture in tiles, each after its `<row_r_col_c>` tag, then the whole picture."""

from typing import Any

from workbench.models.families.family import Family, TinyParts
from workbench.models.families.layout import Tile, tiles_of
from workbench.models.families.processors import images_only, named_class

SPECIALS = ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>")


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

    original = images_only(named_class("smolvlm.processing_smolvlm", "SmolVLMProcessor"))

    class SmolVLMImages(original):  # type: ignore[misc, valid-type]
        def __init__(
            self, image_processor: Any, tokenizer: Any, image_seq_len: int = 169, chat_template: Any = None, **_: Any
        ):
            self.fake_image_token = getattr(tokenizer, "fake_image_token", "<fake_token_around_image>")
            self.image_token = getattr(tokenizer, "image_token", "<image>")
            self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
            self.global_image_token = getattr(tokenizer, "global_image_token", "<global-img>")
            self.image_seq_len = image_seq_len
            ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

        def apply_chat_template(self, conversation: Any, chat_template: Any = None, **options: Any) -> Any:
            return ProcessorMixin.apply_chat_template(self, conversation, chat_template, **options)

    SmolVLMImages.__name__ = "SmolVLMProcessor"
    return SmolVLMImages


def load_smolvlm(where: str, options: dict[str, Any]) -> Any:
    return smolvlm_processor_class().from_pretrained(where, **options)


def _tiny(model_type: str, images_class: str, processor_class: Any) -> TinyParts:
    import transformers

    from workbench.models.families.tiny_parts import D_HEAD, text_sizes, tiny_tokenizer

    tags = [f"<row_{r}_col_{c}>" for r in range(1, 4) for c in range(1, 4)]
    tokenizer = tiny_tokenizer([*SPECIALS, *tags], image="<image>")
    text = transformers.LlamaConfig(**text_sizes(tokenizer, head_dim=D_HEAD))
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32,
        "patch_size": 8,
    }  # fmt: skip
    config = transformers.AutoConfig.for_model(
        model_type, vision_config=vision, text_config=text, image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2, pad_token_id=0,
    )  # fmt: skip
    images = getattr(transformers, images_class)(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    processor = processor_class(images, tokenizer, image_seq_len=4, chat_template=tokenizer.chat_template)
    return TinyParts(transformers.AutoModelForImageTextToText.from_config(config), tokenizer, processor)


def tiny_idefics3() -> TinyParts:
    from transformers import Idefics3Processor

    return _tiny("idefics3", "Idefics3ImageProcessorPil", Idefics3Processor)


def tiny_smolvlm() -> TinyParts:
    return _tiny("smolvlm", "SmolVLMImageProcessorPil", smolvlm_processor_class())


IDEFICS3 = Family("idefics3", "Idefics3ForConditionalGeneration", layout=layout, tiny=tiny_idefics3)
SMOLVLM = Family(
    "smolvlm", "SmolVLMForConditionalGeneration", layout=layout, processor=load_smolvlm, tiny=tiny_smolvlm,
    limits="images, not videos",
)  # fmt: skip
FAMILIES = (IDEFICS3, SMOLVLM)
