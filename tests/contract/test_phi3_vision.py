"""Phi-3.5-Vision in our own class: how its image features are arranged, and its names, as in the published code."""

import math

import pytest
import torch
from einops import rearrange
from PIL import Image

from workbench.models.families.phi3_vision import Phi3VConfig, Phi3VForCausalLM, Phi3VImageProcessor
from workbench.models.tiny import build_tiny


def test_two_by_two_patches_become_one_token_and_rows_end_in_a_separator():
    """Order within a token: rows, columns, channels ("N (h hp) (w wp) c -> N h w (hp wp c)" in the published code)."""
    embedding = build_tiny("phi3_v").hf.model.vision_embed_tokens
    crops = torch.randn(6, 16, 32)  # 2 x 3 crops of 4 x 4 patches
    grid = embedding._grid(crops, 2, 3).view(4, 7, 128)
    patches = crops.view(6, 4, 4, 32)
    merged = rearrange(patches, "(hc wc) (h hp) (w wp) c -> (hc h) (wc w) (hp wp c)", hc=2, hp=2, wp=2)
    assert torch.equal(grid[:, :6], merged)
    assert torch.equal(grid[:, 6], embedding.sub_GN[0, 0].expand(4, -1))


@pytest.mark.parametrize(
    ("picture", "canvas"),
    # By hand, from the rule: as many 336-pixel columns as fit so that columns x ceil(columns / shape) <= num_crops.
    [((1000, 500), (672, 336)), ((500, 1000), (336, 672)), ((800, 800), (672, 672)), ((3000, 500), (1344, 336))],
)
def test_canvas(picture, canvas):
    processor = Phi3VImageProcessor(num_crops=4)
    found = processor([Image.new("RGB", picture, "red")])
    assert found["image_sizes"].tolist() == [[canvas[1], canvas[0]]]
    assert found["pixel_values"].shape == (1, 5, 3, 336, 336)
    rows, columns = canvas[1] // 336, canvas[0] // 336
    blank = found["pixel_values"][0, 1 + rows * columns :]
    assert not blank.any(), "unused crops are zeros"


def test_the_number_of_image_tokens_is_the_published_formula():
    model = build_tiny("phi3_v")
    encoded = model.encode(_prompt((64, 40)))
    height, width = encoded.model_inputs["image_sizes"][0].tolist()
    rows, columns, side = height // 56, width // 56, 2  # 144 = 12 x 12 tokens a crop at 336 pixels
    assert int(encoded.image_positions.sum()) == (rows * columns + 1) * side**2 + 1 + (rows + 1) * side


def _prompt(size):
    from workbench.prompts.prompt import Prompt

    return Prompt(id="p", text="what is this", image=Image.new("RGB", size, "red"))


def test_parameter_names_are_the_checkpoints():
    names = {name for name, _ in build_tiny("phi3_v").hf.named_parameters()}
    here = "model.vision_embed_tokens."
    wanted = {
        here + "glb_GN", here + "sub_GN", here + "img_projection.0.weight", here + "img_projection.2.bias",
        here + "img_processor.vision_model.embeddings.class_embedding",
        here + "img_processor.vision_model.pre_layrnorm.weight",
        here + "img_processor.vision_model.encoder.layers.0.self_attn.q_proj.weight",
        "model.embed_tokens.weight", "model.layers.0.self_attn.qkv_proj.weight",
        "model.layers.0.mlp.gate_up_proj.weight",
        "model.norm.weight", "lm_head.weight",
    }  # fmt: skip
    assert wanted <= names


def test_the_released_configuration_is_read():
    """As in the checkpoint's config.json: "su" rotary scaling, a named tower, no vision_config."""
    scaling = {"type": "su", "short_factor": [1.05] * 48, "long_factor": [1.1] * 48}
    config = Phi3VConfig(
        num_hidden_layers=1, rope_scaling=scaling, rope_theta=10000.0, max_position_embeddings=131072,
        original_max_position_embeddings=4096, sliding_window=262144,
        img_processor={"name": "clip_vision_model", "image_dim_out": 1024, "num_img_tokens": 144},
        embd_layer={"embedding_cls": "image", "hd_transform_order": "sub_glb", "projection_cls": "mlp"},
    )  # fmt: skip
    with torch.device("meta"):
        hf = Phi3VForCausalLM(config)
    assert hf.model.vision_embed_tokens.img_projection[0].in_features == 4096
    assert hf.config.rope_parameters["rope_type"] == "longrope"
    scale = math.sqrt(1 + math.log(131072 / 4096) / math.log(4096))
    assert hf.model.rotary_emb.attention_scaling == pytest.approx(scale)


@pytest.mark.parametrize("kept", ["model.embed_tokens.weight", "model.vision_embed_tokens.wte.weight"])
def test_the_embedding_loads_under_either_of_its_names(kept, tmp_path):
    from safetensors.torch import load_file, save_file

    made = build_tiny("phi3_v").hf
    made.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    embedding = next(
        weights.pop(name) for name in list(weights) if name.endswith(("embed_tokens.weight", "wte.weight"))
    )
    save_file(weights | {kept: embedding}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = Phi3VForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded.model.embed_tokens.weight, made.model.embed_tokens.weight)
    assert loaded.model.vision_embed_tokens.wte.weight is loaded.model.embed_tokens.weight
