"""A tiny random model in one GGUF file, to try on what such files go through; needs the extra `gguf`."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.models.families.tiny_parts import TEXT, randomise

# Letters, as bytes are written down; a space is Ġ.
TOKENS = ["<unk>", "<s>", "</s>", "Ġ", "Ċ", *map(chr, range(33, 127)), "at"]
CHAT = (
    "{% for m in messages %}USER : {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}ASSISTANT :{% endif %}"
)


def _llama() -> Any:
    """A random Llama whose sizes GGUF can say: heads as wide as the residual stream over their number."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = TEXT | {"vocab_size": len(TOKENS), "bos_token_id": 1, "eos_token_id": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return randomise(LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=False)))


def write_tiny_gguf(path: str | Path) -> Any:
    """Write a random Llama into one GGUF file, in float32, with letters as tokens and a chat template.

    Returns:
        The transformers model that was written.
    """
    from gguf import GGUFWriter

    hf = _llama()
    config, writer = hf.config, GGUFWriter(str(path), "llama")
    writer.add_name("tiny llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_merges(["a t"])
    writer.add_token_types([2, 3, 3] + [1] * (len(TOKENS) - 3))  # unknown, control, control, normal
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(CHAT)
    for name, tensor in hf.state_dict().items():
        writer.add_tensor(_gguf_name(name), _gguf_order(name, tensor, config).contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return hf


NAMES = {
    "model.layers.": "blk.",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_attention_layernorm": "ffn_norm",
    "input_layernorm": "attn_norm",
}


def _gguf_name(name: str) -> str:
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    return name


def _gguf_order(name: str, tensor: Tensor, config: Any) -> Tensor:
    """Queries and keys as GGUF keeps them, whose rotary step turns neighbours in place of halves."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    n_heads = next((n for part, n in heads.items() if part in name), 0)
    if not n_heads:
        return tensor
    return tensor.view(n_heads, 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
