"""The explorer as one file, opened from disk in a browser that has no network: what keys, clicks and drags do."""

import json
import re

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image

import workbench as wb
from tests.unit.synthetic_run import synthetic_run
from workbench.criteria.thresholds import balanced_accuracy, fpr_threshold, kde_threshold, tpr_at_fpr
from workbench.views.explorer.page import save_report

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]
PLANTED, DECOY = (20, 3), (0, 3)
HOSTILE = "</script><img src=x onerror=\"document.title='hacked'\">\u202e"
STATE = "document.getElementById('workbench').workbench.state"
COUNTS = "({...document.getElementById('workbench').workbench.counts})"


@pytest.fixture(scope="module")
def run():
    made = synthetic_run(pairs=24, layers=32, heads=32, planted=(PLANTED,), decoy=DECOY, keep_states=False)
    made["deflection"].loc[{"layer": 5, "head": 7}] = np.nan  # a head that was not swept
    made["kl"].loc[{"layer": 5, "head": 7}] = np.nan
    return made.assign_coords(category=("prompt", [HOSTILE] * made.sizes["prompt"])).assign_attrs(model=HOSTILE)


@pytest.fixture(scope="module")
def scores(run):
    return wb.score(run, ("deflection", "ships"), permutations=0)


@pytest.fixture(scope="module")
def report(run, scores, tmp_path_factory):
    return save_report(run, tmp_path_factory.mktemp("report") / "report.html", scores=scores)


@pytest.fixture(scope="module")
def browser(browser_path):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        yield playwright.chromium.launch(executable_path=browser_path, args=arguments)


@pytest.fixture
def opened(browser, report):
    """`opened("#head=…", width=…)`: the page, without a network; what it complains of is collected."""
    pages = []

    def opening(address="", *, file=report, **options):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 1000}, "offline": True, **options})
        page = context.new_page()
        page.complaints = []
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on(
            "console", lambda said: page.complaints.append(said.text) if said.type in ("error", "warning") else None
        )
        page.on(
            "request",
            lambda asked: (
                page.complaints.append(asked.url) if not asked.url.startswith(("file:", "blob:", "data:")) else None
            ),
        )
        page.goto(f"{file.as_uri()}{address}")
        page.locator(".wbx-name-head").first.wait_for()
        page.wait_for_timeout(250)  # until what was opened has settled
        pages.append((context, page))
        return page

    yield opening
    for context, page in pages:
        assert page.complaints == []
        context.close()


def chosen(page):
    return page.evaluate(f"JSON.parse(JSON.stringify({STATE}))")


def at_cell(page, layer, head, number=0):
    """Where a cell of a map lies on the screen."""
    x, y = page.evaluate(
        """([l, h, i]) => {
            const panel = document.getElementById('workbench').workbench.grid.panels[i];
            const [x, y] = panel.place.corner([l, h]);
            const box = panel.stage.getBoundingClientRect();
            return [box.left + x + panel.place.w / 2, box.top + y + panel.place.h / 2];
        }""",
        [layer, head, number],
    )
    return x, y


def test_it_opens_at_the_first_head_and_says_the_rank_of_top_heads_with_its_stability(opened, scores):
    page = opened()
    best = wb.top_heads(scores, criterion="deflection", rule="selectivity", projection="query", k=5)
    assert chosen(page)["head"] == [best["layer"][0], best["head"][0]] == list(PLANTED)
    row = page.locator(".wbx-scores tr", has_text="Deflection angle").first.inner_text()
    assert "rank 1 of" in row
    assert f"first 5 in {round(100 * best['stability'][0])} % of redraws" in row
    assert "rank 1 of" in page.locator(".wbx-map .wbx-readout").first.inner_text()
    firsts = page.evaluate("document.getElementById('workbench').workbench.grid.panels[0].source.first(5)")
    assert [tuple(head) for head in firsts] == list(zip(best["layer"], best["head"], strict=True))


