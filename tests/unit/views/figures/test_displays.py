"""Panels on Axes of one's own: what is drawn, where, and that the user's settings stand."""

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

import workbench as wb
from tests.unit.synthetic_run import synthetic_run
from workbench.errors import CriterionError, FigureError
from workbench.views import charts

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
