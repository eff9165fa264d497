"""What is drawn of a trace: means over the pairs that have a group, maps, files, and the explorer's arrays."""

import json

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import workbench as wb
from tests.unit import planted_parts
from tests.unit.synthetic_run import synthetic_run
from workbench.errors import FigureError, RunError
from workbench.tracing.records import DIRECTIONS
from workbench.views import traces
from workbench.views.explorer.page import save_report
from workbench.views.figures import flows


@pytest.fixture(scope="module")
def prompts():
    return wb.load_prompts("planted", split="test", n=8)


@pytest.fixture(scope="module")
def trace(prompts):
    return wb.trace(planted_parts.model(), prompts, progress=False)


def test_means_are_over_the_pairs_that_have_the_group(trace):
    table = traces.means(trace, "patch_left", resamples=200)
    array = trace["patch_left"]
    assert len(table) == np.prod(array.shape[1:])
    row = table[
        (table["direction"] == "noise")
        & (table["component"] == "residual")
        & (table["layer"] == 3)
        & (table["token_group"] == "hazard")
    ].iloc[0]
    cells = array.sel(direction="noise", component="residual", layer=3, token_group="hazard").values
    known = cells[np.isfinite(cells)]
    assert 0 < row["n"] == len(known) < len(cells)
    np.testing.assert_allclose(row["value"], known.mean())
    assert known.min() - 1e-9 <= row["ci_low"] <= row["value"] + 1e-9 or np.isnan(row["ci_low"])
    with pytest.raises(FigureError, match="has no 'lens_token'"):
        traces.means(trace, "lens_token")


def test_the_interval_is_of_redraws_of_pairs():
    import xarray as xr

    values = np.arange(40.0)
    of = xr.Dataset({"patch_left": (("pair", "layer"), np.stack([values, np.full(40, 2.0)], 1))})
    table = traces.means(of, "patch_left", resamples=2000)
    spread = 1.96 * values.std() / np.sqrt(40)
    np.testing.assert_allclose(
        table.loc[0, ["ci_low", "ci_high"]].to_numpy(float), [19.5 - spread, 19.5 + spread], atol=0.5
    )
    assert table.loc[1, ["value", "ci_low", "ci_high"]].tolist() == [2.0, 2.0, 2.0]


def test_a_map_has_the_groups_there_are_and_the_scale_of_shares(trace):
    chart = traces.flow_map(trace, "residual")
    assert chart.columns == ("picture", "hazard", "words", "template", "last", "all")
    assert chart.cells.shape == (4, 6)
    assert (chart.scale.low, round(chart.scale.high, 3)) == (0.0, 1.0)
    assert not chart.scale.signed
    assert traces.flow_map(trace, "residual", value="refusal_change").scale.signed
    of_heads = traces.flow_map(trace, "heads", group="last", direction="denoise")
    assert np.argmax(of_heads.cells) == 3 * 4 + 1
    with pytest.raises(FigureError, match="direction of a trace's map is one of noise, denoise"):
        traces.flow_map(trace, "residual", direction="back")
    words = trace.isel(pair=[0, 3]).sel(token_group=["words", "last", "all"])
    assert traces.flow_map(words, "mlp").columns == ("words", "last", "all")


def test_the_first_cells_are_the_planted_heads(trace):
    first = traces.first_cells(trace, 4)
    assert set(zip(first["layer"], first["token_group"], strict=True)) == {(3, "last")}
    assert set(first["component"]) == {"attention", "heads"}
    assert set(first.loc[first["component"] == "heads", "head"]) == {1}


def test_a_panel_is_drawn_on_the_axes_given(trace):
    ax = Figure().subplots()
    assert wb.plot.trace(trace, component="attention", ax=ax) is ax
    assert ax.get_title() == "attention"
    assert [label.get_text() for label in ax.get_xticklabels()][-2:] == ["last", "all"]
    assert ax.figure.axes[1].get_ylabel() == traces.WORDS["recovered"]


@pytest.mark.slow
def test_figures_are_vectors_with_their_numbers_and_the_same_every_time(trace, tmp_path):
    once, again = (flows.save_trace_figures(trace, tmp_path / name, "svg") for name in ("one", "two"))
    names = [path.name for path in once]
    assert names == [f"trace_{part}.{end}" for part in ("maps", "cuts", "lens") for end in ("svg", "csv")]
    assert [p.read_bytes() for p in once] == [p.read_bytes() for p in again]
    numbers = pd.read_csv(tmp_path / "one" / "trace_maps.csv")
    assert set(numbers["variable"]) == {"patch_recovered", "head_recovered"}
    svg = (tmp_path / "one" / "trace_maps.svg").read_text()
    for words in ("residual stream", "single heads (z)", "layer"):
        assert words in svg
    with pytest.raises(FigureError, match="Figures are written as pdf, svg, png"):
        flows.save_trace_figures(trace, tmp_path, "jpeg")
    part = trace.drop_vars([n for n in map(str, trace.data_vars) if n.startswith(("patch_", "head_", "cut_"))])
    assert [p.name for p in flows.save_trace_figures(part, tmp_path / "part", "svg")] == [
        "trace_lens.svg",
        "trace_lens.csv",
    ]


@pytest.mark.slow
def test_the_explorer_gets_the_same_numbers(trace, prompts, tmp_path):
    run = wb.sweep(planted_parts.model(), prompts, progress=False)
    board = wb.explore(run, trace=trace)
    told, arrays = board._manifest["trace"], board._manifest["packed"]["arrays"]
    assert [name for name, _ in told["components"]] == ["residual", "attention", "mlp"]

    def array(name):
        record = arrays[name]
        count = int(np.prod(record["shape"]))
        return np.frombuffer(board._data, "<f4", count, record["at"]).reshape(record["shape"])

    for direction in DIRECTIONS:
        shown = array(f"trace/recovered/residual/{direction}")[..., 0]
        chart = traces.flow_map(trace, "residual", direction=direction)
        np.testing.assert_allclose(shown, chart.cells, atol=1e-6)
        heads = array(f"trace/recovered/heads/{direction}")
        assert heads.shape == (4, 4, 6)
        assert np.nanargmax(heads[..., told["groups"].index("last")]) == 3 * 4 + 1
    page = save_report(run, tmp_path / "report.html", trace=trace).read_text()
    manifest = page.split('id="manifest">')[1].split("</script>")[0]
    assert json.loads(manifest)["trace"] == told
    with pytest.raises(RunError, match="and the runs shown are of others"):
        wb.explore(synthetic_run(pairs=6, keep_states=False), trace=trace)
    with pytest.raises(RunError, match="A trace is what"):
        wb.explore(run, trace=run)
