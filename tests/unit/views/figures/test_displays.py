"""Panels on Axes of one's own: what is drawn, where, and that the user's settings stand."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection, QuadMesh
from matplotlib.figure import Figure

import workbench as wb
from tests.unit.synthetic_run import synthetic_run
from workbench.errors import CriterionError, FigureError
from workbench.views import charts, distributions, rankings
from workbench.views.figures.panels import DOTS, heat_map
from workbench.views.figures.style import literal

PLANTED, DECOY = (2, 1), (0, 3)
WHERE = {"criterion": "deflection", "projection": "query"}


@pytest.fixture(scope="module")
def run():
    return synthetic_run(pairs=12, planted=(PLANTED,), decoy=DECOY)


@pytest.fixture(scope="module")
def scores(run):
    return wb.score(run, criteria=("deflection", "probe"), bootstrap=0, permutations=0)


def blank():
    return Figure(layout="constrained").subplots()


def mesh_of(ax):
    return next(part for part in ax.collections if isinstance(part, QuadMesh))


def test_each_draws_on_the_axes_it_is_given_and_returns_it(run, scores):
    for draw in (
        lambda ax: wb.plot.maps(scores, **WHERE, ax=ax),
        lambda ax: wb.plot.selectivity(scores, **WHERE, ax=ax),
        lambda ax: wb.plot.roc(run, **WHERE, heads=[PLANTED], ax=ax),
        lambda ax: wb.plot.agreement(scores, ax=ax),
        lambda ax: wb.plot.criteria(scores, ax=ax),
    ):
        ax = blank()
        assert draw(ax) is ax
        assert isinstance(ax, Axes)
        assert ax.has_data()


def test_without_axes_a_new_figure_is_made():
    import matplotlib.pyplot as plt

    run = synthetic_run(pairs=8, projections=("query",))
    ax = wb.plot.maps(wb.score(run, "deflection", bootstrap=0, permutations=0), **WHERE)
    assert ax.figure.number in plt.get_fignums()
    plt.close(ax.figure)


@pytest.mark.slow
@pytest.mark.parametrize("value", ["unsafe", "safe", "difference", "auroc"])
def test_a_map_holds_the_column_asked_for(scores, value):
    ax = wb.plot.maps(scores, **WHERE, value=value, ax=blank())
    drawn = mesh_of(ax)
    assert np.allclose(drawn.get_array(), charts.grid(scores, **WHERE, column=value))
    if value in ("difference", "auroc"):
        middle = {"difference": 0.0, "auroc": 0.5}[value]
        assert drawn.norm.vmax - middle == pytest.approx(middle - drawn.norm.vmin), "no difference is in the middle"
        reach = np.abs(charts.grid(scores, **WHERE, column=value) - middle).max()
        assert drawn.norm.vmax == pytest.approx(middle + reach), "the scale ends where the data do"


def test_the_user_s_settings_stand_and_names_are_no_mathematics(scores):
    renamed = scores[scores["criterion"] == "deflection"].assign(criterion="cost $5 to $10^{")
    with matplotlib.rc_context({"axes.titlesize": 21, "xtick.labelsize": 13}):
        ax = wb.plot.maps(renamed, criterion="cost $5 to $10^{", projection="query", ax=blank())
        assert ax.title.get_fontsize() == 21
        assert ax.get_xticklabels()[0].get_fontsize() == 13
        ax.figure.draw_without_rendering()  # mathematics that does not parse raises here
        named = wb.plot.selectivity(scores, **WHERE, ax=blank())
        assert {text.get_fontsize() for text in named.texts if text.get_text().startswith("L")} == {13}
    assert ax.get_title() == "Cost $5 to $10^{, query masked"


def test_the_area_under_a_roc_curve_is_the_table_s_auroc(run, scores):
    ax = wb.plot.roc(run, **WHERE, heads=[PLANTED, DECOY], ax=blank())
    table = charts.grid(scores, **WHERE, column="auroc")
    for line, head in zip(ax.lines, (PLANTED, DECOY), strict=False):
        assert np.trapezoid(line.get_ydata(), line.get_xdata()) == pytest.approx(table[head])
    assert "L2H1, AUROC" in ax.get_legend().get_texts()[0].get_text()


def test_frames_of_small_cells_stand_around_them():
    cells = np.random.default_rng(0).random((80, 64))
    ax = Figure(figsize=(1.65, 2.0), layout="constrained").subplots()  # half a column of print
    charts_map = charts.HeadMap(cells, charts.scale(cells), "T", "", "unsafe")
    assert not charts_map.gaps
    from workbench.views.figures.panels import heat_map, outline

    heat_map(ax, cells, scale=charts_map.scale)
    outline(ax, [(40, 31)], small=True)
    ax.figure.draw_without_rendering()
    side = ax.transData.transform((1, 0))[0] - ax.transData.transform((0, 0))[0]
    points = 72 / ax.figure.dpi
    for ring in ax.collections[1:]:
        inside = np.sqrt(ring.get_sizes()[0]) - 1.6  # the width of the wider line
        assert inside > 1.2 * side * points, "the frame covers its cell"


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda r, s: wb.plot.maps(s, **WHERE, value="p_value"), FigureError, "unsafe, safe, difference.*'p_value'"),
        (lambda r, s: wb.plot.maps(s, criterion="x", projection="query"), FigureError, "no criterion 'x'"),
        (lambda r, s: wb.plot.selectivity(s, criterion="deflection", projection="key"), FigureError, "'key'"),
        (lambda r, s: wb.plot.roc(r, criterion="probe", projection="none", heads=[(0, 0)]), CriterionError, "single"),
        (
            lambda r, s: wb.plot.roc(r.isel(prompt=r["label"].values == "safe"), **WHERE, heads=[PLANTED], ax=blank()),
            FigureError,
            "L2H1 has values of deflection on 0 unsafe and 12 safe prompts",
        ),
    ],
)
def test_mistakes_are_said_with_the_choices(run, scores, call, error, said):
    with pytest.raises(error, match=said):
        call(run, scores)


def found(scores):
    """A table as `wb.find_heads` returns it: of its heads some are certain, some possible, some excluded."""
    top = wb.top_heads(scores, **WHERE, rule="selectivity", k=6)
    status = ["certain", "certain", "possible", "possible", "excluded", "excluded"]
    return top.assign(ci_low=top["value"] - 0.2, ci_high=top["value"] + 0.3, status=status)


def test_a_list_of_heads_shows_what_is_certain_what_is_possible_and_how_stable(redrawn):
    table = found(redrawn).assign(stability=[0.97, 0.5, 0.25, 0.1, 0.0, np.nan])
    ax = wb.plot.heads(table, k=5, ax=blank())
    drawn = {dots.get_label(): dots for dots in ax.collections if isinstance(dots, PathCollection)}
    assert list(drawn) == ["certainly among the first", "possibly among the first", "not among the first"]
    assert [len(dots.get_offsets()) for dots in drawn.values()] == [2, 2, 1]
    filled, hollow = (drawn[words].get_facecolor()[0] for words in list(drawn)[:2])
    assert filled.tolist() != hollow.tolist()
    bars = next(lines for lines in ax.collections if isinstance(lines, LineCollection)).get_segments()
    assert bars[0][:, 0] == pytest.approx([table["value"][0] - 0.2, table["value"][0] + 0.3])
    names = [tick.get_text() for tick in ax.get_yticklabels()]
    assert names[0] == wb.plot.heads(table, ax=blank()).get_yticklabels()[0].get_text() == "L2H1 · first in 97 %"
    assert "first 5 of 6" in ax.get_xlabel()
    with pytest.raises(FigureError, match="certain, possible, excluded; got 'sure'"):
        wb.plot.heads(table.assign(status="sure"))
    with pytest.raises(FigureError, match="this table has 2"):
        wb.plot.heads(pd.concat([table, table.assign(rule="auroc")]))


@pytest.fixture(scope="module")
def redrawn(run):
    return wb.score(run, criteria=("deflection",), permutations=0)


def test_intervals_are_drawn_where_prompts_were_redrawn(run, redrawn, scores):
    ax = wb.plot.selectivity(redrawn, **WHERE, ax=blank())
    ends = [charts.grid(redrawn, **WHERE, column=column)[PLANTED] for column in ("safe", "ci_low", "ci_high")]
    bars = [lines.get_segments()[0] for lines in ax.collections if isinstance(lines, LineCollection)]
    assert any(bar[:, 1] == pytest.approx([ends[0] + ends[1], ends[0] + ends[2]]) for bar in bars)
    (best,) = (strip for strip in rankings.strips(redrawn) if "query" in strip.words)
    assert best.heads[best.named[0]] == PLANTED
    low, high = best.intervals[0]
    assert low < best.auroc[best.named[0]] <= high <= 1
    assert np.isnan(rankings.strips(scores)[0].intervals).all(), "nothing was redrawn, so there is no interval"
    assert np.isnan(rankings.strips(redrawn.assign(auroc=0.1))[0].intervals).all(), "the table was changed"


def test_the_band_of_a_roc_curve_covers_the_curve_and_narrows_with_more_prompts(run):
    few = distributions.roc(run, "deflection", "query", head=DECOY)
    many = distributions.roc(synthetic_run(pairs=200, decoy=DECOY), "deflection", "query", head=DECOY)
    for curve in (few, many):
        steps = curve.detected[
            np.searchsorted(curve.false_alarms, distributions.FALSE_ALARMS + 1e-12, side="right") - 1
        ]
        assert np.mean((curve.band[0] <= steps) & (steps <= curve.band[1])) > 0.95
        assert curve.interval[0] < curve.area < curve.interval[1]
    assert many.interval[1] - many.interval[0] < 0.5 * (few.interval[1] - few.interval[0])


def test_heads_that_are_asked_for_are_named_in_place_of_the_picks(scores):
    ax = wb.plot.selectivity(scores, **WHERE, heads=["L1H2"], ax=blank())
    assert [text.get_text() for text in ax.texts if text.get_text().startswith("L")] == ["L1H2"]
    ax = wb.plot.criteria(scores, heads=[(1, 2)], ax=blank())
    assert {text.get_text() for text in ax.texts} == {"L1H2"}
    for draw in (wb.plot.selectivity, wb.plot.maps, wb.plot.screen.maps, wb.plot.screen.selectivity):
        with pytest.raises(FigureError, match=r"layers 0..2 of 4 heads, and no L3H0"):
            draw(scores, **WHERE, heads=[(3, 0)])


def test_a_style_sets_widths_and_letters_and_leaves_no_trace(scores):
    before = dict(matplotlib.rcParams)
    with wb.plot.style("acl", width="page"):
        assert matplotlib.rcParams["figure.figsize"][0] == 6.3
        ax = wb.plot.maps(scores, **WHERE, ax=blank())
        assert ax.title.get_fontsize() == 8
        assert ax.title.get_fontname() == "STIXGeneral"
    assert dict(matplotlib.rcParams) == before
    with pytest.raises(FigureError, match="acl, cvpr, iclr, icml, ieee, neurips; got 'nature'"):
        wb.plot.style("nature")


def test_latex_is_asked_for_by_name_and_its_commands_are_written_out(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda program: None)
    with pytest.raises(FigureError, match="no latex and no dvipng"):
        wb.plot.style(latex=True)
    monkeypatch.setattr("shutil.which", lambda program: f"/bin/{program}")
    with wb.plot.style("neurips", latex=True):
        assert matplotlib.rcParams["text.usetex"]
        words = literal("\\input{/etc/passwd} 5 % $x_1$ − ~^#& ✓")
    assert words == (
        r"\textbackslash{}input\{/etc/passwd\} 5 \% \$x\_1\$ $-$ \textasciitilde{}\textasciicircum{}\#\& U+2713"
    )
    assert literal("5 % of $x$") == "5 % of $x$"


def test_a_large_map_is_one_picture_with_its_values_where_they_belong():
    cells = np.arange(80 * 64, dtype=float).reshape(80, 64)
    ax = heat_map_of(cells)
    (picture,) = ax.images
    dots = picture.get_array()
    assert not [part for part in ax.collections if isinstance(part, QuadMesh)], "thousands of squares"
    assert dots.shape[0] // 80 == dots.shape[1] // 64 == DOTS
    assert np.array_equal(dots[::DOTS, ::DOTS], cells)
    assert picture.origin == "lower"
    assert picture.get_extent() == [-0.5, 63.5, -0.5, 79.5]


def heat_map_of(cells):
    ax = blank()
    heat_map(ax, cells, scale=charts.scale(cells))
    return ax


def test_the_screen_draws_the_numbers_of_the_page(run, redrawn, scores):
    page = wb.plot.roc(run, **WHERE, heads=[PLANTED], ax=blank())
    screen = wb.plot.screen.roc(run, **WHERE, heads=[PLANTED])
    line = next(trace for trace in screen.data if trace.name)
    assert list(line.y) == page.lines[0].get_ydata().tolist()
    assert line.name == page.get_legend().get_texts()[0].get_text()
    cells = wb.plot.screen.agreement(scores).data[0]
    assert np.allclose(
        np.array(cells.customdata, dtype=float), mesh_of(wb.plot.agreement(scores, ax=blank())).get_array()
    )
    lines = rankings.strips(redrawn)
    points = wb.plot.screen.criteria(redrawn).data
    assert list(points[0].x) == lines[0].auroc.tolist()
    assert points[1].error_x.array[0] == pytest.approx(lines[0].intervals[0][1] - lines[0].auroc[lines[0].named[0]])
    marks = wb.plot.screen.heads(found(redrawn)).data
    assert [trace.marker.symbol for trace in marks] == ["circle", "circle-open", "x-thin-open"]


def test_ground_and_ink_on_the_screen_are_the_reader_s(run, scores):
    figures = [wb.plot.screen.maps(scores, **WHERE), wb.plot.screen.selectivity(scores, **WHERE)]
    for figure in [*figures, wb.plot.screen.distributions(run, "deflection", "query", head=PLANTED)]:
        assert figure.layout.paper_bgcolor is None
        assert figure.layout.font.color is None
        ink = {trace.line.color for trace in figure.data if getattr(trace, "mode", "") == "lines"}
        assert "#333333" not in ink, "dark lines are lost on a dark ground"
