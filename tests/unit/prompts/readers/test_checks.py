"""What `workbench data check` finds in a set, and never a text of it."""

import io

from tests.builders.published import figstep, vlguard
from workbench.prompts.caveats import overlaps
from workbench.prompts.readers import readers
from workbench.prompts.readers.check import check_set


def test_a_check_says_what_repeats_and_what_differs_and_never_a_text(tmp_path):
    vlguard(tmp_path)
    found = check_set("vlguard", tmp_path)
    assert [f.part for f in found] == ["test", "train"]
    told = " ".join(s for f in found for s in f.sentences)
    assert "5 prompts, published are 1558" in told
    assert "3 unsafe, published are 1000" in told
    assert "3 pictures, published are 1000" in told
    assert "2 texts stand in 4 rows" in told
    assert "row 1, row 2" in told
    assert "vlguard test and vlguard train share 1 pictures and 3 texts" in overlaps(
        {f.prompts.name: f.prompts for f in found}
    )
    assert not any(words in told for words in ("name it", "misuse", "do as"))
    (tmp_path / "test/ads/1.png").unlink()
    (tmp_path / "test/memes/3.png").write_text("broken")
    first, _ = check_set("vlguard", tmp_path)
    assert first.missing == ("row 1", "row 1")
    assert any("cannot be read" in s for s in first.sentences)


def test_many_rows_that_ask_one_thing_are_said(tmp_path):
    figstep(tmp_path)
    sentences = check_set("figstep", tmp_path, part="safebench")[0].sentences
    assert "the 4 unsafe rows ask 1 different texts: a rate on them tests few questions" in sentences


def test_the_command_lists_and_checks(tmp_path, capsys, monkeypatch):
    from rich.console import Console

    from workbench.cli.data import check_command, show_readers

    figstep(tmp_path)
    console = Console(file=io.StringIO(), width=200)
    show_readers(console)
    assert all(name in console.file.getvalue() for name in readers())
    hostile = tmp_path / "data/question/safebench.csv"
    hostile.write_text(hostile.read_text().replace("Topic 1", "[/bold]Topic"))
    check_command(console, "figstep", str(tmp_path), part="safebench", images=())
    printed = console.file.getvalue()
    assert "[/bold]Topic" in printed
    assert "figstep safebench: 4 prompts" in printed
    assert "published are 500" in printed
    assert "Ask 1 1" not in printed
