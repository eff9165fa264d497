"""The tiny random models of all families: one builder, a small vocabulary, a chat template, and random weights.

In random weights nothing is silent: a gate or a layer scale that starts at zero would hide mistakes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from workbench.models.families.family import TinyParts
from workbench.models.families.processors import named_class

WORDS = (
    "what is this i cannot sorry sure a the how do you make of in picture cat dog bomb red square here to step one two "
    "USER ASSISTANT : ? . ,"
).split()
# No divisor in common on purpose: 6 query heads on 2 key/value heads, heads wider than hidden_size / heads.
TEXT = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}
D_HEAD = 12
WIDE = {"head_dim": D_HEAD}
VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip


def tiny_tokenizer(
    specials: Sequence[str] = (),
    *,
    image: str = "",
    before: str = "",
    after: str = "",
    named: dict[str, str] | None = None,
) -> Any:
    """A word-level tokenizer with a chat template.

    Args:
        specials: Tokens of the family besides pad, unk, bos and eos.
        image: What the template writes for a picture, `before` and `after` it.
        named: Tokens that the family's processor looks up by attribute, e.g. `{"image_token": "<image>"}`.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = ["<pad>", "<unk>", "<s>", "</s>", *WORDS, *specials]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=dict(named or {}),
    )
    tokenizer.add_tokens(list(specials), special_tokens=True)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<s> USER : ' }}"
        "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
        f"{{% if c['type'] == 'image' %}}{{{{ {before + image + after + ' '!r} }}}}"
        "{% else %}{{ c['text'] }}{% endif %}"
        "{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ ' ASSISTANT :' }}{% endif %}"
    )
    return tokenizer


def text_sizes(tokenizer: Any, **other: Any) -> dict[str, Any]:
    """Keyword arguments of a tiny text configuration."""
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    return {**TEXT, "vocab_size": len(tokenizer), **ids, **other}


def tiny_parts(
    model_type: str,
    text: Mapping[str, Any],
    vision: Mapping[str, Any] | None = None,
    *,
    specials: Sequence[str] = (),
    tokenizer: Mapping[str, Any] | None = None,
    images: tuple[Any, Mapping[str, Any]] | None = None,
    processor: str | Callable[[], Any] = "",
    extractor: str = "",
    config: Mapping[str, Any] | None = None,
    ids: Mapping[str, str] | None = None,
    model: Any = None,
    **options: Any,
) -> TinyParts:
    """A tiny random model of transformers' own classes.

    Args:
        model_type: transformers' name of the configuration.
        text: Sizes of the text decoder besides `TEXT`; with its `model_type` where it is a configuration of its own.
        vision: Sizes of the image tower besides `VISION`; None for a text-only model.
        specials: The family's own tokens.
        tokenizer: What else `tiny_tokenizer` is given.
        images, extractor: Image processor (a class or its name in transformers) with its options; sound's by name.
        processor: Name of the processor (see `named_class`), or what gives its class; `options` are its own.
        config: The rest of the configuration.
        ids: Entries of the configuration that hold a token's id, and the token.
        model: From the configuration to the model; transformers' automatic class by default.
    """
    import transformers

    words = tiny_tokenizer(specials, **tokenizer or {})
    made = None
    if images is not None:
        # Before the sizes: some processors add tokens to the tokenizer.
        kind, settings = images
        parts = [(getattr(transformers, kind) if isinstance(kind, str) else kind)(**settings)]
        parts += [getattr(transformers, extractor)()] if extractor else []
        made = (processor() if callable(processor) else named_class(processor))(
            *parts, words, chat_template=words.chat_template, **options
        )
    sizes = text_sizes(words, **text)
    entries = {name: words.convert_tokens_to_ids(token) for name, token in (ids or {}).items()} | dict(config or {})
    if vision is not None:
        entries["vision_config"] = VISION | dict(vision)
    # Composite configurations have the text decoder's as a part, and say of which type it is.
    entries |= {"text_config": sizes} if "model_type" in text else sizes
    kind = transformers.AutoModelForImageTextToText if "model_type" in text else transformers.AutoModelForCausalLM
    return TinyParts((model or kind.from_config)(transformers.AutoConfig.for_model(model_type, **entries)), words, made)


@torch.no_grad()
def randomise(hf: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights of sensible size in every parameter, gates and layer scales included."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in hf.parameters():
        noise = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        if parameter.ndim >= 2:
            inputs = parameter.shape[-1] if parameter.ndim == 3 else parameter[0].numel()  # experts are stacked
            parameter.copy_(1.5 * noise * inputs**-0.5)
        else:
            parameter.add_(0.3 * noise)
    return hf.eval()


def cast(hf: nn.Module, dtype: torch.dtype) -> None:
    """As loading in `dtype` would: parameters only. Rotary tables stay wide, and a complex one must stay complex."""
    for parameter in hf.parameters():
        parameter.data = parameter.data.to(dtype)
    if dtype == torch.float64:
        for module in hf.modules():
            for name, buffer in module.named_buffers(recurse=False):
                if buffer.is_floating_point():
                    setattr(module, name, buffer.to(dtype))
