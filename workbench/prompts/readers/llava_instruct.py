"""LLaVA-Instruct-80k: ordinary questions about COCO pictures."""

from workbench.prompts.readers.conversations import conversations

READER = conversations(
    "llava-instruct",
    "LLaVA-Instruct-80k",
    "CC-BY-4.0, and OpenAI's terms of use; the pictures are COCO's",
    "llava_instruct_80k.json",
    80000,
    "max_safe.csv",
    "LLaVA-Instruct-80K",
    "huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K; pictures: COCO train2017",
    "Liu et al., Visual instruction tuning (arXiv 2304.08485)",
)
