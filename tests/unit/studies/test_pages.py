"""What `workbench study` writes: whole after a kill, the same bytes every time, and safe to open."""

import base64
import re
import sys
from dataclasses import replace
from importlib import import_module

import pandas as pd
import pytest

import workbench as wb
from tests.unit import planted_parts
from workbench import cli
from workbench.errors import ArgumentError, StudyError
from workbench.prompts.prompt import PromptSet
from workbench.studies import STUDIES, Beside, Findings, Material, StudyRecord, list_studies, make_study, register_study
from workbench.studies.pages import store, stored, write_page
from workbench.views.figures import studies as figures

study_cli = import_module("workbench.cli.study")  # workbench.cli has a command of that name
FEW = ("maps", "head-count", "transfer")


def run(monkeypatch, capsys, *words) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["workbench", "study", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    printed = capsys.readouterr()
    return stop.value.code or 0, printed.out, printed.err


@pytest.fixture
def few(monkeypatch):
    """A registry of three quick studies."""
    kept = {name: STUDIES[name] for name in FEW}
    before = dict(STUDIES)
    STUDIES.clear()
    STUDIES.update(kept)
    yield kept
    STUDIES.clear()
    STUDIES.update(before)


def files(folder) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_the_list_prints_every_name_first_on_its_line(monkeypatch, capsys):
    status, out, _ = run(monkeypatch, capsys, "list")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == [record.name for record in list_studies()]
    assert "another model" in next(line for line in out.splitlines() if line.startswith("shared-heads"))


def test_every_study_says_what_it_asks_runs_and_how_it_fails():
    for record in list_studies():
        assert record.asks.endswith("?")
        assert all(getattr(record, name) for name in ("source", "runs", "fails"))
    wanted = (
        "maps projections masked-success measures time detection defence head-count graded categories reselect "
        "selection-set modality read-out probe-curves transfer degradation shared-heads benign-cost published-split "
        "sahara flow"
    )
    assert set(wanted.split()) <= {record.name for record in list_studies()}


@pytest.mark.slow
def test_a_stopped_call_goes_on_and_a_second_folder_has_the_same_bytes(monkeypatch, capsys, tmp_path, few):
    words = ("all", "-m", "planted", "-n", 48, "--quiet")
    make, calls = study_cli.make_study, []

    def stops_at_the_second(name, material):
        calls.append(name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return make(name, material)

    monkeypatch.setattr(study_cli, "make_study", stops_at_the_second)
    assert run(monkeypatch, capsys, *words, "--out", tmp_path / "a")[0] == 130
    assert (tmp_path / "a" / "maps.json").exists()
    assert not (tmp_path / "a" / "head-count.json").exists()
    assert run(monkeypatch, capsys, *words, "--out", tmp_path / "a")[0] == 0
    assert calls == ["maps", "head-count", "head-count", "transfer"]  # maps was there

    monkeypatch.setattr(study_cli, "make_study", make)
    assert run(monkeypatch, capsys, *words, "--out", tmp_path / "b")[0] == 0
    first, second = files(tmp_path / "a"), files(tmp_path / "b")
    assert set(first) == {f"{name}{end}" for name in FEW for end in (".csv", ".json", ".md", ".pdf")} | {"index.html"}
    assert first == second


@pytest.mark.slow
def test_other_material_is_made_again(tmp_path):
    material = Material(planted_parts.model(), planted_parts.prompts(48), progress=False)
    store(make_study("maps", material), tmp_path, material.key)
    assert stored(STUDIES["maps"], tmp_path, material.key) is not None
    assert stored(STUDIES["maps"], tmp_path, "another") is None
    fewer = Material(planted_parts.model(), planted_parts.prompts(36), progress=False)
    assert fewer.key != material.key
    (tmp_path / "maps.json").write_text("[]")
    with pytest.raises(StudyError, match=r"maps\.json does not hold a study"):
        stored(STUDIES["maps"], tmp_path, material.key)


@pytest.mark.slow
def test_what_is_stored_is_what_was_found(tmp_path):
    material = Material(planted_parts.model(), planted_parts.prompts(144), progress=False)
    study = make_study("selection-set", material)
    again = store(study, tmp_path, material.key)
    assert again.says == study.says
    assert again.found == study.found
    assert again.published.equals(study.published)
    pd.testing.assert_frame_equal(again.table, study.table, check_dtype=False, rtol=1e-5)
    written = pd.read_csv(tmp_path / "selection-set.csv", keep_default_na=False, na_values=[""])
    assert len(written) == len(study.table)
    caption = (tmp_path / "selection-set.md").read_text()
    assert "| what | published | ours | what differs | source |" in caption
    assert "VLSafe against VLGuard" in caption


def test_words_of_others_are_data_on_the_page_and_in_the_caption(tmp_path):
    evil = "<script>alert(1)</script>[x](javascript:y)|*"

    def find(material):
        table = pd.DataFrame({"family": [evil], "value": [0.5], "ci_low": [0.4], "ci_high": [0.6]})
        return Findings(table, f"{evil} comes first.", beside=(Beside(evil, "1", evil, "model", "paper"),))

    def draw(findings):
        return figures.dots(findings.table, rows="family", x="$share$")

    record = StudyRecord("evil", "Is it?", "tests", "nothing", "always", find, draw)
    material = Material(planted_parts.model(), planted_parts.prompts(48), progress=False)
    try:
        study = store(make_study(register_study(record).name, material), tmp_path, "key")
    finally:
        del STUDIES["evil"]
    page = write_page([study], {"other": evil}, tmp_path).read_text()
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 4
    assert "default-src 'none'" in page
    picture = base64.b64decode(re.search(r"base64,([^\"]+)", page).group(1))
    assert picture.startswith(b"<?xml")
    assert b"<script" not in picture
    caption = (tmp_path / "evil.md").read_text()
    assert "<script" not in caption
    assert "[x](javascript" not in caption


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("shared-heads", {}, "needs another model with as many layers and heads"),
        ("degradation", {}, "needs another model"),
        ("graded", {"family": "one"}, "needs unsafe prompts of two families or more: the unsafe prompts name one"),
        ("categories", {"category": ""}, "needs unsafe prompts of two categories .* name none"),
        ("modality", {"image": None}, "needs prompts with pictures: no prompt has one"),
    ],
)
def test_what_a_study_lacks_is_said_by_name(name, change, said):
    prompts = PromptSet(replace(p, **change) for p in planted_parts.prompts())
    with pytest.raises(StudyError, match=said):
        wb.study(name, planted_parts.model(), prompts, progress=False)


def test_an_unknown_study_is_refused_by_name(monkeypatch, capsys, tmp_path):
    with pytest.raises(ArgumentError, match="did you mean 'maps'"):
        wb.study("map", planted_parts.model(), planted_parts.prompts())
    status, _, err = run(monkeypatch, capsys, "map", "-m", "planted", "--out", tmp_path / "out")
    assert status == 1
    assert "There is no study 'map'" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_all_leaves_out_what_cannot_be_made_and_says_so(monkeypatch, capsys, tmp_path, few):
    STUDIES["shared-heads"] = _shared_heads
    status, _, err = run(monkeypatch, capsys, "all", "-m", "planted", "-n", 48, "--out", tmp_path / "out")
    assert status == 0
    assert "left out: The study shared-heads needs another model" in " ".join(err.split())
    assert "needs another model" in (tmp_path / "out" / "index.html").read_text()


_shared_heads = STUDIES["shared-heads"]
