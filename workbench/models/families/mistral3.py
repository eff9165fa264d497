"""Mistral 3 (Mistral Small 3.1 and later; Pixtral tower): a grid as the picture's shape, a token after each row."""

from typing import Any

from workbench.models.families.family import Family, TinyParts
from workbench.models.families.layout import Tile
from workbench.models.families.processors import loads
from workbench.models.families.tiny_parts import WIDE, tiny_parts

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
            self.image_token, self.image_break_token = image_token, image_break_token
            self.image_end_token = image_end_token
            self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)

        def _process_images(self, images: Any, **options: Any) -> Any:
            return super()._process_images(
                images, **{**options, "patch_size": self.patch_size * self.spatial_merge_size}
            )

        def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **_: Any) -> str:
            side = self.patch_size * self.spatial_merge_size
            rows, columns = (int(pixels) // side for pixels in image_inputs["image_sizes"][image_idx])
            if rows * columns == 1:
                raise ValueError("transformers' class takes no picture of one token: enlarge it")
            row = self.image_token * columns
            return (row + self.image_break_token) * (rows - 1) + row + self.image_end_token

        @property
        def model_input_names(self) -> list[str]:
            return [*self.tokenizer.model_input_names, *self.image_processor.model_input_names, "image_sizes"]

    return PixtralProcessor


def tiny() -> TinyParts:
    return tiny_parts(
        "mistral3", WIDE | {"model_type": "mistral", "sliding_window": None},
        {"model_type": "pixtral", "image_size": 64}, specials=SPECIALS, tokenizer={"image": "[IMG]"},
        ids={"image_token_index": "[IMG]"}, config={"spatial_merge_size": 2}, processor=processor_class,
        images=("PixtralImageProcessorPil", {"size": {"longest_edge": 64}, "patch_size": {"height": 8, "width": 8}}),
        patch_size=8, spatial_merge_size=2,
    )  # fmt: skip


FAMILIES = (
    Family(
        "mistral3", "Mistral3ForConditionalGeneration", layout=layout, processor=loads(processor_class), tiny=tiny
    ),
)  # fmt: skip
