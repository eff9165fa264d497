"""`load_model` on checkpoints it has not met, and on what users get wrong."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    CLIPImageProcessorPil,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.utils import logging as hf_logging

import workbench as wb
from workbench.errors import ModelError, SelfCheckError
from workbench.models.conformance.at_load import probe_prompt
from workbench.models.families import FAMILIES
from workbench.models.families.processors import with_pillow
from workbench.models.families.tiny_parts import randomise, text_sizes, tiny_tokenizer
from workbench.models.tiny import build_tiny

hf_logging.disable_progress_bar()


@pytest.fixture
def saved(tmp_path):
    """`saved(name)` is a directory with the family's tiny model, as `save_pretrained` leaves it."""

    def save(name):
        model = build_tiny(name)
        model.hf.save_pretrained(tmp_path)
        (model.processor or model.tokenizer).save_pretrained(tmp_path)
        return tmp_path

    return save


def test_a_llava_unlike_pocket(tmp_path):
    """Another tower (SigLIP), text model (Qwen2), image size, depth, vocabulary and chat template."""
    tokenizer = tiny_tokenizer(["<pic>", "<|turn|>"])
    tokenizer.chat_template = (
        "{% for m in messages %}<|turn|> {{ m['role'] }} : {% for c in m['content'] %}"
        "{{ '<pic>' if c['type'] == 'image' else c['text'] }} {% endfor %}{% endfor %}<|turn|>"
    )
    vision = SiglipVisionConfig(
        hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2, image_size=60, patch_size=10,
        vision_use_head=False,
    )  # fmt: skip
    text = Qwen2Config(**text_sizes(tokenizer, num_hidden_layers=7, hidden_size=36, num_attention_heads=4, head_dim=10))
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=tokenizer.convert_tokens_to_ids("<pic>"),
        vision_feature_layer=-1, vision_feature_select_strategy="full", image_seq_length=36,
    )  # fmt: skip
    randomise(LlavaForConditionalGeneration(config)).save_pretrained(tmp_path)
    LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 60}, crop_size={"height": 60, "width": 60}),
        tokenizer, patch_size=10, vision_feature_select_strategy="full", image_token="<pic>",
        chat_template=tokenizer.chat_template,
    ).save_pretrained(tmp_path)  # fmt: skip
    model = wb.load_model(tmp_path, device="cpu")
    assert (model.n_layers, model.n_heads, model.n_kv_heads, model.d_model, model.d_head) == (7, 4, 2, 36, 10)
    encoded = model.encode(probe_prompt(model))
    assert encoded.patch_grid == (6, 6)
    assert encoded.tokens[0] == encoded.tokens[-1] == "<|turn|>"
    run = wb.sweep(model, [probe_prompt(model)], heads=[(3, 1)], progress=False)
    assert float(run["deflection"].sel(layer=3, head=1).min()) > 0


def test_device_map_and_quantization_reach_transformers(saved, monkeypatch):
    folder = saved("llava")
    assert wb.load_model(folder, device_map="cpu").device.type == "cpu"
    seen = {}
    loader = FAMILIES["llava"].model_class().from_pretrained

    def watched(where, **options):
        seen.update(options)
        options.pop("quantization_config")
        return loader(where, **options)

    monkeypatch.setattr(FAMILIES["llava"].model_class(), "from_pretrained", watched)
    wb.load_model(folder, device_map="auto", quantization_config="eight bits", dtype="bfloat16")
    assert seen["quantization_config"] == "eight bits"
    assert seen["device_map"] == "auto"
    assert seen["dtype"] == torch.bfloat16
    assert seen["trust_remote_code"] is False
    assert seen["local_files_only"] is True
    with pytest.raises(ModelError, match=r"either device='cpu' or device_map='auto', not both"):
        wb.load_model(folder, device="cpu", device_map="auto")


