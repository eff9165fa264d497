"""Random LLaVA-shaped models of any size, and prompts for them: what the benchmark runs where Pocket is too small."""

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from workbench.models.families import family_of
from workbench.models.families.llava import LLAVA_OPTIONS
from workbench.models.families.tiny_parts import tiny_parts
from workbench.models.hooked import HookedLVLM
from workbench.prompts.prompt import Prompt, PromptSet

WORDS = [f"w{i}" for i in range(120)]


@dataclass(frozen=True)
class Shape:
    """Sizes of a LLaVA: text decoder, image tower, picture side and patch in pixels, entries of the vocabulary.

    A `vocabulary` of 0 is as many as the tokenizer has words.
    """

    layers: int = 8
    heads: int = 8
    d_model: int = 128
    d_mlp: int = 256
    vision_layers: int = 3
    vision_width: int = 64
    vision_heads: int = 4
    side: int = 48
    patch: int = 8
    vocabulary: int = 0

    @property
    def image_tokens(self) -> int:
        return (self.side // self.patch) ** 2


POCKET = Shape()
SEVEN_B = Shape(32, 32, 4096, 11008, 24, 1024, 16, 336, 14, 32064)
SHAPES = {"pocket": POCKET, "7b-like": SEVEN_B}


def build(
    shape: Shape,
    *,
    name: str,
    seed: int = 0,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    uneven: bool = False,
) -> HookedLVLM:
    """A random model. `uneven` scales the writes of heads by a log-normal factor, so that some matter much more."""
    from transformers import LlavaForConditionalGeneration

    def made(config: Any) -> Any:
        torch.manual_seed(seed)
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):
                return LlavaForConditionalGeneration(config).eval()
        finally:
            torch.set_default_dtype(before)

    text: dict[str, Any] = {
        "model_type": "llama", "hidden_size": shape.d_model, "intermediate_size": shape.d_mlp,
        "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads, "num_key_value_heads": shape.heads,
        "head_dim": shape.d_model // shape.heads, "max_position_embeddings": 4096, "pad_token_id": None,
        "initializer_range": 0.8 * shape.d_model**-0.5,
    }  # fmt: skip
    if shape.vocabulary:
        text["vocab_size"] = shape.vocabulary
    vision = {
        "model_type": "clip_vision_model", "hidden_size": shape.vision_width,
        "intermediate_size": 4 * shape.vision_width, "num_hidden_layers": shape.vision_layers,
        "num_attention_heads": shape.vision_heads, "image_size": shape.side, "patch_size": shape.patch,
    }  # fmt: skip
    size = {"size": {"shortest_edge": shape.side}, "crop_size": {"height": shape.side, "width": shape.side}}
    parts = tiny_parts(
        "llava", text, vision, specials=[*WORDS, "<image>"], tokenizer={"image": "<image>"},
        ids={"image_token_id": "<image>"}, images=("CLIPImageProcessorPil", size), processor="LlavaProcessor",
        config={"image_seq_length": shape.image_tokens, "vision_feature_layer": -1}, model=made,
        **LLAVA_OPTIONS | {"patch_size": shape.patch},
    )  # fmt: skip
    model = HookedLVLM(parts.hf, family_of("llava"), name=name, tokenizer=parts.tokenizer, processor=parts.processor)
    if uneven:
        _scale_heads(model, seed)
    return model


@torch.no_grad()
def _scale_heads(model: HookedLVLM, seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    for attention in model.attentions.values():
        factor = torch.randn(model.n_heads, generator=draws).mul(0.8).exp().repeat_interleave(model.d_head)
        attention.o_proj.weight.mul_(factor.to(attention.o_proj.weight))


@torch.no_grad()
def split_heads(model: HookedLVLM, into: int, *, seed: int = 0) -> HookedLVLM:
    """The same LLaVA with each head split into several, which attend alike and write uneven shares of what it wrote.

    It computes the same function, so a trained model's heads can be searched for among many.
    """
    config = copy.deepcopy(model.hf.config)
    heads = model.n_heads * into
    config.text_config.num_attention_heads = config.text_config.num_key_value_heads = heads
    config.text_config.head_dim = model.d_head
    wide = type(model.hf)(config).eval()
    draws, old = torch.Generator().manual_seed(seed), model.hf.state_dict()
    for name, parameter in wide.state_dict().items():
        given = old[name]
        if given.shape == parameter.shape:
            parameter.copy_(given)
        elif "o_proj" in name:
            shares = (1.5 * torch.randn(model.n_heads, into, generator=draws)).softmax(-1)
            columns = given.view(model.d_model, model.n_heads, 1, model.d_head) * shares[:, :, None]
            parameter.copy_(columns.flatten(1))
        else:
            rows = given.view(model.n_heads, 1, model.d_head, -1).expand(-1, into, -1, -1)
            parameter.copy_(rows.reshape(parameter.shape))
    name = f"{model.name}, each head split into {into}"
    return HookedLVLM(wide, model.family, name=name, tokenizer=model.tokenizer, processor=model.processor)


def questions(
    n: int, *, words: int, side: int, pictures: int | None = None, lengths: int = 1, seed: int = 0
) -> PromptSet:
    """`n` questions of random words, `n / pictures` to a picture; unsafe ones draw on other words.

    Args:
        lengths: How many different lengths there are, from `words` up.
    """
    draws = np.random.default_rng(seed)
    pictures = pictures or n
    shown = [Image.fromarray(draws.integers(0, 255, (side, side, 3), dtype=np.uint8)) for _ in range(pictures)]
    found = []
    for i in range(n):
        unsafe = i % 2
        chosen = draws.integers(40 * unsafe, 80 + 40 * unsafe, words + i % lengths)
        text = " ".join(WORDS[j] for j in chosen)
        found.append(Prompt(f"q{i}", text, shown[i * pictures // n], ("safe", "unsafe")[unsafe], source="bench"))
    return PromptSet(found, name="bench")
