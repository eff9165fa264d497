"""The paper figures: what is drawn, with which words, in files that are the same every time."""

import re

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import QuadMesh

import workbench as wb
from tests.unit.synthetic_run import synthetic_run
from workbench.criteria import score
from workbench.errors import FigureError
from workbench.views import charts
from workbench.views.charts import picks
from workbench.views.figures import pages
from workbench.views.figures.save import save_figures

PLANTED, DECOY = (2, 1), (0, 3)


@pytest.fixture(scope="module")
def run():
    made = synthetic_run(pairs=12, planted=(PLANTED,), decoy=DECOY)
    made.attrs |= {
        "model_revision": "r7",
        "weight_hash": "w123",
        "prompt_hash": "p456",
        "mask_form": "limit",
        "mask_factor": 0.0,
    }
    return made


@pytest.fixture(scope="module")
def scores(run):
    return score(run, criteria=("deflection", "probe"), bootstrap=0, permutations=0)


def texts(figure):
    return [t.get_text() for ax in figure.axes for t in [*ax.texts, ax.title, ax.xaxis.label, ax.yaxis.label]]


@pytest.mark.slow
def test_files_are_the_same_every_time_sized_for_a_column_and_carry_their_fonts(run, scores, tmp_path):
    formats = ("pdf", "svg")
    first, second = (save_figures(run, tmp_path / name / "figures", formats, scores=scores) for name in ("a", "b"))
    assert [f.name for f in first] == [f.name for f in second]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes(), f"{one.name} differs from one writing to the next"
    stems = {f.stem for f in first if f.suffix == ".pdf"}
    assert stems >= {
        *(f"maps_deflection_{p}" for p in ("query", "value")),
        *("selectivity_deflection_query", "query_against_value", "criteria_query", "agreement"),
    }
    for file in first:
        if file.suffix == ".pdf":
            page = file.read_bytes()
            width = float(re.search(rb"/MediaBox \[ 0 0 ([\d.]+)", page).group(1)) / 72
            assert width == pytest.approx(6.9 if file.stem.startswith("criteria") else 3.3, abs=0.01)
            assert b"/FontFile2" in page, f"{file.name} does not carry its fonts"
            assert b"/Type3" not in page
            assert b"CreationDate" not in page
        if file.suffix == ".svg":
            assert "<dc:date>" not in file.read_text()


@pytest.mark.slow
def test_captions_say_what_over_how_many_under_which_mask_of_which_model_and_how_to_rebuild(run, scores, tmp_path):
    sidecar = save_figures(run, tmp_path / "figures", ("svg",), scores=scores)[-1].read_text()
    for said in (
        "12 unsafe and 12 safe prompts put to synthetic",
        "attention made even over the positions the head may see",
        "head output set to 0",
        "mean in degrees",
        "revision r7, weights w123",
        "set p456",
        "L2H1",
        "workbench figures RUN.zarr --out figures",
    ):
        assert said in sidecar, said


@pytest.mark.slow
def test_captions_count_the_prompts_that_were_scored(tmp_path):
    split = synthetic_run(pairs=16, splits=("selection", "test"))
    sidecar = save_figures(
        split, tmp_path, ("svg",), scores=score(split, ("deflection",), bootstrap=0, permutations=0)
    )[-1]
    assert "8 unsafe and 8 safe prompts of the split selection" in sidecar.read_text()


def test_the_selectivity_plot_names_the_planted_head_and_the_decoy_and_draws_the_rule_s_bound(scores):
    kept = picks(scores, criterion="deflection", projection="query", k=1)
    assert kept.selective == (PLANTED,)
    assert kept.sensitive == DECOY
    figure = pages.selectivity(scores, criterion="deflection", projection="query", picks=kept)
    assert {"L2H1", "L0H3"} <= set(texts(figure))
    safe = charts.grid(scores, criterion="deflection", projection="query", column="safe")
    bound = [line for line in figure.axes[0].lines if line.get_linestyle() == "--"]
    assert bound[0].get_xdata()[0] == pytest.approx(np.percentile(safe, 80))
    # Of a run that scored some heads only, the bound among all of them is not in the table, and no line is drawn.
    some = scores.assign(safe_rank=50.0)
    assert np.isnan(picks(some, criterion="deflection", projection="query", k=1).bound)
    assert "mean over safe prompts (degrees)" in texts(figure)


