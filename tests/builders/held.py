"""Models in peft's wrapper."""

import warnings
from typing import Any

import torch


def with_adapters(hf: Any, *, alpha: int = 16, targets: str = "q_proj|v_proj|o_proj|down_proj") -> Any:
    """A model wrapped in LoRA that does something, in the model's own dtype."""
    import peft

    config = peft.LoraConfig(r=3, lora_alpha=alpha, target_modules=rf".*layers\.\d+\.(self_attn|mlp)\.({targets})")
    wrapped = wrapped_in(hf, config)
    draws = torch.Generator().manual_seed(0)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=draws, dtype=parameter.dtype)
    return wrapped


def wrapped_in(hf: Any, config: Any) -> Any:
    """A model in peft's wrapper, which asks transformers for a name that transformers has renamed."""
    import peft

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        return peft.get_peft_model(hf, config, autocast_adapter_dtype=False)
