"""From a `Prompt` to what the model reads: chat template, token ids, pixels, and where the picture's tokens lie."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.errors import ModelError, PromptError
from workbench.models.decoder import Decoder
from workbench.models.families.layout import patch_boxes
from workbench.prompts.prompt import Prompt, image_hash


@dataclass(eq=False)
class Encoded:
    """One prompt as tensors.

    Attributes:
        prompt_id: Id of the prompt it came from.
        model_inputs: Keyword arguments of the HF forward; `input_ids` is `[1, pos]`.
        tokens: One string a position.
        image_positions: Boolean `[pos]`, true at image tokens.
        image_key: Hash of the pixels; empty without an image.
        patch_grid: (rows, columns) when the image tokens are one unbroken grid: position
            `image_span[0] + row * columns + column` is that patch. None otherwise.
        patch_boxes: (left, top, right, bottom) of each image token in the picture, in the order of the true entries
            of `image_positions`, relative to the picture's size; NaN for separators. Tiles and thumbnails overlap.
            None when the layout is not known.
    """

    prompt_id: str
    model_inputs: dict[str, Any]
    tokens: list[str]
    image_positions: Tensor
    image_key: str
    patch_grid: tuple[int, int] | None = None
    patch_boxes: Float[Tensor, "image_token 4"] | None = None

    @property
    def input_ids(self) -> Tensor:
        return self.model_inputs["input_ids"]

    @property
    def n_tokens(self) -> int:
        return self.input_ids.shape[1]

    @property
    def image_span(self) -> tuple[int, int] | None:
        """First image position and one past the last, separators between tiles included; None without an image."""
        where = self.image_positions.nonzero()
        return (int(where[0]), int(where[-1]) + 1) if len(where) else None


def image_token(model: Decoder) -> tuple[int, str] | None:
    """Id and text of the placeholder that stands for one image token, or None for a text-only model."""
    token_id = model.family.image_token(model.hf) if model.family.has_images else None
    if token_id is None:
        return None
    return token_id, model.tokenizer.convert_ids_to_tokens(token_id) or ""


def encode(model: Decoder, prompt: Prompt) -> Encoded:
    """Put a prompt through the model's own chat template (image first, then the text, generation prompt added).

    Raises:
        PromptError: An image for a model without an image tower, a broken image, or a placeholder typed as text.
        ModelError: A chat template that drops the image, or placeholders that do not match the pixels.
    """
    placeholder = image_token(model)
    where = f"Prompt {prompt.id!r} on {model.name!r}"
    # Some processors write one token into the text and turn it into many of another.
    written = {placeholder[1] if placeholder else "", getattr(model.processor, "image_token", None) or ""} - {""}
    if found := [token for token in written if token in prompt.text]:
        raise PromptError(
            f"{where}: the text holds the image placeholder {found[0]!r}, but placeholders without pixels mean "
            "nothing. Take it out of the text and give the picture as `image=`; the chat template places it."
        )
    if prompt.image is not None and not (model.family.has_images and placeholder):
        raise PromptError(
            f"{where}: it has an image, but family {model.family.name!r} has no image tower. "
            "Load a vision-language model, or drop the image on purpose with dataclasses.replace(prompt, image=None)."
        )
    image = _readable(prompt, where)
    inputs = _apply_template(model, prompt, image, where)
    inputs.pop("labels", None)  # for training; a forward pass with them would compute a loss
    inputs = {k: v.to(model.device) if isinstance(v, Tensor) else v for k, v in inputs.items()}
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            inputs[name] = value.to(model.dtype)
    ids = inputs["input_ids"][0]
    positions = ids == placeholder[0] if placeholder else torch.zeros_like(ids, dtype=torch.bool)
    if image is not None and not positions.any():
        raise ModelError(
            f"{where}: there are pixels, but the chat template left no {placeholder[1] if placeholder else 'image'!r} "
            "placeholder, so the model would not see them. Check the processor's chat template."
        )
    if image is None and positions.any():
        raise ModelError(
            f"{where}: the chat template wrote {int(positions.sum())} image placeholders without pixels. "
            "Check the processor's chat template, or give the prompt an image."
        )
    tokens = [t if isinstance(t, str) else str(t) for t in model.tokenizer.convert_ids_to_tokens(ids.tolist())]
    encoded = Encoded(prompt.id, inputs, tokens, positions.cpu(), image_hash(prompt.image))
    if image is not None:
        _lay_out(model, encoded, image)
    return encoded


def _lay_out(model: Decoder, encoded: Encoded, picture: Any) -> None:
    """Say which part of the picture each image token covers, when the family's layout accounts for all of them."""
    tiles = model.family.layout(encoded, model, picture)
    if not tiles:
        return
    boxes = patch_boxes(tiles)
    count = int(encoded.image_positions.sum())
    if len(boxes) != count:
        return
    encoded.patch_boxes = boxes
    start, stop = encoded.image_span or (0, 0)
    if len(tiles) == 1 and not tiles[0].row_breaks and stop - start == count:
        encoded.patch_grid = (tiles[0].rows, tiles[0].columns)


def _readable(prompt: Prompt, where: str) -> Any:
    if prompt.image is None:
        return None
    try:
        prompt.image.load()
        return prompt.image.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise PromptError(
            f"{where}: its image cannot be read ({error}). Open it in a viewer, or leave this prompt out."
        ) from error


def _apply_template(model: Decoder, prompt: Prompt, image: Any, where: str) -> dict[str, Any]:
    if model.processor is None:
        content: Any = prompt.text
        templated: Any = model.tokenizer
    else:
        pictures = [{"type": "image", "image": image}] if image is not None else []
        words = [{"type": "text", "text": prompt.text}] if prompt.text else []
        content = pictures + words
        templated = model.processor
    template = getattr(templated, "chat_template", None) or getattr(model.tokenizer, "chat_template", None)
    template = template or model.family.chat_template
    if template is None:
        raise ModelError(
            f"{where}: neither its processor nor its tokenizer has a chat template, and family "
            f"{model.family.name!r} has no default. Set model.tokenizer.chat_template to the one it was trained with."
        )
    # The template is passed only when it is a fallback: processors may keep several under names of their own.
    fallback = {} if getattr(templated, "chat_template", None) else {"chat_template": template}
    try:
        batch = templated.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            **fallback,
        )
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise ModelError(f"{where}: its processor could not encode it ({type(error).__name__}: {error}).") from error
    return dict(batch)
