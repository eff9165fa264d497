"""ShareGPT4V: ordinary questions about pictures of several sets."""

from workbench.prompts.readers.conversations import conversations

READER = conversations(
    "sharegpt4v",
    "ShareGPT4V",
    "CC-BY-NC-4.0",
    "sharegpt4v_instruct_gpt4-vision_cap100k.json",
    102025,
    "sharegpt4v.csv",
    "ShareGPT4V",
    "huggingface.co/datasets/Lin-Chen/ShareGPT4V",
    "Chen et al., ShareGPT4V (arXiv 2311.12793)",
)
