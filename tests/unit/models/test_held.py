"""Models that people hold already: each against the same model taken by another road."""

import copy

import numpy as np
import pytest
import torch

import workbench as wb
from tests.builders.held import with_adapters, wrapped_in
from tests.builders.models import seeded, tiny
from tests.builders.prompts import asked, pictures, text_prompts
from workbench.bench.jobs import estimated
from workbench.errors import ModelError
from workbench.models.fingerprint import fingerprint
from workbench.models.loading import load_model
from workbench.models.tiny_gguf import write_tiny_gguf
from workbench.runs.schema import write_roots

MASKS = (
    None,
    wb.Mask(form="as_published"),
    wb.Mask(form="scale", factor=0.3, positions="last"),
    wb.Mask(grain="kv_group"),
)


def adapted(alpha: int = 16):
    model = seeded("llava", torch.float64)
    return with_adapters(model.hf, alpha=alpha), model.processor


@pytest.mark.slow
@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: str(mask and (mask.form, mask.grain)))
def test_a_model_in_adapters_is_swept_as_the_merged_one(mask):
    wrapped, processor = adapted()
    merged = load_model(copy.deepcopy(wrapped).merge_and_unload(), processor=processor, check=False)
    model = load_model(wrapped, processor=processor)
    prompts = asked(["what is this", "a bomb"], pictures(2))
    run, want, plain = (
        wb.sweep(m, prompts, mask=mask, progress=False) for m in (model, merged, tiny("llava", torch.float64))
    )
    for name in want.data_vars:  # in float64 the two orders of the same sums agree to rounding
        if name != "write_root":
            np.testing.assert_allclose(run[name], want[name], rtol=1e-6, atol=1e-9, err_msg=str(name))
    assert abs(run.deflection - plain.deflection).max() > 1, "the adapters say nothing"


@pytest.mark.slow
def test_what_a_head_writes_is_written_through_its_adapter():
    wrapped, processor = adapted()
    merged = load_model(copy.deepcopy(wrapped).merge_and_unload(), processor=processor, check=False)
    models = (load_model(wrapped, processor=processor, check=False), merged, tiny("llava", torch.float64))
    mine, want, plain = (root @ root.swapaxes(-1, -2) for root in map(write_roots, models))
    np.testing.assert_allclose(mine, want, rtol=1e-4, atol=1e-5)
    assert abs(mine - plain).max() > 0.01


def test_how_adapters_act_is_part_of_a_models_fingerprint():
    prints = []
    for alpha, off in ((16, False), (8, False), (16, True)):
        wrapped, processor = adapted(alpha)
        if off:
            wrapped.base_model.disable_adapter_layers()
        prints.append(fingerprint(load_model(wrapped, processor=processor, check=False)))
    assert len(set(prints)) == 3, "another scale of the same adapters is another model"


def test_learned_prompts_are_refused():
    import peft

    model = seeded("llama")
    wrapped = wrapped_in(model.hf, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(ModelError, match="puts learned tokens before a prompt"):
        load_model(wrapped, processor=model.tokenizer)


@pytest.mark.parametrize("family", ["llava", "llama", "qwen2_vl"])
def test_a_bridge_is_taken_with_its_tokenizer(family):
    model = seeded(family)
    taken = load_model(model.bridge)
    assert taken.weight_hash == model.weight_hash
    prompt = text_prompts()[0]
    torch.testing.assert_close(taken.logits(prompt), model.logits(prompt), rtol=0, atol=0)
    storages = {p.data_ptr() for p in model.hf.parameters()}
    assert {p.data_ptr() for p in taken.hf.parameters()} <= storages, "the weights are not copied"


def test_a_bridge_with_other_weights_is_refused():
    bridge = seeded("llama").bridge
    bridge.compatibility_mode = True
    with pytest.raises(ModelError, match="folded or centred its weights"):
        load_model(bridge)


def test_a_gguf_file_is_the_model_that_was_written(tmp_path):
    hf = write_tiny_gguf(tmp_path / "tiny.gguf")
    model = load_model(tmp_path / "tiny.gguf")
    prompt = text_prompts()[0]
    ids = model.encode(prompt).input_ids
    with torch.no_grad():
        want = hf.eval()(ids).logits[0, -1]
    torch.testing.assert_close(model.logits(prompt), want, rtol=1e-5, atol=1e-5)
    assert "bomb" in "".join(model.encode(wb.Prompt("b", "a bomb")).tokens)
    assert wb.sweep(model, text_prompts(), progress=False).sizes["head"] == 6


def test_gguf_files_that_are_none(tmp_path):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(40))
    for name, said in (("broken.gguf", "could not be loaded"), ("absent.gguf", "There is no file")):
        with pytest.raises(ModelError, match=said):
            load_model(tmp_path / name)


@pytest.mark.parametrize("mask", [None, wb.Mask(form="as_published")], ids=["limit", "as_published"])
def test_layers_kept_on_the_disk_are_swept_as_all_others(tmp_path, mask):
    whole = seeded("llava")
    whole.hf.save_pretrained(tmp_path)
    whole.processor.save_pretrained(tmp_path)
    text, tower = "model.language_model", ("model.vision_tower", "model.multi_modal_projector", "lm_head")
    parts = [*tower, *(f"{text}.{part}" for part in ("embed_tokens", "norm", "rotary_emb", "layers.0", "layers.1"))]
    away = {f"{text}.layers.2": "disk", f"{text}.layers.3": "disk"}
    model = load_model(tmp_path, device_map=dict.fromkeys(parts, "cpu") | away)
    assert any(p.is_meta for p in model.hf.parameters())
    assert model.weight_hash == whole.weight_hash
    assert model.device.type == "cpu"
    prompts = asked(["what is this", "a bomb"], pictures(2))
    run, want = (wb.sweep(m, prompts, mask=mask, progress=False) for m in (model, whole))
    for name in want.data_vars:
        np.testing.assert_array_equal(run[name], want[name], err_msg=str(name))
    assert np.isfinite(estimated(model, prompts, 2)).all()