def test_twelve_presses_move_frames_and_draw_no_cell(opened):
    page = opened("#head=L8H8")
    page.locator(".wbx-stage").first.focus()
    before = page.evaluate(COUNTS)
    for _ in range(12):
        page.keyboard.press("ArrowUp")
    page.wait_for_timeout(400)
    after = page.evaluate(COUNTS)
    assert chosen(page)["head"] == [20, 8]
    assert "L20H8" in page.locator(".wbx-name-head").inner_text()
    assert after["cells"] == before["cells"]
    assert 1 <= after["frames"] - before["frames"] <= 24
    assert after["messages"] == 0
    assert "#head" not in page.url.replace("#", "", 1)
    assert re.search(r"head=L20H8", page.url)
    said = page.locator("[aria-live=polite]").inner_text()
    assert said.startswith("L20H8. Deflection angle")


def test_a_click_chooses_in_all_maps_and_shift_click_makes_a_set_that_masks_take(opened, tmp_path):
    page = opened()
    page.mouse.click(*at_cell(page, 4, 9, 1))
    assert chosen(page)["head"] == [4, 9]
    assert page.locator(".wbx-readout", has_text="L4H9").count() == 2
    for head in ((4, 9), (30, 2)):
        page.keyboard.down("Shift")
        page.mouse.click(*at_cell(page, *head))
        page.keyboard.up("Shift")
    assert chosen(page)["heads"] == [[4, 9], [30, 2]]
    with page.expect_download() as saving:
        page.get_by_label("save or copy").select_option("heads")
    saving.value.save_as(tmp_path / "heads.json")
    from workbench.axes import as_heads

    assert as_heads(str(tmp_path / "heads.json")) == [(4, 9), (30, 2)]


def test_hover_reads_out_in_every_map_without_choosing(opened):
    page = opened("#head=L8H8")
    before = page.evaluate(COUNTS)
    page.mouse.move(*at_cell(page, 11, 12))
    page.wait_for_timeout(150)
    assert page.locator(".wbx-readout", has_text="L11H12").count() == 2
    assert chosen(page)["head"] == [8, 8]
    after = page.evaluate(COUNTS)
    assert (after["cells"], after["cards"], after["messages"]) == (before["cells"], before["cards"], 0)


def test_what_has_no_value_says_why(opened):
    page = opened("#head=L5H7")
    row = page.locator(".wbx-scores tr", has_text="Deflection angle").first
    assert "not computed" in row.inner_text()
    assert "did not mask or score" in row.locator("td").first.get_attribute("title")
    page.evaluate(f"document.getElementById('workbench').workbench.store.set({{head: {list(DECOY)}}})")
    page.wait_for_timeout(100)
    assert "excluded" in row.inner_text()
    assert "80th percentile" in row.locator("td").first.get_attribute("title")


def test_lock_undo_redo_and_the_address(opened):
    page = opened("#head=L8H8")
    page.locator(".wbx-stage").first.focus()
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    now = chosen(page)
    assert (now["locked"], now["head"], now["heads"]) == ([8, 8], [8, 9], [[8, 9]])
    assert page.locator(".wbx-name-locked").inner_text() == "L8H8"
    for wanted in ({"heads": []}, {"head": [8, 8]}, {"locked": None}):
        page.keyboard.press("Control+z")
        assert chosen(page).items() >= wanted.items()
    for _ in range(3):
        page.keyboard.press("Control+Shift+Z")
    page.wait_for_timeout(300)
    again = opened(page.url[page.url.index("#") :])
    assert {k: chosen(again)[k] for k in ("head", "locked", "heads")} == {
        "head": [8, 9],
        "locked": [8, 8],
        "heads": [[8, 9]],
    }


def test_a_link_to_what_is_not_there_opens_at_what_is(opened):
    page = opened("#head=L99H99&prompt=nobody&criterion=nonsense&rule=x&heads=L1H1.L99H1.nonsense&run=7")
    now = chosen(page)
    assert (now["head"], now["criterion"], now["rule"], now["heads"], now["run"]) == (
        [0, 0],
        "deflection",
        "selectivity",
        [[1, 1]],
        0,
    )


