"""The planted model's whole forward pass once more, in plain numpy and float64, with masks: the second road.

Written from the papers' formulas and LLaVA's layout, not from the torch code under test. It takes the weights and knows
nothing of what they mean.
"""

from dataclasses import dataclass
from math import erf

import numpy as np
from PIL import Image

N_HEADS, D_HEAD, PATCH = 4, 16, 8
LLAMA, TOWER, PROJECTOR = "model.language_model.", "model.vision_tower.", "model.multi_modal_projector."
EPS = 1e-12  # of both norms


@dataclass
class Forward:
    """Last prompt position: final state [d_model], logits [vocab], z and attention [layer, head, …]."""

    state: np.ndarray
    logits: np.ndarray
    z: np.ndarray
    attention: np.ndarray


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def rms_norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return weight * x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS)


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return weight * centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPS) + bias


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-np.clip(x, -500, None)))


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.vectorize(erf)(x / np.sqrt(2))) / 2


def image_states(weights: dict[str, np.ndarray], image: Image.Image) -> np.ndarray:
    """[patch, d_model]. The tower's layers must write nothing, which is checked, so only its embeddings count."""
    for name, value in weights.items():
        if name.startswith(TOWER + "encoder") and ("out_proj" in name or "fc2" in name):
            assert not value.any(), f"{name} is not zero, so this reference does not cover the tower"
    pixels = (np.asarray(image, dtype=np.float64) / 255 - 0.5) / 0.5
    side = pixels.shape[0] // PATCH
    patches = pixels.reshape(side, PATCH, side, PATCH, 3).transpose(0, 2, 4, 1, 3).reshape(side * side, -1)
    kernel = weights[TOWER + "embeddings.patch_embedding.weight"]
    x = patches @ kernel.reshape(len(kernel), -1).T + weights[TOWER + "embeddings.position_embedding.weight"][1:]
    x = layer_norm(x, weights[TOWER + "pre_layrnorm.weight"], weights[TOWER + "pre_layrnorm.bias"])
    for k in (1, 2):
        x = x @ weights[f"{PROJECTOR}linear_{k}.weight"].T + weights[f"{PROJECTOR}linear_{k}.bias"]
        x = gelu(x) if k == 1 else x
    return x


def rotate(x: np.ndarray, theta: float) -> np.ndarray:
    """Rotary positions; x is [pos, head, d_head]."""
    half = D_HEAD // 2
    angle = np.arange(len(x))[:, None] * theta ** (-np.arange(half) / half)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    first, second = x[..., :half], x[..., half:]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


def forward(
    weights: dict[str, np.ndarray],
    ids: np.ndarray,
    image: Image.Image | None,
    *,
    image_token: int,
    heads: tuple[tuple[int, int], ...] = (),
    projection: str = "query",
    theta: float = 1e16,
) -> Forward:
    """One prompt with the given (layer, head) pairs masked: query = even attention, value = no output."""
    x = weights[LLAMA + "embed_tokens.weight"][ids].copy()
    if image is not None:
        x[ids == image_token] = image_states(weights, image)
    visible = np.tril(np.ones((len(ids), len(ids)), dtype=bool))
    zs, patterns = [], []
    n_layers = 1 + max(int(name.split(".")[3]) for name in weights if name.startswith(LLAMA + "layers"))
    for layer in range(n_layers):
        w = {name.split(f"layers.{layer}.")[-1]: v for name, v in weights.items() if f"{LLAMA}layers.{layer}." in name}
        h = rms_norm(x, w["input_layernorm.weight"])
        q, k, v = ((h @ w[f"self_attn.{p}_proj.weight"].T).reshape(len(ids), N_HEADS, D_HEAD) for p in "qkv")
        scores = np.einsum("ihd,jhd->hij", rotate(q, theta), rotate(k, theta)) / np.sqrt(D_HEAD)
        pattern = softmax(np.where(visible, scores, -np.inf))
        for head in [b for a, b in heads if a == layer and projection == "query"]:
            pattern[head] = visible / visible.sum(-1, keepdims=True)
        z = np.einsum("hij,jhd->ihd", pattern, v)
        for head in [b for a, b in heads if a == layer and projection == "value"]:
            z[:, head] = 0
        zs.append(z[-1])
        patterns.append(pattern[:, -1])
        x = x + z.reshape(len(ids), -1) @ w["self_attn.o_proj.weight"].T
        h = rms_norm(x, w["post_attention_layernorm.weight"])
        inner = silu(h @ w["mlp.gate_proj.weight"].T) * (h @ w["mlp.up_proj.weight"].T)
        x = x + inner @ w["mlp.down_proj.weight"].T
    state = rms_norm(x[-1], weights[LLAMA + "norm.weight"])
    return Forward(state, weights["lm_head.weight"] @ state, np.stack(zs), np.stack(patterns))


def deflection_degrees(base: np.ndarray, masked: np.ndarray) -> float:
    u, v = base / np.linalg.norm(base), masked / np.linalg.norm(masked)
    return float(np.degrees(2 * np.arctan2(np.linalg.norm(u - v), np.linalg.norm(u + v))))


def kl_nats(base_logits: np.ndarray, masked_logits: np.ndarray) -> float:
    p, q = softmax(base_logits), softmax(masked_logits)
    return float(np.sum(p * (np.log(p) - np.log(q))))
