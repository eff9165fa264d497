"""The explorer as one file, opened from disk in a browser that has no network: what keys, clicks and drags do."""

import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image

import workbench as wb
from tests.browser.report_page import COUNTS, DECOY, PLANTED, at_cell, chosen

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]


def test_it_opens_at_the_first_head_and_says_the_rank_of_top_heads_with_its_stability(opened, scores):
    page = opened()
    best = wb.top_heads(scores, criterion="deflection", rule="selectivity", projection="query", k=5)
    assert chosen(page)["head"] == [best["layer"][0], best["head"][0]] == list(PLANTED)
    row = page.locator(".wbx-scores tr", has_text="Deflection angle").first.inner_text()
    assert "rank 1 of" in row
    assert f"first 5: {round(100 * best['stability'][0])} %" in row
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


def test_a_cell_of_the_trace_names_the_heads_that_bring_it_and_chooses_them(opened, tmp_path):
    from tests.unit import planted_parts

    prompts = wb.load_prompts("planted", split="test", n=8)
    trace = wb.trace(planted_parts.model(), prompts, progress=False)
    run = wb.sweep(planted_parts.model(), prompts, progress=False)
    file = wb.save_report(run, tmp_path / "traced.html", trace=trace)
    page = opened("#head=L0H2", file=file)
    panel = page.locator(".wbx-trace")
    assert panel.locator("figure").count() == 3
    panel.get_by_role("button", name="attention, layer 3, last: 1").click()
    said = panel.locator(".wbx-trace-said")
    assert "attention of layer 3 at last: 1 (1 to 1)" in said.inner_text()
    said.get_by_role("button", name="L3H1 1").click()
    page.wait_for_timeout(300)
    assert chosen(page)["head"] == [3, 1]
    panel.get_by_label("shown").select_option("top1_change")
    assert "first token of the reply changes" in said.inner_text()
    assert panel.get_by_role("button", name="MLP, layer 0, picture: 0").get_attribute("aria-pressed") == "false"
    found = Axe().run(page).response["violations"]
    assert not [one["id"] for one in found if one["impact"] in ("serious", "critical")]
