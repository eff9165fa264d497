"""A quick look at Pocket's heads for its card: how far the final state turns when one head is silenced.

The workbench's own sweep measures this and much more; the training script must not depend on it.
"""

from collections.abc import Sequence

import pandas as pd
import torch
from transformers import LlavaForConditionalGeneration, ProcessorMixin

from workbench.models.conformance.checks import channels_zeroed
from workbench.models.embedded.pocket.behaviour import chat_texts
from workbench.prompts.prompt import Prompt


@torch.inference_mode()
def head_angles(
    model: LlavaForConditionalGeneration, processor: ProcessorMixin, prompts: Sequence[Prompt]
) -> pd.DataFrame:
    """Mean angle (degrees) of the last position's final state with and without each head, on unsafe and safe prompts.

    A head is silenced by setting its output, before the output projection, to zero at every position.

    Returns:
        One row a head: `layer, head, unsafe, safe, difference` (unsafe - safe), largest difference first.
    """
    images = [prompt.image for prompt in prompts]
    inputs = processor(text=chat_texts(processor, prompts), images=images, return_tensors="pt", padding=True)
    inputs = inputs.to(model.device)
    unsafe = torch.tensor([p.label == "unsafe" for p in prompts])
    base = _final_state(model, inputs)
    rows = []
    for layer, block in enumerate(model.model.language_model.layers):
        n_heads = block.self_attn.config.num_attention_heads
        for head in range(n_heads):
            with channels_zeroed(block.self_attn.o_proj, head, n_heads):
                masked = _final_state(model, inputs)
            angle = torch.rad2deg(2 * torch.atan2((base - masked).norm(dim=-1), (base + masked).norm(dim=-1)))
            u, s = angle[unsafe].mean().item(), angle[~unsafe].mean().item()
            rows.append({"layer": layer, "head": head, "unsafe": u, "safe": s, "difference": u - s})
    return pd.DataFrame(rows).sort_values("difference", ascending=False, ignore_index=True)


def _final_state(model: LlavaForConditionalGeneration, inputs: dict) -> torch.Tensor:
    """Unit-length final states [prompt, d_model] after the final norm, in float64; prompts are padded on the left."""
    last = model.model(**inputs, use_cache=False).last_hidden_state[:, -1].double()
    return last / last.norm(dim=-1, keepdim=True)
