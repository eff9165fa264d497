"""The explorer as a person meets it: JupyterLab, Run All, a click on a cell of the map, and the panel that changes."""

import re
from collections.abc import Iterator

import pytest

from tests.browser.jupyter_lab import Lab, serve
from tests.notebook_copies import small_copy

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]
NOTEBOOK = "01_explore_heads.ipynb"
RUN_MS = 240_000  # from Run All to the maps, on two busy cores
CLICK_MS = 60_000


@pytest.fixture
def lab(tmp_path) -> Iterator[Lab]:
    folder = tmp_path / "notebooks"
    folder.mkdir()
    small_copy(NOTEBOOK, folder)
    with serve(folder, tmp_path / "state") as running:
        yield running


@pytest.fixture
def page(browser_path, lab, tmp_path, request):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=browser_path, args=arguments)
        page = browser.new_page(viewport={"width": 1280, "height": 1400})
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.complaints = complaints
        try:
            yield page
        finally:
            page.screenshot(path=str(tmp_path / "last_seen.png"))
            print(f"\nWhat the browser last showed: {tmp_path / 'last_seen.png'}")
            browser.close()


def run_all(page, lab: Lab) -> None:
    """Open the notebook, run every cell, and wait for the maps."""
    page.goto(lab.notebook(NOTEBOOK))
    page.locator(".jp-Notebook .jp-Cell").first.wait_for(timeout=CLICK_MS)
    page.locator(".jp-Notebook-ExecutionIndicator[data-status='idle']").wait_for(timeout=CLICK_MS)
    page.locator(".lm-MenuBar-itemLabel", has_text=re.compile("^Run$")).click()
    page.locator(".lm-Menu-itemLabel", has_text=re.compile("^Run All Cells$")).click()
    page.locator(".wb-head-name").first.wait_for(timeout=RUN_MS)
    page.locator(".js-plotly-plot .heatmaplayer image").first.wait_for(timeout=CLICK_MS)
    page.locator(".wb-head-name").first.scroll_into_view_if_needed()


def click_cell(page, layer: int, head: int, *, layers: int, heads: int, map_number: int = 0) -> None:
    """Click the middle of a cell; layer 0 is at the bottom."""
    plot = page.locator(".js-plotly-plot").filter(has=page.locator(".heatmaplayer image")).nth(map_number)
    plot.scroll_into_view_if_needed()
    area = plot.locator(".nsewdrag").first.bounding_box()
    x = area["x"] + area["width"] * (head + 0.5) / heads
    y = area["y"] + area["height"] * (1 - (layer + 0.5) / layers)
    page.mouse.move(x, y)
    page.mouse.click(x, y)


def shown_head(page, name: str):
    return page.locator(".wb-head-name:visible", has_text=re.compile(f"^{name}$"))


def size(page) -> tuple[int, int]:
    """(layers, heads) as the explorer's heading says them."""
    said = page.locator(".wb", has_text="layers ×").first.inner_text()
    found = re.search(r"(\d+) layers × (\d+) heads", said)
    return int(found[1]), int(found[2])


def test_a_click_on_a_cell_changes_the_panel_and_a_locked_head_stays(page, lab):
    run_all(page, lab)
    layers, heads = size(page)
    first = page.locator(".wb-head-name:visible").first.inner_text()
    wanted = "L1H2" if first != "L1H2" else "L2H1"
    layer, head = int(wanted[1]), int(wanted[3])

    click_cell(page, layer, head, layers=layers, heads=heads)
    shown_head(page, wanted).wait_for(timeout=CLICK_MS)
    panel = page.locator(".widget-vbox", has=shown_head(page, wanted)).last
    for said in ("Deflection angle", "AUROC", "Attention from the last prompt position", "Next token", "Reply"):
        panel.get_by_text(said).first.wait_for(timeout=CLICK_MS)
    assert panel.locator("svg[aria-label='attention over the picture'] rect").count() >= 4
    assert panel.locator(".wb-error").count() == 0
    assert len(panel.locator(".wb-reply").first.inner_text()) > 3

    page.get_by_role("button", name="Lock to compare").click()
    page.get_by_role("button", name=f"Unlock {wanted}").wait_for(timeout=CLICK_MS)
    click_cell(page, 0, 0, layers=layers, heads=heads, map_number=1)
    shown_head(page, "L0H0").wait_for(timeout=CLICK_MS)
    assert page.locator(".wb-head-name:visible").all_inner_texts() == [wanted, "L0H0"]
    assert page.complaints == []
