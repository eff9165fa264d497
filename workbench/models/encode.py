"""From a `Prompt` to what the model reads: chat template, token ids, pixels, and where the picture's tokens lie."""

import json
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.errors import ModelError, PromptError
from workbench.models.decoder import Decoder
from workbench.models.families.layout import patch_boxes
from workbench.models.templates import bounded_templates
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
        prompt: What was encoded; masks that put in z of other prompts go by it.
    """

    prompt_id: str
    model_inputs: dict[str, Any]
    tokens: list[str]
    image_positions: Tensor
    image_key: str
    patch_grid: tuple[int, int] | None = None
    patch_boxes: Float[Tensor, "image_token 4"] | None = None
    prompt: Prompt | None = None

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
    """Put a prompt to the model as `model.template` says: through its own chat template, another, or none.

    In a chat template the image comes first, then the text, with the generation prompt added. Raw text is the image's
    placeholder and the text alone, with what the tokenizer adds of itself (as a rule a token that begins the sequence).

    Raises:
        PromptError: An image for a model without an image tower, a broken image, a placeholder typed as text, more
            tokens than the model's context, or what the template or the processor cannot take.
        ModelError: No chat template, one that drops the image, or placeholders that do not match the pixels.
    """
    placeholder, where = image_token(model), _where(model, prompt)
    check_words(model, prompt)
    image = _readable(prompt, where)
    inputs = _raw(model, prompt, image, where) if model.template == "raw" else _chat(model, prompt, image, where)
    inputs.pop("labels", None)  # for training; a forward pass with them would compute a loss
    inputs = {k: v.to(model.device) if isinstance(v, Tensor) else v for k, v in inputs.items()}
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            inputs[name] = value.to(model.dtype)
    ids = inputs["input_ids"][0]
    check_length(model, prompt, len(ids))
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
    encoded = Encoded(prompt.id, inputs, tokens, positions.cpu(), image_hash(prompt.image), prompt=prompt)
    if image is not None:
        _lay_out(model, encoded, image)
    return encoded


def _where(model: Decoder, prompt: Prompt) -> str:
    return f"Prompt {prompt.id!r} on {model.name!r}"


def check_words(model: Decoder, prompt: Prompt) -> None:
    """Refuse placeholders typed as text, and an image for a model without an image tower."""
    placeholder, where = image_token(model), _where(model, prompt)
    # Some processors write one token into the text and turn it into many of another.
    written = {placeholder[1] if placeholder else "", getattr(model.processor, "image_token", None) or ""} - {""}
    said = (prompt.text, prompt.system, prompt.prefill, *(text for _, text in prompt.turns))
    if found := [token for token in written if any(token in text for text in said)]:
        raise PromptError(
            f"{where}: the text holds the image placeholder {found[0]!r}, but placeholders without pixels mean "
            "nothing. Take it out of the text and give the picture as `image=`; the chat template places it."
        )
    if prompt.image is not None and not (model.family.has_images and placeholder):
        raise PromptError(
            f"{where}: it has an image, but family {model.family.name!r} has no image tower. "
            "Load a vision-language model, or drop the image on purpose with dataclasses.replace(prompt, image=None)."
        )


def check_length(model: Decoder, prompt: Prompt, n_tokens: int) -> None:
    """Refuse a prompt that is longer than the model's context, or empty."""
    limit, how = context(model)
    if not 0 < n_tokens <= limit:
        raise PromptError(
            f"{_where(model, prompt)}: it is {n_tokens} tokens long, the picture's included, and the model's context "
            f"is 1 to {limit} tokens ({how}). Shorten the prompt or leave it out: beyond its context a model's numbers "
            "mean nothing."
        )


