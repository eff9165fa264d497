"""The report: what is written into it, and what never is; and the script it carries."""

import dataclasses
import json

import pytest

from tests.unit.synthetic_run import synthetic_run
from workbench.errors import ArgumentError, FigureError, PromptError
from workbench.prompts.prompt import PromptSet
from workbench.views.explorer import assets
from workbench.views.explorer.page import save_report

HOSTILE = '</script><img src=x onerror="alert(1)">'


@pytest.mark.slow
def test_no_text_gets_out_as_markup(run, model, prompts, scores, tmp_path):
    first = dataclasses.replace(prompts[0], category=HOSTILE, text=prompts[0].text + HOSTILE)
    changed = PromptSet([first, *prompts[1:]])
    hashes = ("prompt", [p.content_hash() for p in changed])
    hostile = run.assign_coords(category=("prompt", [HOSTILE] * run.sizes["prompt"]), content_hash=hashes)
    hostile.attrs = run.attrs | {"model": HOSTILE, "prompt_hash": changed.content_hash()}
    page = save_report(hostile, tmp_path / "r.html", prompts=changed, scores=scores, texts=True).read_text()
    assert "\\u003c/script>\\u003cimg src=x" in page, "the text was not shown at all"
    assert page.count("</script>") == 3
    assert "<img" not in page
    assert "a bomb" not in save_report(hostile, tmp_path / "r.html", prompts=changed, scores=scores).read_text()
    # The browser side writes words as text: nothing of it makes elements of strings.
    for name in assets.MODULES:
        source = (assets.STATIC / f"{name}.js").read_text()
        assert not [
            word
            for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(")
            if word in source
        ]


@pytest.mark.slow
def test_a_report_says_what_it_lacks(run, scores, tmp_path):
    made = synthetic_run(pairs=12)
    with pytest.raises(PromptError, match="keeps ids, not prompts"):
        save_report(made, tmp_path / "r.html", texts=True)
    with pytest.raises(PromptError, match="no prompt 'nobody' with a picture"):
        save_report(run, tmp_path / "r.html", scores=scores, pictures=["nobody"])
    with pytest.raises(FigureError, match="cannot be written"):
        save_report(run, tmp_path / "nowhere" / "r.html", scores=scores)
    with pytest.raises(ArgumentError, match=r"path must be the path of an \.html file"):
        save_report(run, tmp_path / "r.pdf", scores=scores)


def test_values_that_would_make_a_report_too_large_are_left_out_by_name(run, scores, tmp_path, monkeypatch):
    from workbench.views.explorer import page

    monkeypatch.setattr(page, "MOST_BYTES", 2**19)
    text = save_report(run, tmp_path / "r.html", scores=scores).read_text()
    manifest = json.loads(text.split('id="manifest">')[1].split("</script>")[0])
    assert manifest["left_out"] == ["planted: deflection", "planted: ships"]


def test_the_modules_are_modules_and_each_comes_after_what_it_imports():
    seen = set()
    for name in assets.MODULES:
        source = (assets.STATIC / f"{name}.js").read_text()
        asked = {
            line.split('"./')[1].removesuffix('.js";') for line in source.splitlines() if line.startswith("import ")
        }
        assert asked <= seen, f"{name} stands before {asked - seen}"
        seen.add(name)
        assert len(source.splitlines()) <= 400
    assert {p.stem for p in assets.STATIC.glob("*.js")} == seen
    assert "import {" not in assets.script()
    assert "\nexport " not in assets.script()
