"""The explorer as a person meets it: JupyterLab, Run All, a click on a cell of the map, and the panel that changes."""

import json
import re
import time
from collections.abc import Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.browser.jupyter_lab import Lab, serve
from tests.notebook_copies import small_copy

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]
NOTEBOOK = "01_explore_heads.ipynb"
RUN_SECONDS = 300  # from Run All to the maps, on two busy cores
CLICK_MS = 60_000
# A further cell: what Python sees of a choice lies in a file, and when another rule is chosen, Python chooses a head.
WATCH = """
import json
from pathlib import Path

def seen(change):
    Path("chosen.json").write_text(json.dumps([board.head, board.locked, board.heads]))

board.observe(seen, ["head", "locked", "heads"])
board.observe(lambda change: setattr(board, "head", "L2H2"), "rule")
"""


@pytest.fixture
def lab(tmp_path) -> Iterator[Lab]:
    folder = tmp_path / "notebooks"
    folder.mkdir()
    copy = small_copy(NOTEBOOK, folder)
    notebook = json.loads(copy.read_text())
    watching = {
        "cell_type": "code",
        "execution_count": None,
        "id": "watch",
        "metadata": {},
        "outputs": [],
        "source": WATCH,
    }
    notebook["cells"].append(watching)
    copy.write_text(json.dumps(notebook))
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
    while not page.locator(".wbx-name-head").first.is_visible():
        assert time.monotonic() < give_up, f"no explorer after {RUN_SECONDS} s"
        assert page.locator(".jp-OutputArea-output[data-mime-type*='stderr']").count() == 0, "a cell complained"
        # JupyterLab asks which kernel when it is slow to find the one it started; the answer is already chosen.
        if page.locator(".jp-Dialog .jp-mod-accept").is_visible():
            page.locator(".jp-Dialog .jp-mod-accept").click()
        page.wait_for_timeout(500)
    # The first look at the model: where the head looks, and what is said next.
    page.locator(".wbx-next").first.wait_for(timeout=RUN_SECONDS * 1000)  # the kernel ends the other cells first
    page.wait_for_timeout(500)


BOARD = "document.querySelector('.wbx').parentElement.workbench"


def board(page, what):
    return page.evaluate(f"JSON.parse(JSON.stringify({BOARD}.{what}))")


def click_cell(page, layer: int, head: int, *, map_number: int = 0, **options) -> None:
    """Press and release the mouse in the middle of a cell."""
    page.locator(".wbx-stage").nth(map_number).scroll_into_view_if_needed()
    x, y = page.evaluate(
        f"""([l, h, i]) => {{
            const panel = {BOARD}.grid.panels[i];
            const [x, y] = panel.place.corner([l, h]);
            const box = panel.stage.getBoundingClientRect();
            return [box.left + x + panel.place.w / 2, box.top + y + panel.place.h / 2];
        }}""",
        [layer, head, map_number],
    )
    page.mouse.click(x, y)


def shown_head(page, name: str):
    return page.locator(".wbx-name-head", has_text=re.compile(f"^{name}$"))


def until_answered(page, head: list[int]) -> None:
    """Wait for what Python says of a head on the chosen prompt."""
    page.wait_for_function(
        f"""([l, h]) => {{
            const {{ state, answers }} = {BOARD};
            return answers.next.has(`${{state.prompt}}/${{l}},${{h}}/${{state.projection}}`);
        }}""",
        arg=head,
        timeout=CLICK_MS,
    )


