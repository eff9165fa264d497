"""A run of 32 × 32 heads with text that would like to be markup, as a report, opened in a browser without a network."""

import numpy as np
import pytest

import workbench as wb
from tests.browser.report_page import DECOY, HOSTILE, PLANTED
from tests.unit.synthetic_run import synthetic_run
from workbench.views.explorer.page import save_report


@pytest.fixture(scope="session")
def run():
    made = synthetic_run(pairs=24, layers=32, heads=32, planted=(PLANTED,), decoy=DECOY, keep_states=False)
    made["deflection"].loc[{"layer": 5, "head": 7}] = np.nan  # a head that was not swept
    made["kl"].loc[{"layer": 5, "head": 7}] = np.nan
    groups = {"category": [HOSTILE] * 48, "family": ["fraud", "weapons"] * 24, "source": ["a"] * 12 + ["b"] * 36}
    return made.assign_coords({name: ("prompt", of) for name, of in groups.items()}).assign_attrs(model=HOSTILE)


@pytest.fixture(scope="session")
def scores(run):
    return wb.score(run, ("deflection", "ships"), permutations=0)


@pytest.fixture(scope="session")
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
