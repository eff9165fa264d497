"""Drawings, screen figures and tables: what they hold, asserted on their parts and not on pixels."""

import re
from io import StringIO

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from tests.unit.synthetic_run import synthetic_run
from workbench.criteria import score, top_heads
from workbench.criteria.thresholds import kde_threshold
from workbench.errors import CriterionError, FigureError
from workbench.views import charts, distributions, tables
from workbench.views.figures import screen

PLANTED, DECOY = (2, 1), (0, 3)
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def run():
    return synthetic_run(pairs=12, planted=(PLANTED,), decoy=DECOY)


@pytest.fixture(scope="module")
def scores(run):
    return score(run, criteria=("deflection", "probe"), bootstrap=0, permutations=0)


def test_the_threshold_is_the_published_one_and_from_the_threshold_split_where_there_is_one(run):
    values = run["deflection"].sel(projection="query", layer=2, head=1).values
    unsafe = run["label"].values == "unsafe"
    found = distributions.threshold(run, "deflection", "query", head=PLANTED)
    assert found == pytest.approx(kde_threshold(values[unsafe], values[~unsafe]).value)
    split = synthetic_run(pairs=32, planted=(PLANTED,), splits=("selection", "threshold"))
    part = split.isel(prompt=split["split"].values == "threshold")
    assert distributions.threshold(split, "deflection", "query", head=PLANTED) == distributions.threshold(
        part, "deflection", "query", head=PLANTED
    )
    assert distributions.threshold(run, "refusal_change", "query", head=PLANTED) is None


def test_screen_maps_hold_the_table_s_values_with_their_unit(run, scores):
    figure = screen.maps(scores, criterion="deflection", projection="query", heads=[PLANTED])
    table = scores.query("criterion == 'deflection' and projection == 'query'").set_index(["layer", "head"])["unsafe"]
    drawn = figure.data[0]
    assert drawn.customdata[2][1] == pytest.approx(table[PLANTED])
    assert 10 ** drawn.z[0][3] == pytest.approx(table[DECOY]), "one head has most, so the scale is logarithmic"
    assert drawn.colorbar.title.text == "degrees"
    assert figure.layout.xaxis.title.text == "head"
    assert figure.layout.yaxis.title.text == "layer"
    assert all(trace.hoverinfo == "skip" for trace in figure.data[1:])
    auroc = screen.maps(scores, criterion="probe", projection="query", value="auroc").data[0]
    assert (auroc.zmin, auroc.zmax) == (0.0, 1.0)


def test_screen_maps_write_none_where_nothing_was_computed(run):
    holed = run.copy(deep=True)
    holed["deflection"].loc[{"layer": 1, "head": 2}] = np.nan
    table = score(holed, ("deflection",), bootstrap=0, permutations=0)
    drawn = screen.maps(table, criterion="deflection", projection="query")
    assert drawn.data[0].customdata[1][2] is None
    assert list(drawn.data[1].x) == [2]
    assert list(drawn.data[1].y) == [1]


def test_the_screen_s_selectivity_plot_colours_the_picks_and_draws_the_bound(scores):
    figure = screen.selectivity(scores, criterion="deflection", projection="query")
    points = figure.data[0]
    picked = [name for name, colour in zip(points.customdata, points.marker.color, strict=True) if colour == "#D55E00"]
    assert "L2H1" in picked
    assert "L0H3" not in picked
    assert "L0H3" in points.text
    safe = charts.grid(scores, criterion="deflection", projection="query", column="safe")
    assert any(trace.x[0] == trace.x[1] == pytest.approx(np.percentile(safe, 80)) for trace in figure.data[1:])


