"""The explorer as a person meets it: JupyterLab, Run All, a click on a cell of the map, and the panel that changes."""

import re
import time
from collections.abc import Iterator

import pytest

from tests.browser.jupyter_lab import Lab, serve
from tests.notebook_copies import small_copy

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]
NOTEBOOK = "01_explore_heads.ipynb"
RUN_SECONDS = 300  # from Run All to the maps, on two busy cores
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
    page.locator(".jp-StatusBar-Widget", has_text="| Idle").first.wait_for(timeout=CLICK_MS)
    page.locator(".lm-MenuBar-itemLabel", has_text=re.compile("^Run$")).click()
    page.locator(".lm-Menu-itemLabel", has_text=re.compile("^Run All Cells$")).click()
    give_up = time.monotonic() + RUN_SECONDS
    while not page.locator(".wb-head-name").first.is_visible():
        assert time.monotonic() < give_up, f"no explorer after {RUN_SECONDS} s"
        assert page.locator(".jp-OutputArea-output[data-mime-type*='stderr']").count() == 0, "a cell complained"
        # JupyterLab asks which kernel when it is slow to find the one it started; the answer is already chosen.
        if page.locator(".jp-Dialog .jp-mod-accept").is_visible():
            page.locator(".jp-Dialog .jp-mod-accept").click()
        page.wait_for_timeout(500)
    page.locator("rect[data-key='0,0']").first.wait_for(timeout=CLICK_MS)


def click_cell(page, layer: int, head: int, *, map_number: int = 0) -> None:
    """Press and release the mouse in the middle of a cell."""
    cell = page.locator(f"rect[data-key='{layer},{head}']").nth(map_number)
    cell.scroll_into_view_if_needed()
    area = cell.bounding_box()
    page.mouse.click(area["x"] + area["width"] / 2, area["y"] + area["height"] / 2)


def shown_head(page, name: str):
    return page.locator(".wb-head-name:visible", has_text=re.compile(f"^{name}$"))


def test_a_click_on_a_cell_changes_the_panel_and_a_locked_head_stays(page, lab):
    run_all(page, lab)
    first = page.locator(".wb-head-name:visible").first.inner_text()
    wanted, above = ("L1H2", "L2H2") if first != "L1H2" else ("L2H1", "L3H1")

    click_cell(page, int(wanted[1]), int(wanted[3]))
    shown_head(page, wanted).wait_for(timeout=CLICK_MS)
    panel = page.locator(".widget-vbox", has=shown_head(page, wanted)).last
    for said in ("Deflection angle", "AUROC", "Attention from the last prompt position", "Next token", "Reply"):
        panel.get_by_text(said).first.wait_for(timeout=CLICK_MS)
    assert panel.locator("svg[aria-label='attention over the picture'] rect").count() >= 4
    assert panel.locator(".wb-error").count() == 0
    assert len(panel.locator(".wb-reply").first.inner_text()) > 3

    page.get_by_role("button", name="Lock to compare").click()
    page.get_by_role("button", name=f"Unlock {wanted}").wait_for(timeout=CLICK_MS)
    page.locator("svg[tabindex='0']").first.focus()
    page.keyboard.press("ArrowUp")
    shown_head(page, above).wait_for(timeout=CLICK_MS)
    click_cell(page, 0, 0, map_number=1)
    shown_head(page, "L0H0").wait_for(timeout=CLICK_MS)
    assert page.locator(".wb-head-name:visible").all_inner_texts() == [wanted, "L0H0"]

    prompt = page.locator("rect[data-tip^='selection-']:visible").last
    asked = prompt.get_attribute("data-key")
    prompt.click()
    chosen = "(id) => [...document.querySelectorAll('select')].some((s) => s.selectedOptions[0]?.text.startsWith(id))"
    page.wait_for_function(chosen, arg=asked, timeout=CLICK_MS)
    assert page.locator(".wb-error").count() == 0
    assert page.complaints == []
