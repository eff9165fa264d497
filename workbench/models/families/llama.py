"""Llama 1-3 and Vicuna, text only."""

from workbench.models.families.family import Family

LLAMA = Family(name="llama", architecture="LlamaForCausalLM", has_images=False)