def test_brush_zoom_and_back(opened):
    page = opened()
    panel = page.locator(".wbx-stage").first
    box = panel.bounding_box()
    low, high = at_cell(page, 4, 0)[1], at_cell(page, 11, 0)[1]
    page.mouse.move(box["x"] + 12, low)
    page.mouse.down()
    page.mouse.move(box["x"] + 12, (low + high) / 2)
    page.mouse.move(box["x"] + 12, high)
    page.mouse.up()
    page.wait_for_timeout(100)
    assert chosen(page)["view"] == {"l0": 4, "l1": 12, "h0": 0, "h1": 32}
    page.get_by_label("zoom in").click()
    view = chosen(page)["view"]
    assert view["h1"] - view["h0"] < 32
    page.locator(".wbx-stage").first.focus()
    page.keyboard.press("Escape")
    assert chosen(page)["view"] == {"l0": 0, "l1": 32, "h0": 0, "h1": 32}


def test_the_nearest_point_is_chosen_and_the_threshold_has_the_rates_of_python(opened, run):
    page = opened(f"#head=L{PLANTED[0]}H{PLANTED[1]}")
    values = run["deflection"].sel(projection="query", layer=PLANTED[0], head=PLANTED[1])
    unsafe = run["label"].values == "unsafe"
    parts = values.values[unsafe].astype(float), values.values[~unsafe].astype(float)
    said = page.locator(".wbx-rates").first.inner_text()
    assert float(said.split()[0]) == pytest.approx(kde_threshold(*parts).value, rel=5e-3)
    for rate in (0.01, 0.05):
        assert f"{100 * tpr_at_fpr(*parts, rate):.0f} % at {100 * rate:.0f} %" in said
    before = chosen(page)["prompt"]
    canvas = page.locator(".wbx-distribution").first
    canvas.focus()
    page.keyboard.press("ArrowRight")
    order = [str(i) for i in run["prompt"].values[np.argsort(values.values)]]
    assert chosen(page)["prompt"] == order[order.index(before) + 1]
    slider = page.get_by_label("threshold").first
    slider.focus()
    page.keyboard.press("End")
    assert "detects 0.0 %, false alarms 0.0 %" in page.locator(".wbx-rates").first.inner_text()


def test_statistics_are_those_of_python(opened):
    page = opened()
    rng = np.random.default_rng(3)
    unsafe, safe = rng.gamma(4, 1, 60).tolist(), rng.gamma(2, 0.7, 45).tolist()
    # The page's script is one module; its functions are reached by putting the file's own text in once more.
    from workbench.views.explorer import assets

    script = re.search(r"^const GRID.*?(?=^// Multiples)", assets.script(), re.M | re.S).group()
    asked = (
        "crossing(a, b), roc(a, b).area, detectedAt(a, b, 0.05), balancedAccuracy(a, b, 2), spearman(a.slice(0, 45), b)"
    )
    result = page.evaluate(f"(([a, b]) => {{ {script} return [{asked}]; }})({json.dumps([unsafe, safe])})")
    from scipy.stats import spearmanr
    from sklearn.metrics import roc_auc_score

    labels = [1] * 60 + [0] * 45
    wanted = [
        kde_threshold(np.array(unsafe), np.array(safe)).value,
        roc_auc_score(labels, unsafe + safe),
        float((np.array(unsafe) > fpr_threshold(np.array(safe), 0.05)).mean()),
        balanced_accuracy(np.array(unsafe), np.array(safe), 2.0),
        spearmanr(unsafe[:45], safe).statistic,
    ]
    assert result == pytest.approx(wanted, rel=1e-9)


