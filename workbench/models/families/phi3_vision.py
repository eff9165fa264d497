"""Phi-3-Vision and Phi-3.5-Vision, for which transformers has no class: Phi-3 text, a CLIP tower, and what joins them.

The parameter names are the checkpoint's (`model.vision_embed_tokens.img_processor.vision_model.…`, `img_projection.0`
and `.2`, `glb_GN`, `sub_GN`), so its safetensors load without its remote code. The picture is resized to a canvas of
336-pixel crops, padded white, and seen once more as a whole; groups of 2 x 2 patches become one token, a learned
separator ends each row, another stands between the crops and the whole ("sub_glb" order).

Where we differ: image positions hold the id of the `<|image|>` token instead of negative numbers. Their embedding is
replaced by the picture's features either way.
"""

import math
import re
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    Phi3Config,
    Phi3ForCausalLM,
    Phi3Model,
)
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, make_flat_list_of_images
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.processing_utils import ImagesKwargs, ProcessorMixin

from workbench.models.families.family import TinyParts
from workbench.models.families.layout import SEPARATOR, Tile
from workbench.models.families.pil_images import cut
from workbench.models.families.tiny_parts import WIDE, tiny_parts

# The tower of the released checkpoints (openai/clip-vit-large-patch14-336); their config names it but does not hold it.
CLIP_LARGE = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "image_size": 336, "patch_size": 14, "hidden_act": "quick_gelu", "projection_dim": 768,
}  # fmt: skip
IMAGE_TOKEN, IMAGE_TAG = "<|image|>", re.compile(r"<\|image_\d+\|>")


class Phi3VConfig(Phi3Config):
    """Phi-3's configuration with the checkpoint's `img_processor` and `embd_layer`.

    `vision_config` is ours, for towers other than the released one; `image_token_id` too.
    """

    model_type = "phi3_v"
    image_token_id: int = 32044
    img_processor: dict | None = None
    embd_layer: dict | None = None
    vision_config: dict | None = None

    def tower(self) -> CLIPVisionConfig:
        return CLIPVisionConfig(**(self.vision_config or CLIP_LARGE))


class _Tower(nn.Module):
    """Holds the CLIP tower under the name the checkpoint gives it."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        self.vision_model = CLIPVisionModel._from_config(config)


class Phi3ImageEmbedding(nn.Module):
    """Pictures to rows of the token embedding."""

    def __init__(self, config: Phi3VConfig, wte: nn.Embedding) -> None:
        super().__init__()
        vision = config.tower()
        wide = 4 * vision.hidden_size
        self.wte = wte  # the decoder's own; checkpoints have it under either name
        self.crop = vision.image_size
        self.layer_idx = (config.img_processor or {}).get("layer_idx", -2)
        self.img_processor = _Tower(vision)
        self.glb_GN = nn.Parameter(torch.zeros(1, 1, wide))
        self.sub_GN = nn.Parameter(torch.zeros(1, 1, 1, wide))
        self.img_projection = nn.Sequential(
            nn.Linear(wide, config.hidden_size), nn.GELU(), nn.Linear(config.hidden_size, config.hidden_size)
        )

    def forward(self, pixel_values: Tensor, image_sizes: Tensor) -> Tensor:
        """Features of all pictures in order, `[image_token, d_model]`.

        Args:
            pixel_values: `[image, 1 + crop, 3, side, side]`, the whole picture first, zeros after the last crop.
            image_sizes: `[image, 2]`, (height, width) of each canvas in pixels.
        """
        crops = self.img_processor.vision_model(pixel_values.flatten(0, 1), output_hidden_states=True)
        features = crops.hidden_states[self.layer_idx][:, 1:].unflatten(0, pixel_values.shape[:2])
        embedded = []
        for picture, (height, width) in zip(features, image_sizes.tolist(), strict=True):
            rows, columns = height // self.crop, width // self.crop
            embedded += [
                self._grid(picture[1 : 1 + rows * columns], rows, columns),
                self.glb_GN[0],
                self._grid(picture[:1], 1, 1),
            ]
        return self.img_projection(torch.cat(embedded))

    def _grid(self, crops: Tensor, rows: int, columns: int) -> Tensor:
        """Crops `[crop, patch, width]` as one grid of 2 x 2 patches with a separator after each row."""
        side = math.isqrt(crops.shape[1]) // 2
        merged = rearrange(crops, "(r c) (h hp w wp) d -> (r h) (c w) (hp wp d)", r=rows, h=side, hp=2, wp=2)
        breaks = self.sub_GN[0].expand(rows * side, 1, -1)
        return torch.cat([merged, breaks], dim=1).flatten(0, 1)


class Phi3VModel(Phi3Model):
    """Phi-3's decoder with the image embedding beside it."""

    config_class = Phi3VConfig

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__(config)
        self.vision_embed_tokens = Phi3ImageEmbedding(config, self.embed_tokens)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **options: Any,
    ) -> Any:
        if inputs_embeds is None and pixel_values is not None and image_sizes is not None and input_ids is not None:
            inputs_embeds = self.embed_tokens(input_ids)
            features = self.vision_embed_tokens(pixel_values, image_sizes)
            where = input_ids == self.config.image_token_id
            if int(where.sum()) != len(features):
                raise ValueError(f"{int(where.sum())} image positions for {len(features)} image features")
            inputs_embeds = inputs_embeds.masked_scatter(where[..., None], features.to(inputs_embeds.dtype))
            input_ids = None
        return super().forward(input_ids=input_ids, inputs_embeds=inputs_embeds, **options)


