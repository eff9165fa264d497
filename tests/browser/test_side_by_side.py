"""Two runs in one page: linked maps, their difference, what their first heads share, how far rankings agree."""

import itertools

import pytest

import workbench as wb
from tests.browser.report_page import DECOY, chosen
from tests.unit.synthetic_run import synthetic_run
from workbench.criteria import rank_agreement
from workbench.views.explorer.page import save_report

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]


def test_two_runs_open_side_by_side(opened, run, scores, tmp_path):
    other = synthetic_run(pairs=24, layers=32, heads=32, planted=((25, 6),), decoy=DECOY, keep_states=False, seed=1)
    second = wb.score(other, ("deflection", "ships"), permutations=0)
    page = opened(file=save_report(run, tmp_path / "two.html", other, scores=[scores, second]))
    assert chosen(page)["tab"] == "compare"
    titles = page.locator(".wbx-map figcaption").all_inner_texts()
    assert len(titles) == 3
    assert titles[1].startswith("synthetic")
    assert titles[2].startswith("Second less first")
    shown = page.evaluate("document.getElementById('workbench').workbench.grid.panels[2].source.value([25, 6])")
    one, two = (
        t.query("criterion == 'deflection' and projection == 'query' and layer == 25 and head == 6")["unsafe"].item()
        for t in (scores, second)
    )
    assert shown == pytest.approx(two - one, rel=1e-5)
    tops = [
        wb.top_heads(t, criterion="deflection", rule="selectivity", projection="query", k=5)[["layer", "head"]].apply(
            tuple, axis=1
        )
        for t in (scores, second)
    ]
    assert (
        f"{len(set(tops[0]) & set(tops[1]))} in common" in page.locator("figcaption", has_text="in common").inner_text()
    )
    page.locator(".wbx-ranks button", has_text="L25H6").first.click()
    assert chosen(page)["head"] == [25, 6]
    # The bump chart's lines, in the colour of the chosen head where it is in neighbouring columns.
    marked = page.evaluate(
        """() => {
            const lines = document.querySelector('.wbx-lines');
            const { data } = lines.getContext('2d').getImageData(0, 0, lines.width, lines.height);
            let marked = 0;
            for (let i = 0; i < data.length; i += 4) marked += data[i] > 180 && data[i + 1] < 60 && data[i + 3] > 200;
            return marked;
        }"""
    )
    columns = [
        wb.top_heads(t, criterion="deflection", rule="selectivity", projection=p, k=5)[["layer", "head"]].apply(
            tuple, axis=1
        )
        for t in (scores, second)
        for p in ("query", "value")
    ]
    both = [(25, 6) in set(a) & set(b) for a, b in itertools.pairwise(columns)]
    assert (marked > 20) == any(both)
    assert any(both), "a trivial case"
    table = rank_agreement(scores, rule="sensitivity").iloc[0]
    said = page.locator(".wbx-matrix td small").first.inner_text()
    low, high = (float(end.replace("−", "-")) for end in said.split(" to "))
    assert [low, high] == pytest.approx([table["spearman_low"], table["spearman_high"]], abs=6e-3)
    assert page.locator(".wbx-matrix tbody tr").count() == 8
    names = page.locator(".wbx-card:visible h2").all_inner_texts()
    assert [name.startswith("L25H6") for name in names] == [True, True], "the head in both runs"
    assert len(set(names)) == 2
    scales = page.evaluate("document.getElementById('workbench').workbench.grid.panels.map((p) => p.source.scale)")
    assert (scales[0]["low"], scales[0]["high"]) == (scales[1]["low"], scales[1]["high"])
    page.get_by_role("button", name="Back to the maps").click()
    assert page.locator(".wbx-map").count() == 2
