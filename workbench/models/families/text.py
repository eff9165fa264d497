"""Text-only models: Llama 1-3 and Vicuna, Mistral, Qwen2, Qwen3, Cohere2. Same calls, no image."""

from functools import partial
from typing import Any

from workbench.models.families.family import Family
from workbench.models.families.tiny_parts import WIDE, tiny_parts


def _family(name: str, architecture: str, facts: dict[str, Any] | None = None, **sizes: Any) -> Family:
    return Family(name, architecture, has_images=False, tiny=partial(tiny_parts, name, WIDE | sizes), **facts or {})


SLIDING = {"sliding": True}
LAYERS = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]
FAMILIES = (
    _family("llama", "LlamaForCausalLM", attention_bias=True),
    _family("mistral", "MistralForCausalLM", SLIDING, sliding_window=4),
    _family("qwen2", "Qwen2ForCausalLM", SLIDING, use_sliding_window=True, sliding_window=4, max_window_layers=2),
    _family("qwen3", "Qwen3ForCausalLM", {"query_norm": True}),
    _family("cohere2", "Cohere2ForCausalLM", SLIDING, sliding_window=4, layer_types=LAYERS, logit_scale=0.25),
)
