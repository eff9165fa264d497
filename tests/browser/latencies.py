"""How long the explorer takes, at several sizes: python -m tests.browser.latencies. The best of several; no test.

What is measured is the browser's own work from a choice to the end of the drawing it asks for: JavaScript, layout and
the strokes, without the screen's own refresh. A machine that does other things meanwhile shows larger numbers.
"""

import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

import workbench as wb
from tests.find_browser import find
from tests.unit.synthetic_run import synthetic_run

SIZES = ((8, 8), (32, 32), (80, 64))
REPEATS = 15
# What a person does, and the change it makes at step i.
ACTIONS = {
    "highlight (a key, a click)": "{ head: [i % layers, (7 * i) % heads] }",
    "hover": "{ hover: [i % layers, (5 * i) % heads] }",
    "another colour": "{ column: i % 2 ? 'auroc' : 'safe' }",
    "another rule": "{ rule: i % 2 ? 'auroc' : 'selectivity' }",
}
TIMED = """async ([change, repeats]) => {
  const { store, data } = document.getElementById('workbench').workbench;
  const [layers, heads] = data.shape(0);
  const patch = new Function('i', 'layers', 'heads', `return ${change}`);
  const times = [];
  for (let i = 1; i <= repeats; i += 1) {
    let begun;
    requestAnimationFrame(() => { begun = performance.now(); });
    const before = performance.now();
    store.set(patch(i, layers, heads));
    const atOnce = performance.now() - before;
    // Callbacks of a frame run in the order in which they were asked for: those that draw lie between the two here.
    const drawn = await new Promise((done) => requestAnimationFrame(() => {
      document.body.getBoundingClientRect(); // the layout that a screen would wait for
      done(performance.now() - begun);
    }));
    times.push(atOnce + drawn);
    await new Promise((done) => setTimeout(done, 200));
  }
  return times.sort((a, b) => a - b);
}"""


def main() -> None:
    """Print a table of milliseconds: best and middle of each action at each size."""
    browser_path = find()
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox", "--disable-gpu"])
        for layers, heads in SIZES:
            run = synthetic_run(
                pairs=30, layers=layers, heads=heads, planted=((layers // 2, 3),), decoy=(0, 3), keep_states=False
            )
            scores = wb.score(run, ("deflection", "ships", "js"), permutations=0)
            report = wb.save_report(run, Path(place) / "report.html", scores=scores)
            page = browser.new_page(viewport={"width": 1280, "height": 1000})
            page.goto(report.as_uri())
            page.locator(".wbx-name-head").first.wait_for()
            for name, change in ACTIONS.items():
                times = page.evaluate(TIMED, [change, REPEATS])
                words = f"best {times[0]:6.1f} ms   middle {times[len(times) // 2]:6.1f} ms"
                print(f"{layers:3} x {heads:2}  {name:28} {words}")
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
