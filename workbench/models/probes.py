"""What a model is asked when it is checked: a few words that it can tell apart, and a picture with structure."""

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from workbench.models.decoder import Decoder
from workbench.prompts.prompt import Prompt

WORDS = "what is this"
MOST_TRIED = 20_000  # entries of a vocabulary looked through for words that stay one token

# Largest relative error on final states between two roads, as a multiple of the dtype's rounding unit. Two orders of
# summation over a few hundred terms differ by tens of units; an intervention that acts differs by thousands.
TOLERANCE_UNITS = 300
# In half precision one rounding unit is already a percent or a tenth of one, and errors grow with depth, not with the
# length of sums, which are kept in float32.
HALF_TOLERANCE_UNITS = 16


def probe_prompt(model: Decoder, side: int = 64) -> Prompt:
    """A prompt for checks: a few words of the model's vocabulary, and a picture with structure if it sees pictures."""
    picture = None
    if model.family.has_images:
        ramp = torch.arange(side * side, dtype=torch.int64).view(side, side)
        pixels = torch.stack([ramp % 251, (ramp * 7) % 253, (ramp // side * 5) % 255], -1).to(torch.uint8)
        picture = Image.fromarray(pixels.numpy())
    return Prompt(id="self-check", text=probe_text(model.tokenizer), image=picture)


def probe_text(tokenizer: Any) -> str:
    """`WORDS`, where the tokenizer knows them; else as many words that are known to it, one token each, and differ."""
    if known_tokens(tokenizer, WORDS) >= 3:
        return WORDS
    words: list[str] = []
    special = set(tokenizer.all_special_ids)
    for token_id in sorted(set(tokenizer.get_vocab().values()) - special)[:MOST_TRIED]:
        word = tokenizer.decode([token_id]).strip()
        if word.isalpha() and word not in words and known_tokens(tokenizer, " ".join([*words, word])) > len(words):
            words.append(word)
        if len(words) == 3:
            break
    return " ".join(words) or WORDS


def known_tokens(tokenizer: Any, text: str) -> int:
    """How many different tokens a text has, none of them unknown; 0 if one is."""
    ids = set(tokenizer.encode(text, add_special_tokens=False))
    return 0 if getattr(tokenizer, "unk_token_id", None) in ids else len(ids)


def relative_error(one: Tensor, other: Tensor) -> float:
    """Largest absolute difference over the largest absolute value."""
    return float((one - other).abs().max() / other.abs().max().clamp_min(1e-30))


def tolerance(model: Decoder) -> float:
    """Relative error on final states below which two roads count as one, at the model's dtype."""
    half = torch.finfo(model.dtype).bits < 32
    return (HALF_TOLERANCE_UNITS if half else TOLERANCE_UNITS) * torch.finfo(model.dtype).eps


def eager_tolerance(model: Decoder) -> float:
    """The same against eager attention, which rounds its softmax to float32 whatever the model's dtype."""
    return max(tolerance(model), TOLERANCE_UNITS * torch.finfo(torch.float32).eps)
