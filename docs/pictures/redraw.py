"""Film the explorer for the README: opens a stored run as a report, walks over its heads, and writes a GIF and a still.

Usage: python docs/pictures/redraw.py RUN.zarr FOLDER. It needs a browser, as the tests do, and no network.
"""

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import workbench as wb  # noqa: E402 - from the checkout this file lies in
from tests.find_browser import find  # noqa: E402

SIZE = {"width": 1280, "height": 800}
WIDE = 960  # pixels of the GIF
SLOW_MS, FAST_MS = 1600, 450


def film(page: Page) -> list[tuple[Image.Image, int]]:
    """(picture, milliseconds) of a person who looks at the first head, walks to its neighbours, and locks one."""
    frames = []

    def take(milliseconds: int) -> None:
        page.wait_for_timeout(350)  # until the page has drawn what was asked of it
        frames.append((Image.open(io.BytesIO(page.screenshot())).convert("RGB"), milliseconds))

    take(SLOW_MS)
    page.get_by_role("application").first.focus()
    for key in ("Enter", "ArrowRight", "ArrowRight", "ArrowDown", "ArrowDown", "Space", "ArrowLeft", "ArrowDown"):
        page.keyboard.press(key)
        take(SLOW_MS if key in ("Enter", "Space") else FAST_MS)
    take(SLOW_MS)
    return frames


def main(run: str, folder: str) -> None:
    """Write `explorer.gif` and `explorer.png` into `folder`."""
    browser = find()
    if browser is None:
        raise SystemExit("No browser was found; tests/find_browser.py says how to get one.")
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        report = wb.save_report(run, Path(place) / "report.html")
        opened = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        page = opened.new_page(viewport=SIZE, offline=True)
        page.goto(report.as_uri())
        page.get_by_role("application").first.wait_for()
        frames = film(page)
        opened.close()
    out = Path(folder)
    frames[0][0].save(out / "explorer.png", optimize=True)
    height = round(WIDE * SIZE["height"] / SIZE["width"])
    small = [picture.resize((WIDE, height), Image.Resampling.LANCZOS) for picture, _ in frames]
    palette = small[0].quantize(128, dither=Image.Dither.NONE)
    first, *others = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in small]
    times = [milliseconds for _, milliseconds in frames]
    first.save(out / "explorer.gif", save_all=True, append_images=others, duration=times, loop=0, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