class Phi3VForCausalLM(Phi3ForCausalLM):
    """The whole model; `forward` takes what `Phi3VProcessor` gives."""

    config_class = Phi3VConfig
    _tied_weights_keys = {"model.vision_embed_tokens.wte.weight": "model.embed_tokens.weight"}

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__(config)
        self.model = Phi3VModel(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        logits_to_keep: int = 0,
        **options: Any,
    ) -> CausalLMOutputWithPast:
        out = self.model(input_ids=input_ids, pixel_values=pixel_values, image_sizes=image_sizes, **options)
        logits = self.lm_head(out.last_hidden_state[:, -logits_to_keep:] if logits_to_keep else out.last_hidden_state)
        return CausalLMOutputWithPast(logits=logits, past_key_values=out.past_key_values)


class Phi3VArguments(ImagesKwargs, total=False):  # type: ignore[call-arg]
    """`num_crops`: most crops a picture is cut into. `crop`: side of one, in pixels."""

    num_crops: int
    crop: int


class Phi3VImageProcessor(PilBackend):
    """Canvas of crops, white padding, the whole picture first."""

    valid_kwargs = Phi3VArguments
    model_input_names = ["pixel_values", "image_sizes"]
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    do_convert_rgb = True
    num_crops = 1
    crop = 336

    def preprocess(self, images: Any, return_tensors: Any = None, **_: Any) -> BatchFeature:
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.image_mean, self.image_std))
        pictures, sizes, counts = [], [], []
        for image in make_flat_list_of_images(images):
            canvas = self.place(image.convert("RGB"))
            pixels = (torch.from_numpy(np.array(canvas)).permute(2, 0, 1).float() / 255 - mean) / std
            rows, columns = canvas.height // self.crop, canvas.width // self.crop
            whole = nn.functional.interpolate(pixels[None], size=(self.crop, self.crop), mode="bicubic")
            crops = cut(pixels, rows, columns)
            blank = crops.new_zeros(self.num_crops - len(crops), *crops.shape[1:])
            pictures.append(torch.cat([whole, crops, blank]))
            sizes.append([canvas.height, canvas.width])
            counts.append((rows, columns))
        data = {"pixel_values": torch.stack(pictures), "image_sizes": torch.tensor(sizes), "crops": counts}
        return BatchFeature(data, tensor_type=None)

    def canvas(self, picture: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """(width, height) of the resized picture, of the canvas, and (left, top) of the one on the other."""
        width, height = max(picture), min(picture)
        ratio, scale = width / height, 1
        while scale * math.ceil(scale / ratio) <= self.num_crops:
            scale += 1
        resized = (int((scale - 1) * self.crop), int((scale - 1) * self.crop / ratio))
        tall = math.ceil(resized[1] / self.crop) * self.crop
        corner = (0, (tall - resized[1]) // 2)
        found = (resized, (resized[0], tall), corner)
        return found if picture[0] >= picture[1] else tuple(pair[::-1] for pair in found)  # type: ignore[return-value]

    def place(self, picture: Image.Image) -> Image.Image:
        resized, size, corner = self.canvas(picture.size)
        canvas = Image.new("RGB", size, (255, 255, 255))
        canvas.paste(picture.resize(resized, Image.Resampling.BILINEAR), corner)
        return canvas


class Phi3VProcessor(ProcessorMixin):
    """Text with `<|image_1|>` tags, and pictures. Text between tags is tokenized piece by piece, as in the original."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None, **_: Any) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.image_token = IMAGE_TOKEN
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)

    def __call__(self, text: str, images: Any = None, **_: Any) -> BatchFeature:
        pieces = [self.tokenizer(piece).input_ids for piece in IMAGE_TAG.split(text)]
        pixels: dict[str, Any] = dict(self.image_processor(images)) if images else {}
        crops = pixels.pop("crops", [])
        if len(pieces) - 1 != len(crops):
            raise ValueError(f"the text has {len(pieces) - 1} image tags for {len(crops)} pictures")
        ids = list(pieces[0])
        side = self.image_processor_side
        for piece, (rows, columns) in zip(pieces[1:], crops, strict=True):
            count = (rows * columns + 1) * side**2 + 1 + (rows + 1) * side
            ids += [self.image_token_id] * count + piece
        tokens = torch.tensor([ids])
        return BatchFeature({"input_ids": tokens, "attention_mask": torch.ones_like(tokens), **pixels})

    @property
    def image_processor_side(self) -> int:
        """Tokens along one side of a crop: two patches of 14 pixels each in the released tower."""
        return self.image_processor.crop // 28

    def apply_chat_template(self, conversation: Any, chat_template: Any = None, **options: Any) -> Any:
        """Pictures become `<|image_1|>`, `<|image_2|>`, … each on a line of its own before the text."""
        pictures, flat = [], []
        for message in conversation:
            words, content = "", message["content"]
            for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
                if part["type"] == "image":
                    pictures.append(part.get("image"))
                words += f"<|image_{len(pictures)}|>\n" if part["type"] == "image" else part["text"]
            flat.append({"role": message["role"], "content": words})
        text = self.tokenizer.apply_chat_template(
            flat, chat_template=chat_template or self.chat_template, tokenize=False,
            add_generation_prompt=options.get("add_generation_prompt", False),
        )  # fmt: skip
        return self(text, pictures) if options.get("tokenize") else text


AutoConfig.register("phi3_v", Phi3VConfig, exist_ok=True)


def layout(encoded: Any, model: Any, picture: Any) -> list[Tile]:
    """The crops as one grid, a separator, the whole; rows end with separators; the canvas reaches past the picture."""
    images = model.processor.image_processor
    side = model.processor.image_processor_side
    resized, size, corner = images.canvas(picture.size)
    left, top = (-at / kept for at, kept in zip(corner, resized, strict=True))
    region = (left, top, left + size[0] / resized[0], top + size[1] / resized[1])
    rows, columns = size[1] // images.crop * side, size[0] // images.crop * side
    return [Tile(rows, columns, region, row_breaks=True), SEPARATOR, Tile(side, side, region, row_breaks=True)]


def load_processor(where: str, options: dict[str, Any]) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(where, **options)
    images = Phi3VImageProcessor.from_pretrained(where, **options)
    return Phi3VProcessor(images, tokenizer, chat_template=tokenizer.chat_template)


def tiny() -> TinyParts:
    """Crops of 56 pixels, which are 2 x 2 tokens; two side by side."""
    vision = {"num_hidden_layers": 3, "image_size": 56, "patch_size": 14, "hidden_act": "quick_gelu"}
    return tiny_parts(
        "phi3_v", WIDE | {"sliding_window": 16}, vision, specials=[IMAGE_TOKEN], ids={"image_token_id": IMAGE_TOKEN},
        images=(Phi3VImageProcessor, {"num_crops": 4, "crop": 56}), processor=lambda: Phi3VProcessor,
        model=Phi3VForCausalLM,
    )  # fmt: skip