def test_views_are_saved_as_drawings_and_tables(opened, scores, tmp_path):
    page = opened("#head=L5H7")
    found = {}
    for kind in ("svg", "csv", "png"):
        with page.expect_download() as saving:
            page.get_by_label("save or copy").select_option(kind)
        found[kind] = tmp_path / saving.value.suggested_filename
        saving.value.save_as(found[kind])
    import pandas as pd

    table = pd.read_csv(found["csv"])
    assert len(table) == 2 * 32 * 32
    one = table.query("criterion == 'deflection' and layer == 20 and head == 3").iloc[0]
    exact = scores.query("criterion == 'deflection' and projection == 'query' and layer == 20 and head == 3")[
        "unsafe"
    ].item()
    assert one["value"] == pytest.approx(exact, rel=1e-6)
    assert (one["rank"], one["status"]) == (1, "known")
    assert set(table.query("layer == 5 and head == 7")["status"]) == {"not computed"}
    svg = found["svg"].read_text()
    assert svg.count("<rect") > 2 * 1023
    assert "<img" not in svg
    with Image.open(found["png"]) as drawn:
        assert drawn.size[0] > 500


def test_words_of_others_stay_words_and_nothing_is_loaded(opened, report):
    page = opened()
    assert page.title() != "hacked"
    assert page.locator("img").count() == 0
    assert "<img src=x" in page.locator("h1").inner_text()
    text = report.read_text()
    assert "\u202e" not in text
    assert text.count("</script>") == 3
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text).group(1)
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert report.stat().st_size < 10 * 2**20


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [700, 1920])
def test_it_is_accessible_and_fits(opened, scheme, width):
    page = opened(color_scheme=scheme, viewport={"width": width, "height": 1000})
    page.evaluate("document.getElementById('workbench').workbench.store.set({locked: [1, 1], heads: [[2, 2]]})")
    page.locator("details > summary").nth(0).click()
    found = Axe().run(page).response["violations"]
    assert not [(one["id"], [n["html"][:150] for n in one["nodes"][:3]]) for one in found]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    panel = page.locator(".wbx-name-head").bounding_box()
    assert panel["y"] < 400, "the chosen head is in view"


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
    assert page.locator(".wbx-matrix tbody tr").count() == 8
    names = page.locator(".wbx-card:visible h2").all_inner_texts()
    assert [name.startswith("L25H6") for name in names] == [True, True], "the head in both runs"
    assert len(set(names)) == 2
    scales = page.evaluate("document.getElementById('workbench').workbench.grid.panels.map((p) => p.source.scale)")
    assert (scales[0]["low"], scales[0]["high"]) == (scales[1]["low"], scales[1]["high"])
    page.get_by_role("button", name="Back to the maps").click()
    assert page.locator(".wbx-map").count() == 2


def test_a_cell_of_the_trace_names_the_heads_that_bring_it_and_chooses_them(opened, tmp_path):
    from tests.unit import planted_parts

    prompts = wb.load_prompts("planted", split="test", n=8)
    trace = wb.trace(planted_parts.model(), prompts, progress=False)
    run = wb.sweep(planted_parts.model(), prompts, progress=False)
    file = save_report(run, tmp_path / "traced.html", trace=trace)
    page = opened("#head=L0H2", file=file)
    panel = page.locator(".wbx-trace")
    assert panel.locator("figure").count() == 3
    panel.get_by_role("button", name="attention, layer 3, last: 1").click()
    said = panel.locator(".wbx-trace-said")
    assert "attention of layer 3 at last: 1 (1 to 1)" in said.inner_text()
    said.get_by_role("button", name="L3H1 1").click()
    page.wait_for_timeout(300)
    assert page.evaluate(STATE)["head"] == [3, 1]
    panel.get_by_label("shown").select_option("top1_change")
    assert "first token of the reply changes" in said.inner_text()
    assert panel.get_by_role("button", name="MLP, layer 0, picture: 0").get_attribute("aria-pressed") == "false"
    found = Axe().run(page).response["violations"]
    assert not [one["id"] for one in found if one["impact"] in ("serious", "critical")]
