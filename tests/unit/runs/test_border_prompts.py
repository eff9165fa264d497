"""What a store does with prompts: that are not what they were, that cannot be measured, that come later."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import workbench as wb
from tests.builders.models import seeded, tiny
from tests.builders.prompts import text_prompts
from tests.builders.stores import interrupt_after, same, swept
from workbench.errors import PromptError, RunError
from workbench.models.fingerprint import fingerprint
from workbench.models.tiny import build_tiny
from workbench.runs.reading import as_run

LITTLE = {"projections": ("query",), "keep_states": False}


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.mark.slow
@pytest.mark.parametrize("what", ["template", "picture", "buffer", "tokenizer"])
def test_a_store_is_of_what_the_model_was_given(tmp_path, what):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 32, 3), dtype=np.uint8))
    prompts = [replace(p, image=picture) for p in text_prompts()]
    out, model = tmp_path / "run.zarr", seeded()
    wb.sweep(model, prompts, out=out, progress=False, **LITTLE)
    before = fingerprint(model)
    if what == "template":
        model.processor.chat_template = model.processor.chat_template.replace("USER : ", "a red cat USER : ")
    elif what == "picture":
        model.processor.image_processor.image_mean = [0.0, 0.0, 0.0]
    elif what == "buffer":
        model.decoder.rotary_emb.inv_freq = model.decoder.rotary_emb.inv_freq * 0.5
    else:
        model.tokenizer.add_tokens(["hello there"])
    assert fingerprint(model) != before
    with pytest.raises(RunError, match="holds another run: fingerprint is"):
        wb.sweep(model, prompts, out=out, progress=False, **LITTLE)


def test_inputs_that_changed_midway_are_seen(model, tmp_path, small_blocks, monkeypatch):
    out = tmp_path / "run.zarr"
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            swept(model, out, **LITTLE)
    encode = model.encode

    def other(prompt):
        encoded = encode(prompt)
        if prompt.id == "p1":
            encoded.model_inputs["input_ids"] = encoded.model_inputs["input_ids"].flip(1)
        return encoded

    monkeypatch.setattr(model, "encode", other)
    with pytest.raises(RunError, match="begun with other inputs: prompt 'p1'"):
        swept(model, out, **LITTLE)


@pytest.fixture
def overflowing():
    """A model in half precision that one of its words overflows."""
    torch.manual_seed(0)
    model = build_tiny("llava", dtype=torch.float16)
    word = model.tokenizer.convert_tokens_to_ids("bomb")
    model.hf.get_input_embeddings().weight.data[word] = torch.tensor(7e4).half()
    return model


@pytest.mark.slow
def test_one_bad_prompt_is_named_and_the_store_takes_the_others(overflowing, tmp_path, small_blocks):
    out, prompts = tmp_path / "run.zarr", text_prompts()
    bad = "p1"  # "a bomb"
    with pytest.raises(RunError, match=r"^Prompt 'p1' cannot be swept\. .*not finite.*on_error='skip'"):
        wb.sweep(overflowing, prompts, out=out, progress=False, **LITTLE)
    rest = [p for p in prompts if p.id != bad]
    run = wb.sweep(overflowing, rest, out=out, progress=False, **LITTLE)
    assert run.prompt.values.tolist() == [p.id for p in rest]
    assert np.isfinite(run.deflection.values).all()
    kept = wb.open_run(out)
    assert np.isnan(kept.deflection.sel(prompt=bad).values).all()
    assert json.loads(kept.attrs["skipped"]) == {bad: "not among the prompts of the call"}
    before = overflowing.work.layer_tokens
    same(wb.sweep(overflowing, rest, out=out, progress=False, **LITTLE), run)
    assert overflowing.work.layer_tokens == before, "a finished run was computed again"
    with pytest.raises(RunError, match="Prompt 'p1' cannot be swept"):
        wb.sweep(overflowing, prompts, out=out, progress=False, **LITTLE)


@pytest.mark.slow
def test_a_skipped_prompt_is_listed_left_nan_and_left_out(overflowing, tmp_path, small_blocks, capsys):
    out, prompts = tmp_path / "run.zarr", text_prompts()
    run = wb.sweep(overflowing, prompts, out=out, on_error="skip", **LITTLE)
    assert "Left out: p1: " in capsys.readouterr().err
    for name in ("deflection", "kl", "base_state", "head_output"):
        assert np.isnan(run[name].sel(prompt="p1").values).all()
        assert np.isfinite(run[name].drop_sel(prompt="p1").values).all()
    assert "not finite" in json.loads(run.attrs["skipped"])["p1"]
    assert as_run(run).prompt.values.tolist() == ["p0", "p2", "p3", "p4", "p5"]
    before = overflowing.work.layer_tokens
    same(wb.sweep(overflowing, prompts, out=out, progress=False, on_error="skip", **LITTLE), run)
    assert overflowing.work.layer_tokens == before
    with pytest.raises(RunError, match=r"left out 1 prompts that could not be computed, the first 'p1'"):
        wb.sweep(overflowing, prompts, out=out, progress=False, **LITTLE)


def test_a_prompt_that_cannot_be_encoded_is_skipped(model, monkeypatch):
    encode = model.encode

    def refusing(prompt):
        if prompt.id == "p2":
            raise ZeroDivisionError("a picture one pixel thin")
        return encode(prompt)

    monkeypatch.setattr(model, "encode", refusing)
    with pytest.raises(PromptError, match=r"Prompt 'p2' cannot be swept\. ZeroDivisionError: a picture one pixel thin"):
        swept(model, **LITTLE)
    run = swept(model, on_error="skip", **LITTLE)
    assert np.isnan(run.deflection.sel(prompt="p2").values).all()
    assert "one pixel thin" in json.loads(run.attrs["skipped"])["p2"]


@pytest.mark.slow
def test_prompts_that_were_not_asked_for_are_computed_when_they_are(model, tmp_path, small_blocks, monkeypatch):
    out, prompts = tmp_path / "run.zarr", text_prompts()
    whole = swept(model, **LITTLE)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 5, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            swept(model, out, **LITTLE)
    some = wb.sweep(model, prompts[:3], out=out, progress=False, **LITTLE)
    assert some.sizes["prompt"] == 3
    half = wb.open_run(out).deflection.values
    assert np.isnan(half[3:]).all()
    one_more = wb.sweep(model, prompts[4:], out=out, progress=False, **LITTLE)
    assert np.isfinite(one_more.deflection.values).all()
    np.testing.assert_array_equal(wb.open_run(out).deflection.values[:4], half[:4])  # what was done is kept
    found = swept(model, out, **LITTLE)
    same(found, whole)
    assert json.loads(found.attrs["skipped"]) == {}
