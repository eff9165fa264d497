"""The pages of the documentation: their Python runs, as a reader would run it."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
# On the smaller model where a page shows the larger one.
SMALLER = (('"pocket"', '"planted"'), ("n=300", "n=48"))


def python_of(page: Path) -> str:
    source = "\n".join(re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S))
    for theirs, ours in SMALLER:
        source = source.replace(theirs, ours)
    return source


PAGES = [page for page in sorted(DOCS.rglob("*.md")) if python_of(page)]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(python_of(page), page.name, "exec"), {"__name__": page.stem})  # our own document


def test_guides_show_python():
    assert {"index", "oh-defense", "transformer-lens", "own-prompts", "own-model"} <= {page.stem for page in PAGES}