def test_a_head_that_was_not_computed_is_hatched_and_has_no_colour(run):
    holed = run.copy(deep=True)
    holed["deflection"].loc[{"layer": 1, "head": 2}] = np.nan
    scores = score(holed, ("deflection",), bootstrap=0, permutations=0)
    kept = picks(scores, criterion="deflection", projection="query")
    figure = pages.safe_and_unsafe(scores, criterion="deflection", projection="query", picks=kept)
    for ax in figure.axes[:2]:
        mesh = next(c for c in ax.collections if isinstance(c, QuadMesh))
        assert np.ma.getmaskarray(mesh.get_array()).sum() == 1
        assert np.ma.getmaskarray(mesh.get_array())[1, 2]
        assert ax.patch.get_hatch()


def test_both_maps_share_one_scale_and_the_bar_has_the_unit(scores):
    kept = picks(scores, criterion="deflection", projection="query")
    figure = pages.safe_and_unsafe(scores, criterion="deflection", projection="query", picks=kept)
    safe, unsafe = (next(c for c in ax.collections if isinstance(c, QuadMesh)) for ax in figure.axes[:2])
    assert (safe.norm.vmin, safe.norm.vmax) == (unsafe.norm.vmin, unsafe.norm.vmax)
    assert "degrees" in figure.axes[2].yaxis.label.get_text()
    assert [ax.get_xlabel() for ax in figure.axes[:2]] == ["head", "head"]


@pytest.mark.parametrize("column", ["difference", "effect_size"])
def test_signed_columns_are_centred_on_no_difference(column):
    scale = charts.scale(np.array([[-1.0, 4.0]]), column=column)
    assert (scale.low, scale.high, scale.signed) == (-4.0, 4.0, True)


def test_a_wide_range_gets_a_log_scale_and_a_narrow_one_does_not():
    assert charts.scale(np.array([[1.0, 1.2, 30.0]])).log
    assert not charts.scale(np.array([[1.0, 2.0, 3.0]])).log
    assert not charts.scale(np.array([[0.0, 1.0, 30.0]])).log
    assert charts.log_ticks(0.9, 21) == pytest.approx([1, 2, 5, 10, 20])


def test_the_user_s_own_matplotlib_settings_come_back(run, scores, tmp_path):
    before = dict(matplotlib.rcParams)
    save_figures(run, tmp_path, ("png",), scores=scores[scores["criterion"] == "probe"])
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"formats": ("pdf", "gif")}, r"pdf, svg, png; got 'gif'"),
        ({"formats": ()}, r"pdf, svg, png; got none"),
        ({"out": "file/figures"}, r"cannot \(Not a directory\)"),
        ({"drop": ["deflection", "kl", "head_output"]}, r"none of the variables.*it has .*base_state"),
        ({"scores": "short"}, r"lacks unsafe"),
        ({"scores": "empty"}, r"no rows"),
    ],
)
def test_a_mistake_is_said_in_a_sentence(run, scores, tmp_path, arguments, said):
    (tmp_path / "file").touch()
    table = {"short": scores.drop(columns="unsafe"), "empty": scores.iloc[:0], None: scores}[arguments.get("scores")]
    with pytest.raises(FigureError, match=said):
        save_figures(
            run.drop_vars(arguments.get("drop", [])),
            tmp_path / arguments.get("out", "figures"),
            arguments.get("formats", ("png",)),
            scores=None if "drop" in arguments else table,
        )


@pytest.mark.slow
def test_more_criteria_than_fit_abreast_go_on_further_pages(run, tmp_path):
    names = ("deflection", "ships", "js", "svd_left")
    written = save_figures(run, tmp_path, ("svg",), scores=score(run, names, bootstrap=0, permutations=0))
    assert {"criteria_query", "criteria_query_2"} <= {f.stem for f in written}


@pytest.mark.slow
def test_a_run_without_masks_of_a_second_projection_draws_what_there_is(tmp_path):
    one = synthetic_run(pairs=8, projections=("query",))
    written = save_figures(one, tmp_path, ("svg",), scores=score(one, ("deflection",), bootstrap=0, permutations=0))
    assert {f.stem for f in written} == {
        "maps_deflection_query",
        "selectivity_deflection_query",
        "criteria_query",
        "captions",
    }


