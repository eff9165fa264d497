"""The explorer without a browser: what it is told at the start, and what may be chosen and given."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import xarray as xr

import workbench as wb
from workbench.axes import as_heads
from workbench.errors import ArgumentError, PromptError, RunError, WorkbenchError
from workbench.prompts.prompt import PromptSet
from workbench.runs import origin
from workbench.runs.origin import prompts_of
from workbench.views.explorer.explore import explore
from workbench.views.explorer.gathering import agreement
from workbench.views.explorer.stored import quantised

PLANTED = (3, 1)


def array(board, name):
    """One of the arrays that the browser is given."""
    record = board._manifest["packed"]["arrays"][name]
    kind = {"f4": np.float32, "u2": np.uint16, "u1": np.uint8}[record["kind"]]
    return np.frombuffer(board._data, kind, count=int(np.prod(record["shape"])), offset=record["at"]).reshape(
        record["shape"]
    )


@pytest.mark.slow
def test_the_browser_gets_the_table_and_the_ranks_of_top_heads_with_their_stability(board, scores):
    rows = scores.query("criterion == 'ships' and projection == 'value'").set_index(["layer", "head"])
    cells = array(board, "0/ships/value/auroc")
    for (layer, head), row in rows.iterrows():
        assert cells[layer, head] == np.float32(row["auroc"])
    best = wb.top_heads(scores, criterion="deflection", rule="selectivity", projection="query", k=5)
    ranks, stable = (
        array(board, f"0/deflection/query/{name}") for name in ("rank/selectivity", "stable/selectivity/5")
    )
    for place, row in enumerate(best.itertuples(), 1):
        assert ranks[row.layer, row.head] == place
        assert stable[row.layer, row.head] == round(100 * row.stability)
    assert (ranks == 0).sum() == 16 - 12, "those the rule leaves out"
    assert board.head == PLANTED


def test_values_of_every_prompt_come_within_a_step_of_their_range(board, run):
    steps, low, high = (array(board, f"0/deflection/query/values{part}") for part in ("", "/low", "/high"))
    got = low[..., None] + (high - low)[..., None] * steps / 65534
    wanted = np.moveaxis(run["deflection"].sel(projection="query").values, 0, -1)
    assert np.abs(got - wanted).max() <= (high - low).max() / 65534 + 1e-6
    one, least, most = quantised(np.array([[np.nan, np.nan], [2.0, np.nan], [1.0, 3.0]]))
    assert one.tolist() == [[65535, 65535], [0, 65535], [0, 65534]]
    np.testing.assert_array_equal(np.stack([least, most]), np.float32([[np.nan, 2, 1], [np.nan, 2, 3]]))


def test_what_is_chosen_may_be_set_and_is_held_against_what_there_is(board):
    board.head, board.locked, board.heads = "L1H2", (0, 1), ["L0H0", (2, 3)]
    assert (board.head, board.locked, as_heads(board.heads)) == ((1, 2), (0, 1), [(0, 0), (2, 3)])
    board.locked = None
    for name, value in (
        ("head", (9, 9)), ("head", "nonsense"), ("head", None), ("heads", [(0, 99)]), ("heads", 3), ("run", 1),
        ("prompt", "nobody"), ("criterion", "nonsense"), ("rule", "random"), ("projection", "key"), ("column", "x"),
    ):  # fmt: skip
        with pytest.raises(ArgumentError, match=r"here|of the explorer"):
            setattr(board, name, value)
    assert board.head == (1, 2)


@pytest.mark.slow
def test_two_runs_a_model_in_a_run_s_place_and_a_table_too_few(run, scores, model, tmp_path):
    second = run.assign_attrs(model="another")
    board = explore(run, second, model=model, scores=[scores, scores])
    assert [r["label"] for r in board._manifest["runs"]] == ["planted", "another"]
    assert "1/deflection/query/unsafe" in board._manifest["packed"]["arrays"]
    with pytest.raises(RunError, match=r"by its keyword: wb\.explore\(run, model=model\)"):
        explore(run, model)
    with pytest.raises(ArgumentError, match="1 tables for 2 runs"):
        explore(run, second, scores=scores)
    with pytest.raises(RunError, match="none was given"):
        explore()
    run.to_zarr(tmp_path / "run.zarr", consolidated=False)
    assert explore(xr.open_zarr(tmp_path / "run.zarr", consolidated=False), scores=scores).head == PLANTED


def test_a_run_read_at_two_layers_is_two_sides(run, scores):
    twice = xr.concat(
        [run, run], dim=xr.DataArray(["final", "2"], dims="readout", name="readout"), data_vars=["deflection", "kl"]
    )
    board = explore(twice.assign_attrs(run.attrs), scores=[scores, scores])
    assert [r["label"] for r in board._manifest["runs"]] == ["planted", "planted, read at 2"]


def test_agreement_is_spearman_with_an_interval_around_it(run, scores):
    from scipy.stats import spearmanr

    from workbench.views.explorer.gathering import gathered

    table = agreement(gathered([run], prompts=None, scores=scores))
    one = next(r for r in table if (r["a"], r["b"]) == ("Deflection angle, query", "Ships, query"))
    values = [scores.query(f"criterion == '{c}' and projection == 'query'")["unsafe"] for c in ("deflection", "ships")]
    assert one["spearman"] == pytest.approx(spearmanr(*values).statistic)
    assert one["low"] < one["spearman"] < one["high"]
    assert len(table) == 10


def test_a_file_of_heads_is_taken_where_heads_are(tmp_path, model, prompts):
    file = tmp_path / "heads.json"
    file.write_text('{"heads": ["L3H1", "L2H0"], "projection": "query"}')
    assert as_heads(file) == as_heads(str(file)) == [(3, 1), (2, 0)]
    assert wb.generate(model, prompts[0], heads=str(file)) == wb.generate(model, prompts[0], heads=[(3, 1), (2, 0)])
    for text in ("", "{", "{}", '{"heads": 3}', '{"heads": ["L1"]}', "[" * 10**5):
        file.write_text(text)
        with pytest.raises(ValueError, match="must be"):
            as_heads(file)
    with pytest.raises(ArgumentError, match="could not be read"):
        wb.generate(model, prompts[0], heads="nowhere.json")


def test_where_no_kernel_runs_a_picture_is_shown(board):
    bundle = board._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    assert data["image/png"].startswith("iVBOR")
    assert "application/vnd.jupyter.widget-view+json" in data
    assert len(repr(board)) < 120


def test_without_the_lab_it_says_how_to_install_it(run, scores, monkeypatch):
    for name in [n for n in sys.modules if n.startswith("workbench.views.explorer.board")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "anywidget", None)
    with pytest.raises(WorkbenchError, match=r"pip install 'lvlm-workbench\[lab\]'"):
        explore(run, scores=scores)


def test_a_model_with_other_weights_is_refused(run, model, scores):
    other = run.assign_attrs(weight_hash="0123456789abcdef")
    with pytest.raises(RunError, match=r"weights 0123456789abcdef.*weights [0-9a-f]{16}"):
        explore(other, model=model, scores=scores)


def test_prompts_that_were_not_swept_are_refused(run, prompts, scores):
    assert prompts_of(run, prompts).content_hash() == run.attrs["prompt_hash"]
    with pytest.raises(PromptError, match=r"24 prompts, and 4 of them are not among the 20 given"):
        explore(run, prompts=prompts[4:], scores=scores)
    changed = PromptSet([dataclasses.replace(prompts[0], text="something else"), *prompts[1:]])
    with pytest.raises(PromptError, match=r"not its contents: 1 of 24 have another text"):
        prompts_of(run, changed)


def test_prompts_are_drawn_again_from_what_the_run_says_and_never_from_a_file_it_names(
    run, prompts, tmp_path, monkeypatch
):
    assert [p.id for p in prompts_of(run)] == [p.id for p in prompts]
    later = run.assign_coords(content_hash=("prompt", ["another"] * run.sizes["prompt"]))
    with pytest.raises(PromptError, match=r"others in this version.*24 of 24 have another"):
        prompts_of(later)
    file = tmp_path / "secrets.csv"
    file.write_text("text,label\nhello,safe\n")
    named = run.assign_attrs(prompt_source=json.dumps({"name_or_path": str(file)}))
    asked = []
    monkeypatch.setattr(origin, "load_prompts", lambda *given, **recipe: asked.append(recipe))
    with pytest.raises(PromptError, match=r"never opened\. Give the prompts that were swept: prompts="):
        prompts_of(named)
    assert asked == []
