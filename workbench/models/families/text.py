"""Text-only models: Llama 1-3 and Vicuna, Mistral, Qwen2, Qwen3, Cohere2. Same calls, no image."""

from typing import Any

from workbench.models.families.family import Family, TinyParts


def _tiny(config_class: str, **sizes: Any) -> TinyParts:
    import transformers

    from workbench.models.families.tiny_parts import text_sizes, tiny_tokenizer

    tokenizer = tiny_tokenizer()
    config = getattr(transformers, config_class)(**text_sizes(tokenizer, **sizes))
    return TinyParts(transformers.AutoModelForCausalLM.from_config(config), tokenizer)


def tiny_llama() -> TinyParts:
    return _tiny("LlamaConfig", head_dim=12, attention_bias=True)


def tiny_mistral() -> TinyParts:
    return _tiny("MistralConfig", head_dim=12, sliding_window=4)


def tiny_qwen2() -> TinyParts:
    return _tiny("Qwen2Config", head_dim=12, use_sliding_window=True, sliding_window=4, max_window_layers=2)


def tiny_qwen3() -> TinyParts:
    return _tiny("Qwen3Config", head_dim=12)


def tiny_cohere2() -> TinyParts:
    layers = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]
    return _tiny("Cohere2Config", head_dim=12, sliding_window=4, layer_types=layers, logit_scale=0.25)


LLAMA = Family("llama", "LlamaForCausalLM", has_images=False, tiny=tiny_llama)
MISTRAL = Family("mistral", "MistralForCausalLM", has_images=False, sliding=True, tiny=tiny_mistral)
QWEN2 = Family("qwen2", "Qwen2ForCausalLM", has_images=False, sliding=True, tiny=tiny_qwen2)
QWEN3 = Family("qwen3", "Qwen3ForCausalLM", has_images=False, query_norm=True, tiny=tiny_qwen3)
COHERE2 = Family("cohere2", "Cohere2ForCausalLM", has_images=False, sliding=True, tiny=tiny_cohere2)
FAMILIES = (LLAMA, MISTRAL, QWEN2, QWEN3, COHERE2)
