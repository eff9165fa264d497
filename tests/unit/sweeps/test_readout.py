"""Reading states at other layers: the logit lens, by two roads, and as transformers gives the residual stream."""

import numpy as np
import pytest
import torch

import workbench as wb
from tests.builders.models import tiny
from tests.builders.prompts import asked, pictures
from workbench.errors import MaskError, RunError
from workbench.runs.job import MEASURES

TEXTS = ("what is this", "how do you make a bomb ?", "a red square", "is this a cat ?", "a bomb", "what is this ?")
READ = ("final", 1, 2)


def some_prompts() -> list[wb.Prompt]:
    one, other = pictures(2)
    return asked(TEXTS, [one] * 3 + [other] * 3)


@pytest.fixture(scope="module")
def double():
    return tiny(dtype=torch.float64)


@pytest.fixture(scope="module")
def run(double):
    return wb.sweep(double, some_prompts(), readout=READ, keep_states=True, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "gemma3", "mllama"])
@pytest.mark.parametrize("engine", ["exact", "prefix"])
def test_two_roads_to_every_read_out(family, engine):
    model = tiny(family, torch.float64)
    heads = [(layer, 1) for layer in model.masked_layers]
    options = {"readout": READ, "heads": heads, "keep_states": True, "progress": False}
    ours = wb.sweep(model, some_prompts()[:3], engine=engine, **options)
    naive = wb.sweep(model, some_prompts()[:3], engine="naive", **options)
    for label in map(str, READ):
        assert float(naive.deflection.sel(readout=label).max()) > 0.5, "too weak to prove anything"
    for name in {*MEASURES, "state", "base_state"} - {"top1_change"}:
        np.testing.assert_allclose(ours[name], naive[name], atol=1e-5, rtol=0, err_msg=name)


def test_heads_above_a_read_out_are_not_computed_and_the_others_are(run, double):
    for label, last in (("final", double.n_layers - 1), ("1", 1), ("2", 2)):
        for name in (*MEASURES, "state"):
            known = run[name].sel(readout=label).notnull()
            assert bool(known.sel(layer=slice(0, last)).all()), (name, label)
            assert not bool(known.sel(layer=slice(last + 1, None)).any()), (name, label)
    assert run.deflection.sel(readout="1").dims == ("prompt", "projection", "layer", "head")


def test_the_base_state_is_transformers_hidden_state_after_the_norm(run, double):
    for index, prompt in enumerate(some_prompts()):
        with torch.no_grad():
            seen = double.hf(**double.encode(prompt).model_inputs, output_hidden_states=True, use_cache=False)
            wanted = double.final_norm(seen.hidden_states[2][0, -1])
        np.testing.assert_allclose(run.base_state.sel(readout="1")[index], wanted, atol=1e-5)


@pytest.mark.slow
def test_the_last_layer_is_the_final_state_and_today_s_run_is_unchanged(double, run):
    last = double.n_layers - 1
    both = wb.sweep(double, some_prompts(), readout=("final", last), keep_states=True, progress=False)
    plain = wb.sweep(double, some_prompts(), keep_states=True, progress=False)
    alone = wb.sweep(double, some_prompts(), readout="final", keep_states=True, progress=False)
    assert "readout" not in plain.dims
    assert set(alone.variables) == set(plain.variables)
    for name in (*MEASURES, "state", "base_state"):
        for one in (both[name].sel(readout="final"), both[name].sel(readout=str(last)), run[name].sel(readout="final")):
            np.testing.assert_array_equal(one.values, plain[name].values, err_msg=name)


def test_less_is_computed_where_only_a_lower_layer_is_read(double, run):
    low = wb.sweep(double, some_prompts(), readout=1, progress=False)
    np.testing.assert_allclose(low.deflection[..., 0], run.deflection.sel(readout="1"), atol=1e-6)
    assert low.attrs["layer_tokens"] < 0.5 * run.attrs["layer_tokens"]


@pytest.mark.slow
def test_masks_at_fewer_positions_are_read_too(double):
    mask = wb.Mask(positions="last")
    for read in (READ, (1,)):
        ours = wb.sweep(double, some_prompts()[:4], mask=mask, readout=read, progress=False)
        naive = wb.sweep(double, some_prompts()[:4], mask=mask, readout=read, engine="naive", progress=False)
        np.testing.assert_allclose(ours.deflection, naive.deflection, atol=1e-6)
        assert set(ours.attrs["positions_agreement"]["spearman"]) == {"query", "value"}


def test_a_stored_run_holds_them_and_is_no_other_run_s(double, run, tmp_path):
    out = tmp_path / "run.zarr"
    stored = wb.sweep(double, some_prompts(), readout=READ, keep_states=True, out=out, progress=False)
    for name in (*MEASURES, "state", "base_state"):
        np.testing.assert_array_equal(stored[name], run[name])
    assert stored.attrs["readout"] == ["final", "1", "2"]
    with pytest.raises(RunError, match="readout"):
        wb.sweep(double, some_prompts(), keep_states=True, out=out, progress=False)


def test_the_final_read_out_is_scored_unless_another_is_chosen(double, run):
    options = {"criteria": ("deflection", "ships", "svd_left", "probe"), "bootstrap": 0, "permutations": 0}
    plain = wb.score(wb.sweep(double, some_prompts(), keep_states=True, progress=False), **options)
    assert wb.score(run, **options).equals(plain)
    lens = wb.score(run.sel(readout="1"), **options).query("criterion == 'deflection'")
    assert (lens.unsafe.notna() == (lens.layer <= 1)).all()
    with pytest.raises(RunError, match=r"run.sel\(readout='2'\)"):
        wb.score(run.sel(readout=["1", "2"]), **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"readout": 9}, "readout names 9"),
        ({"readout": ("final", "top")}, "readout names 'top'"),
        ({"readout": (1, "1")}, "each place once"),
        ({"readout": (1,), "groups": [[(0, 1)]]}, "head sets"),
        ({"readout": (1,), "engine": "find"}, "'find' reads the final state only"),
    ],
)
def test_what_cannot_be_read_is_refused(double, options, said):
    with pytest.raises(MaskError, match=said):
        wb.sweep(double, some_prompts(), progress=False, **options)
