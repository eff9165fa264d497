"""The planted model: a tiny LLaVA whose weights are written, so that which head does what is known and not estimated.

One deep head looks for a hazard in the words and the picture, and turns compliance into refusal. One early head, the
decoy, moves the state more than any other, on safe and unsafe prompts alike. The other fourteen do a little of no
interest. A criterion that finds safety heads must find the planted one here, and its values are known in advance
(`workbench.models.embedded.planted_weights`). Nothing is trained or shipped: `build_planted` writes everything.
"""

from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers import LlavaForConditionalGeneration as Llava
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from workbench.models.embedded import planted_weights as w
from workbench.prompts.worlds import planted as world

SPECIALS = ("<pad>", "<unk>", "<s>", "</s>", "<image>", "USER:", "<end>", "<turn>", "ASSISTANT:")
_REPLIES = tuple(reply.split() for reply in (world.REFUSAL, world.COMPLIANCE))
_NOUNS = tuple(noun for pair in world.NOUN_PAIRS for noun in pair)
_SAID = tuple(word for reply in _REPLIES for word in reply)
_WORDS = (*world.PLAIN_WORDS, *world.FILLERS, *world.MANNERS, *_NOUNS, *_SAID, ",")
VOCABULARY = tuple(dict.fromkeys((*SPECIALS, *_WORDS)))
_ENDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}

# The image first, then the text; the three tokens at the end are what heads of layers 2, 1 and 0 read, in this order.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}ASSISTANT: {% else %}USER: {% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }} {% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image> {% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }} {% endfor %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<end> <turn> ASSISTANT:{% endif %}"
)
_REPLY_GAIN, _DECOY_GAIN, _NEXT_GAIN = 2.5, 5.0, 2.0  # logits a unit of refusal or compliance, decoy, successor


def planted_truth(pair: bool = False) -> dict[str, Any]:
    """Where the planted heads and the decoy are: `{"planted": [(layer, head), …], "decoy": (layer, head)}`."""
    return {"planted": list(w.PAIR_AT) if pair else [w.PLANTED_AT], "decoy": w.DECOY_AT}


def build_planted(pair: bool = False) -> tuple[Llava, LlavaProcessor]:
    """The planted model, 4 layers of 4 heads, float32, on the CPU, and its processor.

    Args:
        pair: Write `planted-pair` instead. Two heads each find the hazard and write one unit of a common signal; the
            last MLP refuses from one unit on. Masking either leaves the refusal (its log-odds drop by about a fifth),
            masking both removes it. The decoy still moves the state most, but nothing of it reaches the logits, so
            that by Ships' KL the pair comes first: a greedy group search by KL finds one of the two, then the other.
    """
    return _build("planted-pair" if pair else "planted")


def build_null() -> tuple[Llava, LlavaProcessor]:
    """The control: planted, but with a planted head that cannot see hazards. No head differs between the classes."""
    return _build("null")


def build_processor() -> LlavaProcessor:
    """Word-level tokenizer and PIL image processor of the planted world; a word it does not know is `<unk>`."""
    words = Tokenizer(models.WordLevel({token: k for k, token in enumerate(VOCABULARY)}, unk_token="<unk>"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        additional_special_tokens=list(SPECIALS[4:]), model_max_length=512,
    )  # fmt: skip
    size = dict.fromkeys(("height", "width"), world.GRID * world.PATCH)
    half = [0.5] * 3  # a channel is -1 or +1
    return LlavaProcessor(
        CLIPImageProcessorPil(size=size, crop_size=size, image_mean=half, image_std=half), tokenizer,
        patch_size=world.PATCH, vision_feature_select_strategy="default", chat_template=CHAT_TEMPLATE,
        num_additional_image_tokens=1,  # CLIP's class token
    )  # fmt: skip


def _build(variant: str) -> tuple[Llava, LlavaProcessor]:
    with torch.random.fork_rng(devices=[]):  # transformers draws first weights; nobody's seed should notice
        model = Llava(_config()).eval()
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in weights.items():
            weight.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
        _write_vision(weights)
        _write_embeddings(weights["model.language_model.embed_tokens.weight"], variant)
        for head in w.heads_of(variant):
            _write_head(weights, head)
        if variant == "planted-pair":
            _write_ramp(weights)
        _write_unembedding(weights["lm_head.weight"], variant)
    model.generation_config = GenerationConfig(**_ENDS)
    return model, build_processor()


def _config() -> LlavaConfig:
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        image_size=world.GRID * world.PATCH, patch_size=world.PATCH, projection_dim=16, layer_norm_eps=1e-12,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=len(VOCABULARY), hidden_size=w.D_MODEL, intermediate_size=w.D_MLP, num_hidden_layers=w.N_LAYERS,
        num_attention_heads=w.N_HEADS, head_dim=w.D_HEAD, max_position_embeddings=512, rms_norm_eps=1e-12,
        rope_parameters={"rope_type": "default", "rope_theta": w.ROPE_THETA}, tie_word_embeddings=False, **_ENDS,
    )  # fmt: skip
    return LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=VOCABULARY.index("<image>"),
        image_seq_length=world.GRID**2, vision_feature_select_strategy="default", vision_feature_layer=-2,
        tie_word_embeddings=False,
    )  # fmt: skip