def test_screen_distributions_hold_every_prompt_once(run):
    for by in ("label", "family"):
        figure = screen.distributions(run, "deflection", "query", head=PLANTED, by=by, threshold=2.0)
        drawn = [prompt for trace in figure.data if trace.customdata is not None for prompt in trace.customdata]
        assert sorted(drawn) == sorted(map(str, run["prompt"].values))
        assert "Deflection angle (degrees)" in figure.layout.xaxis.title.text


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (
            lambda r, s: screen.maps(s, criterion="nonsense", projection="query"),
            FigureError,
            "no criterion 'nonsense'; it has deflection, probe",
        ),
        (
            lambda r, s: screen.maps(s, criterion="deflection", projection="key"),
            FigureError,
            "projection 'key'; this table has query, value",
        ),
        (
            lambda r, s: screen.maps(s, criterion="deflection", projection="query", value="p_value"),
            FigureError,
            "unsafe, safe, difference.*'p_value'",
        ),
        (
            lambda r, s: screen.distributions(r, "deflection", "query", head=(0, 0), by="topic"),
            FigureError,
            "got 'topic'",
        ),
        (
            lambda r, s: screen.distributions(r, "probe", "query", head=(0, 0)),
            CriterionError,
            "no value for a single",
        ),
    ],
)
def test_mistakes_are_said_with_the_choices(run, scores, call, error, said):
    with pytest.raises(error, match=said):
        call(run, scores)


def test_the_terminal_s_table_lists_heads_by_rank_and_escapes_markup(scores):
    picked = [
        top_heads(scores, criterion="deflection", rule=r, projection="query", k=2)
        for r in ("sensitivity", "selectivity")
    ]
    out = Console(file=StringIO(), width=100)
    out.print(tables.top_heads_table(pd.concat(picked), title="[red]x[/red]"))
    text = out.file.getvalue()
    assert re.search(r"1\s+L0H3 [\d.]+\s+L2H1 [\d.]+", text)
    assert "query masked" in text
    out.print(tables.frame_table(pd.DataFrame({"name": ["[bold]x"], "value": [np.nan]})))
    assert "[bold]x" in out.file.getvalue()
    assert "–" in out.file.getvalue()


def test_in_eighty_columns_no_number_is_cut_and_no_word_broken(run):
    table = score(run, criteria=("deflection", "ships", "svd_left", "mean_vector"), bootstrap=0, permutations=0)
    groups = table[["criterion", "projection"]].drop_duplicates().itertuples(index=False)
    tops = [top_heads(table, criterion=c, rule="sensitivity", projection=p, k=3) for c, p in groups]
    out = Console(file=StringIO(), width=80)
    out.print(tables.top_heads_table(pd.concat(tops), title="T", width=80))
    text = out.file.getvalue()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    for row in pd.concat(tops).itertuples():
        assert f"L{row.layer}H{row.head} {tables.number(row.value)}" in text
    for word in ("Deflection", "divergence)", "sensitivity"):
        assert re.search(rf"(?<!\w){re.escape(word)}", text), word


def test_numbers_have_three_digits_and_a_missing_one_is_a_dash():
    numbers = (1.23456, -0.00012, -4321.0, float("inf"), np.nan)
    assert [tables.number(v) for v in numbers] == ["1.23", "−0.00012", "−4321", "∞", "–"]
    assert [charts.tick_label(v) for v in (1e-5, 0.5, 20.0)] == ["1e-5", "0.5", "20"]


ACTING = "[red]x[/red] <b>y</b> $z^2$ \x1b[31m \u202e {1} %{x}"


def test_words_of_others_are_shown_as_they_are_by_every_back_end(run, scores):
    families = run.assign_coords(family=("prompt", [ACTING] * run.sizes["prompt"]))
    renamed = scores[scores["criterion"] == "deflection"].assign(criterion=ACTING)
    # plotly: some HTML, TeX between dollars, and its own templates
    heat = screen.maps(renamed, criterion=ACTING, projection="query")
    values = screen.distributions(families, "deflection", "query", head=PLANTED, by="family")
    for words in (heat.layout.title.text, values.layout.yaxis.ticktext[0]):
        assert "&lt;b&gt;" in words
        assert "$" not in words
        assert "\x1b" not in words
    # the terminal
    out = Console(file=StringIO(), width=200)
    out.print(tables.frame_table(pd.DataFrame({ACTING: [ACTING]}), title=ACTING))
    assert out.file.getvalue().count("[red]x[/red] <b>y</b> $z^2$ \\x1b[31m") == 3
