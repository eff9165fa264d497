"""Pocket's architecture, tokenizer and processor: transformers' own LLaVA with small parts, built from nothing.

Everything is the class a published LLaVA-1.5 checkpoint uses, so Pocket is loaded by the code path that loads those.
"""

from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaProcessor, PreTrainedTokenizerFast
from transformers import LlavaForConditionalGeneration as Llava
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from workbench.prompts.worlds.pocket_pictures import SIZE
from workbench.prompts.worlds.pocket_words import vocabulary

PATCH = 8
N_IMAGE_TOKENS = (SIZE // PATCH) ** 2
N_LAYERS, N_HEADS, D_HEAD = 8, 8, 16
SPECIALS = ("<pad>", "<s>", "</s>", "<unk>", "<image>", "USER:", "ASSISTANT:")
PAD, BOS, EOS, UNK, IMAGE, USER, ASSISTANT = range(len(SPECIALS))
ENDS = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'].upper() + ': ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' ' }}"
    "{% endfor %}"
    "{% if message['role'] == 'assistant' %}{{ '</s>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""LLaVA-1.5's turns: `USER: <image>`, the text, `ASSISTANT:`."""


@cache
def word_ids() -> dict[str, int]:
    """Token id of every special token and word of the vocabulary."""
    return {word: k for k, word in enumerate((*SPECIALS, *vocabulary()))}


def build_config() -> LlavaConfig:
    """8 layers of 8 heads, 128 wide, behind a 3-layer CLIP tower that sees 48 x 48 pixels as 36 patches."""
    vision = CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, image_size=SIZE,
        patch_size=PATCH, projection_dim=64,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=len(word_ids()), hidden_size=128, intermediate_size=160, num_hidden_layers=N_LAYERS,
        num_attention_heads=N_HEADS,
        num_key_value_heads=N_HEADS, head_dim=D_HEAD, max_position_embeddings=256, tie_word_embeddings=False, **ENDS,
    )  # fmt: skip
    return LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE, image_seq_length=N_IMAGE_TOKENS,
        vision_feature_layer=-1, vision_feature_select_strategy="default", tie_word_embeddings=False,
    )  # fmt: skip


def build_model() -> Llava:
    """The untrained model, initialised from torch's current random state."""
    model = Llava(build_config())
    model.generation_config.update(**ENDS)
    return model


def build_processor() -> LlavaProcessor:
    """Image processor (PIL only), word-level tokenizer and chat template in one."""
    images = CLIPImageProcessorPil(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}, image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )  # fmt: skip
    return LlavaProcessor(
        images, _build_tokenizer(), patch_size=PATCH, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=CHAT_TEMPLATE,
    )  # fmt: skip


def save_checkpoint(model: Llava, directory: Path) -> None:
    """Write config, weights (safetensors, bfloat16), processor and tokenizer: all that `from_pretrained` needs.

    The model itself is of no use afterwards: its rotary frequencies are rounded too. Load what was saved.
    """
    model.to(torch.bfloat16).save_pretrained(directory)
    build_processor().save_pretrained(directory)


def _build_tokenizer() -> PreTrainedTokenizerFast:
    """Words and punctuation, lower-cased; the role names and `<image>` are tokens of their own."""
    ids = word_ids()
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(behavior="contiguous")]
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair=None, special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>",
        additional_special_tokens=["<image>", "USER:", "ASSISTANT:"], padding_side="left",
        clean_up_tokenization_spaces=False, model_max_length=256,
    )  # fmt: skip