def _write_vision(weights: dict[str, Tensor]) -> None:
    """From pixels to words: the tower copies the colours of a patch, the projector names the patch.

    A patch becomes six numbers of -1 or +1 (red, green, blue of its left and right half), their negatives, and two
    constant pairs: mean 0 and variance 1, which LayerNorm leaves alone. The tower's layers add nothing. The projector
    compares with each thing it knows: x = 24 (agreement - 5), where agreement is 6 for an exact match and at most 4
    else, and GELU(x + 8) - GELU(x - 8) is 16 for a match and 0 otherwise, since GELU is exact that far from zero.
    """
    half = world.PATCH // 2
    tower, projector = "model.vision_tower.embeddings.", "model.multi_modal_projector."
    patches = weights[tower + "patch_embedding.weight"]
    for channel in range(6):
        side, colour = divmod(channel, 3)
        columns = slice(side * half, (side + 1) * half)
        patches[channel, colour, :, columns] = 1 / (world.PATCH * half)
        patches[channel + 6, colour, :, columns] = -1 / (world.PATCH * half)
    weights[tower + "position_embedding.weight"][:, 12:] = torch.tensor([1.0, -1.0, 1.0, -1.0])
    weights[tower + "class_embedding"][:12] = torch.tensor([1.0, -1.0] * 6)

    background = torch.tensor(w.embedding({}))
    weights[projector + "linear_2.bias"].copy_(background)
    things = [
        (kind, k, label)
        for kind in ("icon", "word")
        for k in range(len(world.NOUN_PAIRS))
        for label in ("unsafe", "safe")
    ]
    for place, (kind, k, label) in enumerate(things):
        colours = [world.COLOURS[half_colour] for half_colour in world.thing_tile(kind, k, label)]
        template = torch.tensor([1.0 if value else -1.0 for colour in colours for value in colour])
        shown = torch.tensor(w.embedding(w.thing(k, hazard=label == "unsafe")))
        for unit, offset, sign in ((2 * place, 8.0, 1.0), (2 * place + 1, -8.0, -1.0)):
            weights[projector + "linear_1.weight"][unit, :6] = 24 * template
            weights[projector + "linear_1.bias"][unit] = -24 * 5 + offset
            weights[projector + "linear_2.weight"][:, unit] = sign * (shown - background) / 16


def _write_embeddings(table: Tensor, variant: str) -> None:
    parts: dict[str, w.Writes] = {token: {} for token in VOCABULARY}
    parts |= {word: {w.FILLER: w.FLAG_SIZE} for word in world.FILLERS}
    parts |= {word: {w.MANNER: w.FLAG_SIZE, **w.signature(1, k)} for k, word in enumerate(world.MANNERS)}
    for k, (hazard, harmless) in enumerate(world.NOUN_PAIRS):
        parts |= {hazard: w.thing(k, hazard=True), harmless: w.thing(k, hazard=False)}
    parts |= {token: {w.SUCCESSOR[k]: 6.0} for k, (token, _) in enumerate(_successors())}
    parts |= {"<s>": {w.BOS: w.FLAG_SIZE}, "<end>": {w.END: w.FLAG_SIZE}, "<turn>": {w.TURN: w.FLAG_SIZE}}
    parts["ASSISTANT:"] = w.last_token(variant)
    for token, components in parts.items():
        table[VOCABULARY.index(token)] = torch.tensor(w.embedding(components))


def _successors() -> list[tuple[str, str]]:
    """(token, the token that follows it in a reply); the last word of a reply is followed by the end of the text."""
    return [(a, b) for reply in _REPLIES for a, b in zip(reply, [*reply[1:], "</s>"], strict=True)]


def _write_head(weights: dict[str, Tensor], head: w.WrittenHead) -> None:
    query, key, value, out = (
        weights[f"model.language_model.layers.{head.layer}.self_attn.{x}_proj.weight"] for x in "qkvo"
    )
    first = head.head * w.D_HEAD
    # score = query * key / sqrt(d_head), and the query is 48
    tier = head.score * w.D_HEAD**0.5 / 48
    query[first + head.rotary, w.LAST] = 48 / w.LAST_SIZE
    for flag, level in head.keys.items():
        key[first + head.rotary, flag] = level * tier / w.flag_size(flag)
    for k, channel in enumerate(head.channels):
        for dim, amount in channel.reads.items():
            value[first + k, dim] = amount
        for dim, amount in channel.writes.items():
            out[dim, first + k] = amount


def _write_ramp(weights: dict[str, Tensor]) -> None:
    """SiLU is linear far above zero and nothing far below, so gates 200 times the distance from a corner make a ramp.

    Gate and up are both read from the normalised state, in units of its constant part, which is 2 before the norm.
    """
    gate, up, down = (
        weights[f"model.language_model.layers.{w.N_LAYERS - 1}.mlp.{x}_proj.weight"] for x in ("gate", "up", "down")
    )
    for unit, (start, slope) in enumerate(w.RAMP):
        gate[unit, w.BOTH_TO] = 200.0
        gate[unit, w.CONST] = -200.0 * start / 2
        up[unit, w.CONST] = 0.5
        down[w.REFUSE, unit] = slope * w.TRADED / 200
        down[w.COMPLY, unit] = -slope * w.TRADED / 200


def _write_unembedding(table: Tensor, variant: str) -> None:
    """The reply's opening word, then its successors; the decoy holds back a comma; noise nudges the other words."""
    for k in range(len(SPECIALS), len(VOCABULARY)):
        table[k, w.NOISE[k % len(w.NOISE)]] = 1.0
    refusal, compliance = (VOCABULARY.index(reply[0]) for reply in _REPLIES)
    table[[refusal, compliance]] = 0.0
    table[refusal, w.REFUSE] = table[compliance, w.COMPLY] = _REPLY_GAIN
    for k, (_, following) in enumerate(_successors()):
        table[VOCABULARY.index(following), w.SUCCESSOR[k]] = _NEXT_GAIN
    if variant != "planted-pair":
        table[VOCABULARY.index(","), w.DECOY_FROM] = _DECOY_GAIN
