"""LLaVA-1.5 and every model saved as `LlavaForConditionalGeneration` (CLIP or SigLIP tower; Llama-like text)."""

from workbench.models.families.family import Family

LLAVA = Family(name="llava", architecture="LlavaForConditionalGeneration")
