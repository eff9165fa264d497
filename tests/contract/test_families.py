"""Every family keeps the same contract, on a tiny random model of transformers' real class."""

import socket

import pytest
import torch
from transformers.utils import logging as hf_logging

from workbench.models.attention import allowed_keys
from workbench.models.conformance.at_load import check_at_load, probe_prompt
from workbench.models.conformance.checks import LIMIT
from workbench.models.conformance.probe import CHECKS
from workbench.models.conformance.report import conformance
from workbench.models.families import FAMILIES
from workbench.models.loading import load_model
from workbench.models.precision import double_kept
from workbench.models.tiny import build_tiny

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # transformers' PaliGemma
NAMED = {
    "llava",
    "llava_next",
    "llava_onevision",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "aya_vision",
    "cohere2_vision",
    "phi4_multimodal",
    "phi3_v",
    "gemma3",
    "paligemma",
    "internvl",
    "idefics3",
    "smolvlm",
    "llama4",
    "mistral3",
    "mllama",
    "llama",
    "phi3",
    "qwen2",
    "qwen3",
    "mistral",
    "gemma2",
}
# What a family gives nothing to check, and nothing else may be left out.
NOTHING_TO_CHECK = {
    name: {"image tokens", "prompt without a picture"} for name, f in FAMILIES.items() if not f.has_images
}
NOTHING_TO_CHECK["paligemma"] = {"prompt without a picture"}


def test_every_family_asked_for_is_there():
    assert set(FAMILIES) >= NAMED
    assert all(family.tiny is not None for family in FAMILIES.values()), (
        "a family without a tiny model is not checked here"
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_conforms(name, tiny):
    report = conformance(tiny(name))
    assert report.ok, [(f.check, f.detail) for f in report.failures]
    patched = next(f.detail for f in report.findings if f.check == "all heads interchanged")
    # Experts take tokens in groups, whose sizes change how sums are rounded.
    assert patched == "bit-identical" or name == "qwen3_vl_moe", patched
    left_out = {f.check for f in report.findings if f.verdict == "n/a"}
    assert left_out == NOTHING_TO_CHECK.get(name, set())
    assert len(report.findings) == len(CHECKS)


def test_the_tiny_models_have_what_makes_mistakes_visible(tiny):
    for name in FAMILIES:
        model = tiny(name)
        assert model.n_heads > model.n_kv_heads > 1, name
        recorded = model.base(probe_prompt(model)).recordings.values()
        if model.family.sliding:
            unlike = [r for r in recorded if r.mask is not None and not plain_causal(r.mask)]
            assert unlike, f"{name}: all layers of the tiny model are plain causal"
        wide = model.d_head * model.n_heads != model.d_model
        assert wide != (name in HEAD_DIM_IS_THE_QUOTIENT), f"{name}: d_head is {model.d_head}"


# transformers computes it so in these classes, whatever a config says.
HEAD_DIM_IS_THE_QUOTIENT = {"qwen2_vl", "qwen2_5_vl", "mllama"}


def plain_causal(mask):
    return torch.equal(allowed_keys(mask)[0, 0], torch.ones_like(mask[0, 0], dtype=torch.bool).tril())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_half_precision_passes_the_check_at_load(name, dtype):
    check_at_load(build_tiny(name, dtype=getattr(torch, dtype)))


@pytest.mark.parametrize("name", FAMILIES)
def test_loads_from_a_directory_without_the_network(name, tmp_path, monkeypatch):
    hf_logging.disable_progress_bar()
    made = build_tiny(name)
    made.hf.save_pretrained(tmp_path)
    (made.processor or made.tokenizer).save_pretrained(tmp_path)

    def refuse(*args, **kwargs):
        raise AssertionError("loading a local directory opened a socket")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    model = load_model(tmp_path, device="cpu")
    assert model.family.name == name
    assert model.weight_hash == made.weight_hash
    inputs = made.encode(probe_prompt(made)).model_inputs
    with torch.no_grad():
        theirs, ours = (m.hf(**inputs).logits[0, -1] for m in (made, model))
    assert torch.allclose(ours, theirs, atol=1e-5)
    if name != "qwen2":  # AutoTokenizer reads every qwen2 tokenizer as byte pairs, and ours is of whole words
        again = model.encode(probe_prompt(model)).model_inputs
        assert again.keys() == inputs.keys()
        assert all(torch.equal(again[key], inputs[key]) for key in inputs)


@pytest.mark.parametrize("name", ["qwen3_vl_moe", "llama4"])
def test_a_router_does_not_change_what_a_head_mask_means(name, tiny):
    """Experts sit after the attention: z of the masked layer is the same whatever the router then does."""
    model = tiny(name)
    prompt = probe_prompt(model)
    with double_kept(model.dtype):
        before = model.base(prompt).recordings[1]
        with model.masked([(1, 2)], "value", LIMIT):
            after = model.base(prompt).recordings[1]
        assert torch.equal(after.z[:, :, 2], torch.zeros_like(after.z[:, :, 2]))
        others = [h for h in range(model.n_heads) if h != 2]
        assert torch.equal(after.z[:, :, others], before.z[:, :, others])
