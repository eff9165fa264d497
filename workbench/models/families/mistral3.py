"""Mistral 3 (Mistral Small 3.1 and later; Pixtral tower): a grid as the picture's shape, a token after each row."""

from typing import Any

from workbench.models.families.family import Family, TinyParts
from workbench.models.families.layout import Tile

SPECIALS = ("[IMG]", "[IMG_BREAK]", "[IMG_END]")


def layout(encoded: Any, model: Any, picture: Any) -> list[Tile] | None:
    """One grid; the row breaks are tokens of their own, not image tokens."""
    config = model.hf.config
    patch = config.vision_config.patch_size * config.spatial_merge_size
    height, width = encoded.model_inputs["image_sizes"][0].tolist()
    return [Tile(height // patch, width // patch)]


def processor_class() -> Any:
    """Pixtral's processor: transformers' class cannot be imported without torchvision, though it does not use it."""
    from transformers.processing_utils import ProcessorMixin

    class PixtralProcessor(ProcessorMixin):
        text_kwargs = {"return_tensors": "pt"}
        images_kwargs = {"return_tensors": "pt"}

        def __init__(
            self,
            image_processor: Any = None,
            tokenizer: Any = None,
            patch_size: int = 16,
            spatial_merge_size: int = 1,
            chat_template: Any = None,
            image_token: str = "[IMG]",
            image_break_token: str = "[IMG_BREAK]",
            image_end_token: str = "[IMG_END]",
            **_: Any,
        ) -> None:
            super().__init__(image_processor, tokenizer, chat_template=chat_template)
            self.patch_size, self.spatial_merge_size = patch_size, spatial_merge_size
            self.image_token, self.image_break_token, self.image_end_token = (
                image_token,
                image_break_token,
                image_end_token,
            )
            self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)

        def _process_images(self, images: Any, **options: Any) -> Any:
            return super()._process_images(
                images, **{**options, "patch_size": self.patch_size * self.spatial_merge_size}
            )

        def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **_: Any) -> str:
            side = self.patch_size * self.spatial_merge_size
            rows, columns = (int(pixels) // side for pixels in image_inputs["image_sizes"][image_idx])
            row = self.image_token * columns
            return (row + self.image_break_token) * (rows - 1) + row + self.image_end_token

        @property
        def model_input_names(self) -> list[str]:
            return [*self.tokenizer.model_input_names, *self.image_processor.model_input_names, "image_sizes"]

    return PixtralProcessor


def load_processor(where: str, options: dict[str, Any]) -> Any:
    return processor_class().from_pretrained(where, **options)


def tiny() -> TinyParts:
    from transformers import (
        Mistral3Config,
        Mistral3ForConditionalGeneration,
        MistralConfig,
        PixtralImageProcessorPil,
        PixtralVisionConfig,
    )

    from workbench.models.families.tiny_parts import D_HEAD, text_sizes, tiny_tokenizer

    tokenizer = tiny_tokenizer(SPECIALS, image="[IMG]")
    vision = PixtralVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=64, patch_size=8
    )
    text = MistralConfig(**text_sizes(tokenizer, head_dim=D_HEAD, sliding_window=None))
    config = Mistral3Config(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        spatial_merge_size=2,
    )
    images = PixtralImageProcessorPil(size={"longest_edge": 64}, patch_size={"height": 8, "width": 8})
    processor = processor_class()(
        images, tokenizer, patch_size=8, spatial_merge_size=2, chat_template=tokenizer.chat_template
    )
    return TinyParts(Mistral3ForConditionalGeneration(config), tokenizer, processor)


FAMILIES = (Family("mistral3", "Mistral3ForConditionalGeneration", layout=layout, processor=load_processor, tiny=tiny),)