def context(model: Decoder) -> tuple[int | float, str]:
    """How many tokens the model was made for, and where that is said; rotary scaling counts where it extends it."""
    text = model.decoder.config
    limit = getattr(text, "max_position_embeddings", None)
    if not limit:
        return float("inf"), "no limit in its configuration"
    how = f"max_position_embeddings {limit}"
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    for kind in rope.values() if all(isinstance(v, dict) for v in rope.values()) else [rope]:
        factor, name = kind.get("factor") or 1.0, kind.get("rope_type", "default")
        original = kind.get("original_max_position_embeddings") or getattr(text, "original_max_position_embeddings", 0)
        extended = int((original or text.max_position_embeddings) * factor)
        if name != "default" and extended > limit:
            limit, how = extended, f"{original or text.max_position_embeddings} positions x {name} scaling {factor:g}"
    return limit, how


def _lay_out(model: Decoder, encoded: Encoded, picture: Any) -> None:
    """Say which part of the picture each image token covers, when the family's layout accounts for all of them."""
    try:
        tiles = model.family.layout(encoded, model, picture)
        boxes = patch_boxes(tiles or ())
    except Exception:  # noqa: BLE001  # a layout is for drawing; one that cannot take a picture stops no measurement
        return
    if not tiles:
        return
    count = int(encoded.image_positions.sum())
    if len(boxes) != count:
        return
    encoded.patch_boxes = boxes
    start, stop = encoded.image_span or (0, 0)
    if len(tiles) == 1 and not tiles[0].row_breaks and stop - start == count:
        encoded.patch_grid = (tiles[0].rows, tiles[0].columns)


def _readable(prompt: Prompt, where: str) -> Any:
    try:
        return None if prompt.image is None else prompt.image.copy()  # a stored picture is decoded here
    except PromptError as error:
        raise PromptError(f"{where}: {error}. Open it in a viewer, or leave this prompt out.") from error


def templated_text(model: Decoder, prompt: Prompt) -> str:
    """What the chat template makes of a prompt, before it is split into tokens; raw text as it is.

    Raises:
        ModelError: There is no template.
        PromptError: It does not take the prompt.
    """
    if model.template == "raw":
        return prompt.text + prompt.prefill
    return str(_chat(model, prompt, prompt.image, _where(model, prompt), tokenize=False)["text"])


def raw_text(model: Decoder, prompt: Prompt) -> str:
    """A prompt without a template: the image's placeholder first, then the text, and how the reply begins."""
    return (_written_for_image(model) if prompt.image is not None else "") + prompt.text + prompt.prefill


def _chat(model: Decoder, prompt: Prompt, image: Any, where: str, *, tokenize: bool = True) -> dict[str, Any]:
    """The prompt through a chat template; where it is not to be split into tokens, as `text`."""
    templated: Any = model.tokenizer if model.processor is None else model.processor
    messages = _messages(prompt, image, plain=model.processor is None)
    own = getattr(templated, "chat_template", None) if model.template == "chat" else None
    chat = own or getattr(model.tokenizer, "chat_template", None) or model.family.chat_template
    template = chat if model.template == "chat" else model.template
    if template is None:
        raise ModelError(
            f"{where}: neither its processor nor its tokenizer has a chat template, and family "
            f"{model.family.name!r} has no default. Set model.tokenizer.chat_template to the one it was trained with, "
            "or load the model with template='raw' for text without one, or with a template of your own."
        )
    # The template is passed only when it is not the own: processors may keep several under names of their own.
    fallback = {} if own else {"chat_template": template}
    template = template["default"] if isinstance(template, dict) else template
    if prompt.system or prompt.turns:
        _check_roles(model, templated, messages, template, where)
    if prompt.prefill:
        # What the reply begins with stands right behind the generation prompt, whatever a template makes of replies.
        fallback = {"chat_template": template.removesuffix("\n") + _literal(prompt.prefill)}
    asked: dict[str, Any] = {"add_generation_prompt": True, "tokenize": tokenize}
    if tokenize:
        asked |= {"return_dict": True, "return_tensors": "pt"}
    taken = _taken(model, where, image, templated.apply_chat_template, messages, **asked, **fallback)
    return dict(taken) if tokenize else {"text": taken}