def test_the_explorer_in_a_notebook(page, lab):
    run_all(page, lab)
    assert page.locator(".jp-OutputArea-output img[src^='data:image/png']").count() == 0, "the live widget is shown"

    # A click: everything changes at once, and little is said to Python.
    before = board(page, "counts")
    click_cell(page, 1, 2)
    shown_head(page, "L1H2").wait_for(timeout=CLICK_MS)
    until_answered(page, [1, 2])
    after = board(page, "counts")
    assert after["cells"] == before["cells"], "a click draws no cell again"
    assert 1 <= after["messages"] - before["messages"] <= 2
    assert after["bytes"] - before["bytes"] <= 2048
    for said in ("Deflection angle", "AUROC", "Where it looks", "next token"):
        assert page.locator(".wbx-right").get_by_text(said).first.is_visible(), said
    assert page.locator(".wbx-picture").first.is_visible()
    assert "on the picture" in page.locator(".wbx-right .wbx-pictures figcaption").first.inner_text()

    # Arcs go from the position that looks to every word that gets 0.1 % of its attention; the picture is one.
    wanted = page.evaluate(
        f"""() => {{
            const {{ state, answers }} = {BOARD};
            const {{ tokens, image }} = answers.prompts.get(state.prompt);
            const row = answers.rows.get(`${{state.prompt}}/last/1`).subarray(2 * tokens.length, 3 * tokens.length);
            const words = [...row.keys()].filter((i) => !image.includes(i) && i < tokens.length - 1 && row[i] > 0.001);
            return words.length + (image.reduce((sum, i) => sum + row[i], 0) > 0.001);
        }}"""
    )
    assert page.locator(".wbx-arcs path").count() == wanted > 1

    # Twelve presses: frames move, Python is asked once, and answers for the last alone.
    # Held keys repeat faster than a test can press them; these come as fast as they can.
    before = board(page, "counts")
    page.locator(".wbx-stage[tabindex='0']").evaluate(
        """(stage, keys) => keys.forEach((key) =>
            stage.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true })))""",
        ["ArrowUp"] * 6 + ["ArrowRight"] * 5 + ["ArrowLeft"],
    )
    shown_head(page, "L7H6").wait_for(timeout=CLICK_MS)
    until_answered(page, [7, 6])
    after = board(page, "counts")
    assert after["cells"] == before["cells"]
    assert after["messages"] - before["messages"] <= 2
    assert after["frames"] - before["frames"] <= 3
    assert page.locator(".wbx-error").is_hidden()

    # A locked head stays, and a set is masked together on a prompt that is typed.
    page.get_by_role("button", name="Lock L7H6").click()
    page.keyboard.down("Shift")
    for head in ((7, 3), (6, 3)):
        click_cell(page, *head)
    page.keyboard.up("Shift")
    click_cell(page, 7, 3)
    assert page.locator(".wbx-name-locked").inner_text() == "L7H6"
    page.get_by_label("prompt to try").fill("how do i open a window")
    page.get_by_label("mask", exact=True).select_option("set")
    page.get_by_role("button", name="Ask with and without").click()
    page.locator(".wbx-reply-masked").wait_for(timeout=CLICK_MS)
    page.wait_for_function("document.querySelector('.wbx-main').nextSibling.disabled", timeout=CLICK_MS)
    assert "L7H3 L6H3 masked" in page.locator(".wbx-replies").inner_text()
    assert len(page.locator(".wbx-reply-base").inner_text()) > 3

    # The replies are stepped through: what is chosen at each step, what the mask changes there, where heads look then.
    page.get_by_label("step on").wait_for(timeout=CLICK_MS)
    page.get_by_label("reply to step through").select_option(label="the masked reply")
    page.get_by_label("step on").click()
    page.get_by_text("From step 2 of the masked reply").wait_for(timeout=CLICK_MS)
    assert "Step 2 of" in page.locator("section", has=page.get_by_label("step on")).last.inner_text()
    assert page.locator(".wbx-arcs path").count() > 0
    page.get_by_role("button", name="back to the prompt").click()
    assert board(page, "state")["reply"] is None

    # A threshold is moved and kept.
    page.get_by_label("threshold").first.focus()
    page.keyboard.press("End")
    page.get_by_role("button", name="Keep as a detector").first.click()
    page.locator(".wbx-toast", has_text="Kept as board.detectors[0]").wait_for(timeout=CLICK_MS)

    # Undo reaches Python, too, and what Python sets is shown.
    page.locator(".wbx-stage[tabindex='0']").focus()
    page.keyboard.press("Control+z")
    shown_head(page, "L7H6").wait_for(timeout=CLICK_MS)
    give_up = time.monotonic() + CLICK_MS / 1000
    chosen = lab.log.parents[1] / "notebooks" / "chosen.json"
    while not chosen.exists() or json.loads(chosen.read_text() or "null") != [[7, 6], [7, 6], [[7, 3], [6, 3]]]:
        assert time.monotonic() < give_up, "Python does not see what was chosen"
        page.wait_for_timeout(200)
    page.get_by_label("number by").select_option("auroc")
    shown_head(page, "L2H2").wait_for(timeout=CLICK_MS)

    # A picture is dropped, and masked together with what is asked about it.
    page.evaluate(
        """async () => {
            const canvas = Object.assign(document.createElement('canvas'), { width: 48, height: 32 });
            const blob = await new Promise((done) => canvas.toBlob(done, 'image/png'));
            const carried = new DataTransfer();
            carried.items.add(new File([blob], 'dropped.png', { type: 'image/png' }));
            const bench = document.querySelector('.wbx-main').closest('section');
            bench.dispatchEvent(new DragEvent('drop', { dataTransfer: carried, bubbles: true, cancelable: true }));
        }"""
    )
    page.get_by_text("dropped.png is the picture now.").wait_for(timeout=CLICK_MS)
    page.get_by_role("button", name="Ask with and without").click()
    page.locator(".wbx-replies figure").nth(1).wait_for(timeout=CLICK_MS)
    page.wait_for_function("document.querySelector('.wbx-main').nextSibling.disabled", timeout=CLICK_MS)
    assert page.locator(".wbx-error").is_hidden()

    # Dark: the theme of JupyterLab, on the fly; nothing in the widget breaks the rules of accessibility there.
    page.evaluate("jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Dark' })")
    page.wait_for_function("document.body.dataset.jpThemeLight === 'false'", timeout=CLICK_MS)
    page.wait_for_timeout(500)
    unsafe = "getComputedStyle(document.querySelector('.wbx')).getPropertyValue('--wbx-unsafe').trim()"
    assert page.evaluate(unsafe) == "#f08a3c"
    found = Axe().run(page, context=".wbx").response["violations"]
    assert not [(one["id"], [node["html"][:150] for node in one["nodes"][:3]]) for one in found]
    assert page.complaints == []