def test_code_in_a_checkpoint_does_not_run(saved, tmp_path):
    folder = saved("llama")
    (folder / "modeling_own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Own: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForCausalLM"), "modeling_own.Own")
    (folder / "config.json").write_text(json.dumps(config))
    wb.load_model(folder, device="cpu")
    assert not (tmp_path / "ran").exists()


def test_loading_and_bridging_start_no_other_program(saved, monkeypatch):
    """TransformerLens' own way in may run pip; ours starts nothing."""

    def refuse(*args, **kwargs):
        raise AssertionError(f"started a program: {args[:1]}")

    folder = saved("qwen3_vl")
    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(subprocess, "run", refuse)
    model = wb.load_model(folder, device="cpu")
    assert model.bridge is not None
    assert "torchvision" not in sys.modules


def test_pictures_are_read_with_pillow_where_torchvision_is_installed(saved):
    read = SimpleNamespace(image_processor=object.__new__(TorchvisionBackend))
    folder = saved("llava")
    assert isinstance(with_pillow(read, str(folder), {}).image_processor, PilBackend)
    model = wb.load_model(folder, device="cpu")
    assert read.image_processor.to_dict() == model.processor.image_processor.to_dict()


def test_unknown_model_types_and_missing_parts(saved):
    folder = saved("llava")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "nosuch"}))
    with pytest.raises(ModelError, match=r"No family for model type 'nosuch'\. Supported: aya_vision"):
        wb.load_model(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "processor_config.json").unlink()
    with pytest.raises(ModelError, match=r"its processor could not be loaded"):
        wb.load_model(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"its weights could not be loaded"):
        wb.load_model(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"is a directory without config\.json"):
        wb.load_model(folder)


def test_a_model_whose_masks_cannot_act_is_refused():
    """All output projections zero: every score would be 0 for the wrong reason."""
    from workbench.models.conformance.at_load import check_at_load

    model = build_tiny("llava")
    for attention in model.attentions.values():
        attention.o_proj.weight.data.zero_()
    with pytest.raises(SelfCheckError, match=r"masking the query projection of every other head \(limit"):
        check_at_load(model)


def test_weights_that_are_not_numbers_are_refused():
    from workbench.models.conformance.at_load import check_at_load

    model = build_tiny("llama")
    model.layers[2].mlp.down_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(SelfCheckError, match=r"logits on one prompt are not finite numbers"):
        check_at_load(model)


def test_check_command_says_so_in_its_exit_status(capsys):
    from rich.console import Console

    from workbench.cli.models import check_model, show_models
    from workbench.models import tiny
    from workbench.models.families import FAMILIES

    console = Console(width=150)
    assert not (check_model(console, "llama", tiny=True)["verdict"] == "failed").any()
    assert "conforms, 16 checks passed" in capsys.readouterr().out
    broken = tiny.randomise

    def without_output(hf, seed=0):
        broken(hf, seed)
        for layer in hf.model.layers:
            layer.self_attn.o_proj.weight.data.zero_()
        return hf

    tiny.randomise = without_output
    try:
        assert (check_model(console, "mistral", tiny=True)["verdict"] == "failed").any()
    finally:
        tiny.randomise = broken
    assert "DOES NOT CONFORM" in capsys.readouterr().out
    assert set(show_models(console)["family"]) == set(FAMILIES)
    assert "cross-attention layers are not" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # transformers' PaliGemma
def test_a_checkpoint_without_a_chat_template_uses_the_familys():
    model = build_tiny("paligemma")
    model.processor.chat_template = model.tokenizer.chat_template = None
    encoded = model.encode(probe_prompt(model))
    assert encoded.tokens[:16] == ["<image>"] * 16
    assert encoded.tokens[16:] == ["<s>", "what", "is", "this"]
    model = build_tiny("llava")
    model.processor.chat_template = model.tokenizer.chat_template = None
    with pytest.raises(ModelError, match=r"family 'llava' has no default"):
        model.encode(probe_prompt(model))