def _raw(model: Decoder, prompt: Prompt, image: Any, where: str) -> dict[str, Any]:
    """The prompt without a template, the image's placeholder first."""
    if prompt.system or prompt.turns:
        raise PromptError(f"{where}: raw text has no roles, so no system text or turns. Load it with template='chat'.")
    text = raw_text(model, prompt)
    if model.processor is None:
        return dict(_taken(model, where, None, model.tokenizer, text, return_tensors="pt"))
    pictures = {"images": [image]} if image is not None else {}
    return dict(_taken(model, where, image, model.processor, text=text, return_tensors="pt", **pictures))


def _written_for_image(model: Decoder) -> str:
    """What the chat template writes for an image before a text; without one, the processor's own token."""
    templates = (getattr(of, "chat_template", None) for of in (model.processor, model.tokenizer, model.family))
    mark = {"type": "text", "text": "…"}
    if template := next(filter(None, templates), None):
        with model.lock, bounded_templates():
            shown, plain = (
                model.processor.apply_chat_template([{"role": "user", "content": content}], chat_template=template)
                for content in ([{"type": "image"}, mark], [mark])
            )
        before, _, after = plain.partition(mark["text"])
        if shown.startswith(before) and shown.endswith(mark["text"] + after):
            return shown[len(before) : len(shown) - len(mark["text"] + after)]
    return getattr(model.processor, "boi_token", None) or getattr(model.processor, "image_token", None) or "<image>"


def _taken(model: Decoder, where: str, image: Any, call: Any, *values: Any, **options: Any) -> Any:
    """What a tokenizer or processor makes of a prompt; what it raises becomes ours, and names the prompt."""
    try:
        with model.lock, bounded_templates():
            return call(*values, **options)
    except Exception as error:  # whatever a template or a processor raises on a strange prompt
        size = f", with its picture of {image.width} x {image.height} pixels" if image is not None else ""
        raise PromptError(
            f"{where}: its template or processor could not encode it{size} ({type(error).__name__}: {error}). "
            "Leave this prompt out, or load the model with another template."
        ) from error


def _messages(prompt: Prompt, image: Any, *, plain: bool) -> list[dict[str, Any]]:
    """The conversation as a chat template takes it; `plain` where it takes texts and no lists of parts."""
    said = [("system", prompt.system), *prompt.turns] if prompt.system else list(prompt.turns)
    contents: list[Any] = [text if plain else [{"type": "text", "text": text}] for _, text in said]
    pictures = [{"type": "image", "image": image}] if image is not None else []
    words = [{"type": "text", "text": prompt.text}] if prompt.text else []
    roles = [*(role for role, _ in said), "user"]
    contents.append(prompt.text if plain else pictures + words)
    return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]


def _check_roles(model: Decoder, templated: Any, messages: list[dict[str, Any]], template: str, where: str) -> None:
    """Refuse a chat template that leaves out what was said before, or writes every role as a user's."""

    def written(messages: list[dict[str, Any]]) -> str:
        asked = {"tokenize": False, "add_generation_prompt": True, "chat_template": template}
        return _taken(model, where, None, templated.apply_chat_template, messages, **asked)

    whole = written(messages)
    for place, message in enumerate(messages[:-1]):
        text = message["content"] if isinstance(message["content"], str) else message["content"][0]["text"]
        as_user = [*messages[:place], message | {"role": "user"}, *messages[place + 1 :]]
        if text.strip() not in whole or (message["role"] != "user" and written(as_user) == whole):
            raise ModelError(
                f"{where}: the chat template {'leaves out' if text.strip() not in whole else 'has no words for'} what "
                f"the {message['role']} said before. Load the model with a template that takes it, or leave it out."
            )


def _literal(text: str) -> str:
    """A text as a Jinja expression that gives it back."""
    return "{{ " + json.dumps(text, ensure_ascii=False) + " }}"
