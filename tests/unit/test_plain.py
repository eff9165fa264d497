"""Words of prompts, models and runs are data: no command prints an escape, reads markup, or writes a formula."""

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tests.unit.planted_parts import model, prompts
from workbench.cli.detect import compare_command, detect_command, generate_command
from workbench.cli.views import score_command
from workbench.detectors import OneHeadDetector
from workbench.errors import ArgumentError
from workbench.plain import plain, plain_cell, write_table
from workbench.prompts.prompt import Prompt, PromptSet
from workbench.sweeps.sweep import sweep

HOSTILE = (
    "\x1b[31mred",
    "\x1b]8;;http://example.org\x1b\\link\x1b]8;;\x1b\\",
    "[/bold]",
    "[bold]b",
    "[link=http://example.org]l",
    "=cmd|' /C calc'!A0",
    "+1+1",
    "-1+1",
    "@SUM(A1)",
    "\tx",
    "\rx",
    "a\x00b\x07\x08",
    "\u202eback",
    "\u2028line",
    "\x9b31m",
    ":smile:",
)


def hostile(kind: str) -> PromptSet:
    """Pocket-sized prompts whose families, categories and sources are what an enemy would call them."""
    given = list(prompts())
    families = dict(zip(sorted({p.family for p in given}), HOSTILE[: len({p.family for p in given})], strict=True))
    rest = dict(zip(families, HOSTILE[len(families) :], strict=False))
    made = [
        Prompt(**{**vars(p), "family": families[p.family] if kind == "family" else rest.get(p.family, HOSTILE[0])})
        for p in given
    ]
    return PromptSet(Prompt(**{**vars(p), "category": HOSTILE[i % len(HOSTILE)]}) for i, p in enumerate(made))


@pytest.fixture(scope="module", params=["family", "rest"])
def stored(request, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("runs") / "run.zarr"
    sweep(model(), hostile(request.param), projections=("query",), progress=False, keep_states=False, out=path)
    return str(path)


def acts(text: str) -> list[str]:
    """Characters that a terminal would act on."""
    return sorted(
        {char for char in text if (ord(char) < 32 and char != "\n") or 127 <= ord(char) < 160 or char == "\u202e"}
    )


def console() -> Console:
    return Console(width=250, record=True, color_system=None, force_terminal=False)


@pytest.mark.slow
def test_no_command_prints_what_a_terminal_would_act_on(stored, tmp_path, capsys):
    shown = console()
    options = {"criteria": ("deflection",), "rules": ("selectivity",), "n_heads": (1,), "bootstrap": 0}
    compare_command(shown, stored, out=tmp_path / "found.csv", **options)
    detect_command(shown, stored, bootstrap=0, save=tmp_path / "detector")
    asked = {"criteria": ("deflection",), "rule": "selectivity", "top": 2, "seed": 0}
    score_command(shown, stored, **asked, out=tmp_path / "s.csv")
    generate_command(shown, "hello \x1b[31m", model="planted", guard=str(tmp_path / "detector"), show_unguarded=True)
    printed = capsys.readouterr()
    text = shown.export_text() + printed.err
    assert not acts(text)
    assert "[/bold]" in text or "[link=http://example.org]l" in text  # shown, and not read as markup
    assert "\\x1b[31m" in text
    for path in tmp_path.glob("*.csv"):
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        cells = {cell for column in table for cell in table[column] if cell[:1] in tuple("=+@\t\r")}
        assert not cells, path
        assert not acts("".join(table.stack()))


@pytest.mark.slow
def test_a_detector_says_nothing_that_acts_either(stored):
    detector = OneHeadDetector().fit_run(stored)
    detector.model_name = HOSTILE[0]
    with pytest.raises(Exception, match="fitted on") as caught:
        detector.decision_function(model("planted-pair"), prompts()[:1])
    assert not acts(str(caught.value))


@pytest.mark.slow
@given(st.text())
def test_what_is_shown_does_not_act_and_what_is_plain_stays(text):
    shown = plain(text)
    assert not acts(shown)
    shown.encode()
    assert plain(shown) == shown
    if text.isascii() and text.isprintable():
        assert shown == text


def test_lines_stay_where_they_are_asked_for():
    assert plain("a\nb\x1b", keep="\n") == "a\nb\\x1b"
    assert plain("\ud800") == "\\ud800"


@pytest.mark.parametrize("word", ["=1", "+1", "-1", "@a", "\t=1", "\r=1"])
def test_a_formula_gets_an_apostrophe_in_a_csv_and_nowhere_else(word, tmp_path):
    table = pd.DataFrame({"family": [word, "text"], "value": [-1.5, 2.0]})
    assert plain_cell(word).startswith("'")
    read = pd.read_csv(write_table(table, tmp_path / "t.csv"))
    assert read["family"][0].startswith("'")
    assert read["family"][1] == "text"
    assert read["value"].tolist() == [-1.5, 2.0]
    assert pd.read_parquet(write_table(table, tmp_path / "t.parquet"))["family"][0] == word
    assert pd.read_json(write_table(table, tmp_path / "t.json"), dtype=False)["family"][0] == word
    with pytest.raises(ArgumentError, match=r"got 't\\x1b\.xlsx'"):
        write_table(table, tmp_path / "t\x1b.xlsx")
