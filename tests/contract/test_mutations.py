"""The mistakes other tools have made, made here on purpose: the conformance report must see each of them."""

import dataclasses
import sys

import pytest
import torch

from workbench.models import attention, masks, walk
from workbench.models.conformance.report import conformance
from workbench.models.families import FAMILIES
from workbench.models.families.family import nothing_between
from workbench.models.tiny import build_tiny

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # transformers' PaliGemma
SEEING = [name for name, family in FAMILIES.items() if family.has_images]
NORMED = [name for name, family in FAMILIES.items() if family.query_norm]
# In these some layer hides keys, or shows later ones, that plain causal attention would not.
NOT_PLAIN_CAUSAL = [name for name, family in FAMILIES.items() if family.sliding]


@pytest.fixture
def mutate(monkeypatch):
    """`mutate(function, mutant)` puts the mutant wherever the package has imported the function."""

    def everywhere(function, mutant):
        for name, module in list(sys.modules.items()):
            if name.startswith("workbench") and getattr(module, function.__name__, None) is function:
                monkeypatch.setattr(module, function.__name__, mutant)

    return everywhere


def failed(model, *checks):
    report = conformance(model, only=checks)
    assert {f.check for f in report.findings} == set(checks), "a check was renamed"
    return {f.check for f in report.failures}


def test_every_family_has_mutants():
    assert len(NORMED) >= 6
    assert {"mistral", "gemma2", "gemma3", "aya_vision", "qwen2_vl", "llama4", "paligemma"} <= set(NOT_PLAIN_CAUSAL)


@pytest.mark.parametrize("name", NORMED)
def test_masking_before_the_query_norm(name, tiny, mutate):
    def before_the_norm(model, base, layer, projection, mask, *rest, original=masks.masked_z):
        if projection == "query" and mask.form != "as_published":
            mask = masks.Mask(form="as_published", factor=mask.factor)
        return original(model, base, layer, projection, mask, *rest)

    mutate(masks.masked_z, before_the_norm)
    assert failed(tiny(name), "query norm", "heads as rows")


@pytest.mark.parametrize("name", FAMILIES)
def test_slicing_value_heads_by_query_index(name, tiny, mutate):
    def by_query_index(module, edit, seen, original=attention.edited_attention):
        if edit is not None and edit.output_factor is not None:
            value = seen.value
            kept = edit.output_factor[:, : value.shape[1], None, None].to(
                value.dtype
            )  # past n_kv heads: silently nothing
            seen, edit = dataclasses.replace(seen, value=value * kept), dataclasses.replace(edit, output_factor=None)
        return original(module, edit, seen)

    mutate(attention.edited_attention, by_query_index)
    assert failed(tiny(name), "value heads") == {"value heads"}


@pytest.mark.parametrize("name", FAMILIES)
def test_head_dim_as_a_quotient(name):
    model = build_tiny(name, dtype=torch.float64)
    if model.d_model // model.n_heads == model.d_head:
        model.d_head //= 2  # where the quotient is right, a config that says otherwise would be the mistake
    else:
        model.d_head = model.d_model // model.n_heads
    assert "every site runs" in failed(model, "every site runs", "published mask")


@pytest.mark.parametrize("name", NOT_PLAIN_CAUSAL)
def test_plain_causal_closed_form(name, tiny, mutate):
    def plain_causal(value, mask, n_pos, n_heads, original=attention.even_attention):
        return original(value, None, n_pos, n_heads)

    mutate(attention.even_attention, plain_causal)
    assert failed(tiny(name), "query mask in closed form") == {"query mask in closed form"}


@pytest.mark.parametrize("name", SEEING)
def test_image_features_forgotten_on_resume(name, mutate):
    model = build_tiny(name, dtype=torch.float64)
    if model.family.decoder_record:
        # What lies in the residual stream is kept; what is added between layers is forgotten.
        model.family = dataclasses.replace(model.family, after_layer=nothing_between)
    else:
        placeholders = model.hf.get_input_embeddings()

        def text_only(model, base, layer, n_rows, original=walk.resume, **options):
            ids = torch.cat([e.input_ids for e in base.encoded])
            there = torch.stack([e.image_positions for e in base.encoded])[..., None]
            inputs = {n: torch.where(there, placeholders(ids), x) for n, x in base.inputs.items()}
            arguments = {n: {**a, **without_picture(a)} for n, a in base.arguments.items()}
            return original(
                model, dataclasses.replace(base, inputs=inputs, arguments=arguments), layer, n_rows, **options
            )

        mutate(walk.resume, text_only)
    assert failed(model, "going on from any layer") == {"going on from any layer"}


def without_picture(arguments):
    """mllama's pictures come with each layer's arguments."""
    return {k: torch.zeros_like(v) for k, v in arguments.items() if k == "cross_attention_states" and v is not None}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_mask_dropped_while_decoding(name, tiny, mutate):
    def prompt_only(module, edit, seen, original=attention.edited_attention):
        return original(module, edit if seen.query.shape[2] > 1 else None, seen)

    mutate(attention.edited_attention, prompt_only)
    assert failed(tiny(name), "mask while generating") == {"mask while generating"}


def test_a_prompt_that_looks_ahead_taken_for_a_causal_one(tiny, mutate):
    mutate(walk.sees_ahead, lambda *_: False)
    assert failed(tiny("paligemma"), "masks at some positions") == {"masks at some positions"}
    assert not failed(tiny("llava"), "masks at some positions")


def test_positions_counted_from_zero_on_a_partial_resume(tiny, monkeypatch):
    monkeypatch.setattr(walk.Known, "get_seq_length", lambda self, layer_idx=0: 0)
    assert failed(tiny("llama4"), "masks at some positions") == {"masks at some positions"}


def test_a_family_that_denies_its_query_norm():
    model = build_tiny("qwen3", dtype=torch.float64)
    model.family = dataclasses.replace(model.family, query_norm=False)
    assert failed(model, "query norm") == {"query norm"}


def test_a_logit_scale_that_is_not_the_models_own():
    """Cohere2's vision classes leave the scale out; applying it as its text class does would be wrong there."""
    model = build_tiny("aya_vision", dtype=torch.float64)
    model.family = dataclasses.replace(model.family, logits=FAMILIES["cohere2"].logits)
    assert "parity with transformers: logits" in failed(model, "parity with transformers: logits")
