"""A threshold under a distribution, and the few statistics that the browser works out, beside those of Python."""

import json
import re

import numpy as np
import pytest

from tests.browser.report_page import PLANTED, chosen
from workbench.criteria.thresholds import balanced_accuracy, fpr_threshold, kde_threshold, tpr_at_fpr

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]


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


def test_the_slider_moves_the_rates_of_families_and_sources_and_the_point_on_the_roc_curve(opened, run):
    page = opened(f"#head=L{PLANTED[0]}H{PLANTED[1]}")
    page.locator(".wbx-threshold summary").first.click()
    slider = page.get_by_label("threshold").first
    slider.focus()
    for _ in range(40):
        page.keyboard.press("ArrowRight")
    bound = chosen(page)["threshold"]["bound"]
    values = run["deflection"].sel(projection="query", layer=PLANTED[0], head=PLANTED[1]).values
    unsafe = run["label"].values == "unsafe"
    over = values > bound
    assert 0 < over[unsafe].mean() < 1, "a trivial case"
    for tag, names in (("family", ("fraud", "weapons")), ("source", ("a", "b"))):
        for name in names:
            row = page.locator(".wbx-groups tr", has=page.locator("th", has_text=re.compile(f"^{name}$"))).first
            shares = [
                100 * over[mine].mean() if mine.any() else None
                for mine in (side & (run[tag].values == name) for side in (unsafe, ~unsafe))
            ]
            cells = row.locator("td").all_inner_texts()
            assert [float(c.split()[0]) if c != "–" else None for c in cells] == pytest.approx(shares, abs=0.51), name
    said = page.locator(".wbx-roc").first.get_attribute("aria-label")
    detected, alarms = (float(share) for share in re.findall(r"([\d.]+) %", said))
    assert [detected, alarms] == pytest.approx([100 * over[unsafe].mean(), 100 * over[~unsafe].mean()], abs=0.51)