@pytest.mark.slow
def test_text_of_a_run_is_data_in_captions_figures_and_file_names(run, tmp_path):
    hostile = "<img src=x onerror=alert(1)> [a](http://b) `c` *d* $e$ \x1b[31m"
    made = run.copy()
    made.attrs |= dict.fromkeys(
        ("model", "model_revision", "weight_hash", "prompt_hash", "dtype", "engine", "started", "mask_positions"),
        hostile,
    )
    made.attrs["prompt_source"] = '{"name_or_path": "`<img>`", "` <b>": 1}'
    made = made.assign_coords(source=("prompt", [hostile] * made.sizes["prompt"]))
    table = score(made, ("deflection",), bootstrap=0, permutations=0)
    value = table[table["projection"] == "value"]
    table = pd.concat([table, *(value.assign(projection=name) for name in ("/../../x", "/x", "<b> $y$"))])
    folder = tmp_path / "in" / "figures"
    written = save_figures(made, folder, ("svg",), scores=table)
    assert {file.parent for file in written} == {folder}
    assert sorted(tmp_path.rglob("*.*")) == sorted(written), "a file was written elsewhere"
    names = [file.stem for file in written if file.suffix != ".csv"]
    assert len(set(names)) == len(names) == 18
    assert {"maps_deflection_-x", "maps_deflection_-x_2", "maps_deflection_-b-y"} <= set(names)
    said = written[-1].read_text()
    assert "&lt;img src=x onerror=alert(1)&gt;" in said
    assert "\\[a\\](http:\\//b) \\`c\\` \\*d\\* \\$e\\$ \\\\x1b" in said
    assert not {"<", "\x1b"} & set(said)
    assert said.count("`") % 2 == 0
    assert "\\x60\\x3cimg\\x3e\\x60" in said


@pytest.mark.slow
def test_the_numbers_of_each_figure_stand_beside_it(run, scores, tmp_path):
    written = save_figures(run, tmp_path, ("svg",), scores=scores)
    stems = {suffix: {file.stem for file in written if file.suffix == suffix} for suffix in (".svg", ".csv")}
    assert stems[".svg"] == stems[".csv"]
    table = pd.read_csv(tmp_path / "maps_deflection_query.csv").set_index(["layer", "head"])
    safe = charts.grid(scores, criterion="deflection", projection="query", column="safe")
    assert table.loc[PLANTED, "safe"] == pytest.approx(safe[PLANTED])
    assert len(table) == safe.size
    assert set(pd.read_csv(tmp_path / "criteria_query.csv")["projection"]) == {"query", "none"}


def test_figures_are_chosen_by_name_and_drawn_at_a_width(run, scores, tmp_path):
    files = save_figures(run, tmp_path, ("pdf",), scores=scores, only="maps_*", width="page")
    pages_drawn = [file for file in files if file.suffix == ".pdf"]
    assert {file.stem for file in pages_drawn} == {"maps_deflection_query", "maps_deflection_value"}
    for file in pages_drawn:
        width = float(re.search(rb"/MediaBox \[ 0 0 ([\d.]+)", file.read_bytes()).group(1)) / 72
        assert width == pytest.approx(6.9, abs=0.01)
    with pytest.raises(FigureError, match=r"called 'map'; there are maps_deflection_query, selectivity"):
        save_figures(run, tmp_path, ("pdf",), scores=scores, only="map")
    for width in ("wide", 0, True, float("nan")):
        with pytest.raises(FigureError, match="'column', 'page', or a number of inches"):
            save_figures(run, tmp_path, ("pdf",), scores=scores, width=width)


def test_dollars_in_names_are_drawn_as_dollars(scores):
    renamed = scores[scores["criterion"] == "deflection"].assign(criterion="cost $5 to $10^{")
    with wb.plot.style():
        figure = pages.side_by_side(renamed, projection="query")
        figure.draw_without_rendering()  # mathematics that does not parse raises here
    assert "Cost $5 to $10^{\nquery masked" in texts(figure)
