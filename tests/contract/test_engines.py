"""On every family the exact engine gives what one full forward a head through TransformerLens' hooks gives."""

import dataclasses

import numpy as np
import pytest
import torch

import workbench as wb
from tests.builders.models import seeded
from workbench.errors import MaskError
from workbench.models.conformance.at_load import probe_prompt, tolerance
from workbench.models.families import FAMILIES

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # transformers' PaliGemma
# After Llama 4's query norm there is no module, hence no hook, for the naive engine's query mask.
NO_QUERY_HOOK = {"llama4"}


@pytest.mark.parametrize("name", FAMILIES)
def test_exact_equals_naive(name, tiny):
    model = tiny(name)
    first, *_, before_last, last = model.masked_layers
    projections = ("value",) if name in NO_QUERY_HOOK else ("query", "value")
    options = {"heads": [(first, 1), (before_last, 2), (last, 4)], "projections": projections, "progress": False}
    exact, naive = (wb.sweep(model, [probe_prompt(model)], engine=engine, **options) for engine in ("exact", "naive"))
    assert float(exact["deflection"].min()) > 0.1, "the masks hardly act: equal numbers would prove nothing"
    for variable in ("deflection", "kl"):
        gap = np.abs(exact[variable].values - naive[variable].values)
        assert np.isfinite(gap).sum() == 3 * len(projections)
        assert np.nanmax(gap) < 1e-6, variable


@pytest.mark.parametrize("name", ["llava", "gemma3"])
def test_forms_that_put_something_in_by_hooks_of_transformer_lens(name, tiny):
    model, heads = tiny(name), [(1, 2), (tiny(name).masked_layers[-1], 4)]
    one = probe_prompt(model)
    words = " ".join(reversed(one.text.split()))
    twins = [
        dataclasses.replace(one, label="unsafe", pair_id="pair"),
        dataclasses.replace(one, id="twin", text=words, pair_id="pair"),
    ]
    vectors = np.cos(np.arange(model.n_layers * model.n_heads * model.d_head)).reshape(
        model.n_layers, model.n_heads, -1
    )
    other = dataclasses.replace(one, id="other", text=words)
    masks = [wb.Mask("interchange"), wb.Mask("mean"), wb.Mask("resample", source=other)]
    masks += [
        wb.Mask("direction", source=vectors, bias=0.5),
        wb.Mask("redirect", bias=2.0),
        wb.Mask("scale", factor=3.0),
    ]
    for mask, projections in [*((mask, None) for mask in masks), (wb.Mask(positions="image"), "key")]:
        options = {"mask": mask, "projections": projections, "heads": heads, "progress": False}
        exact, naive = (wb.sweep(model, twins, engine=engine, **options) for engine in ("exact", "naive"))
        assert float(exact["deflection"].max()) > 0.1, mask
        np.testing.assert_allclose(naive["deflection"], exact["deflection"], atol=1e-6, err_msg=str(mask))


def test_the_naive_engine_says_when_transformer_lens_drops_an_edit_of_scores(tiny):
    model = tiny("qwen2_vl")
    with pytest.raises(MaskError, match="takes no edits of them"):
        wb.sweep(model, [probe_prompt(model)], projections="key", engine="naive", heads=[(0, 1)], progress=False)


def test_the_naive_engine_says_when_a_hook_is_missing(tiny):
    model = tiny("llama4")
    with pytest.raises(MaskError, match=r"no hook blocks\.0\.attn\.q_norm\.hook_out for family 'llama4'"):
        wb.sweep(model, [probe_prompt(model)], engine="naive", heads=[(0, 1)], progress=False)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_half_precision_sweeps_keep_their_states(name, dtype):
    model = seeded(name, getattr(torch, dtype))
    probe = probe_prompt(model)
    prompts = [probe, dataclasses.replace(probe, id="longer", text=f"{probe.text} {probe.text}")]
    first, *_, last = model.masked_layers
    options = {"heads": [(first, 1), (last, 2)], "keep_states": True, "progress": False}
    exact, prefix = (wb.sweep(model, prompts, engine=engine, **options) for engine in ("exact", "prefix"))
    for run in (exact, prefix):
        for layer, head in options["heads"]:
            for variable in ("state", "deflection", "kl", "norm_ratio"):
                assert np.isfinite(run[variable].sel(layer=layer, head=head)).all(), variable
        assert run.base_state.dtype == run.state.dtype == np.float32
    assert exact.deflection.max() > 0.1, "the masks hardly act: equal numbers would prove nothing"
    for variable in ("state", "base_state"):
        gap = np.nanmax(np.abs(exact[variable].values - prefix[variable].values))
        assert gap <= tolerance(model) * np.nanmax(np.abs(exact[variable].values)), variable
