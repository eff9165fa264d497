"""Replies that are kept: a call that was stopped goes on where it was, and takes nothing that was made otherwise."""

from types import SimpleNamespace

import pytest

from tests.unit.planted_parts import model, prompts
from workbench.errors import DetectorError
from workbench.replies import kept
from workbench.replies.guards import EtaGuard, RefusalRecipe
from workbench.replies.kept import kept_replies

ASKED = prompts(48)


class Answers:
    """Says each prompt's id; stopped after some chunks."""

    def __init__(self, chunks: int = 1000) -> None:
        self.asked: list[int] = []
        self.chunks = chunks

    def __call__(self, places):
        if not self.chunks:
            raise KeyboardInterrupt
        self.chunks -= 1
        self.asked += places
        return [ASKED[i].id for i in places]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(kept, "CHUNK", 7)


def ask(file, answers: Answers, **made_by) -> list[str]:
    return kept_replies(model(), ASKED, answers, made_by=made_by, file=file)


def test_what_was_said_before_a_stop_is_not_asked_again(tmp_path):
    stopped, again = Answers(chunks=3), Answers()
    with pytest.raises(KeyboardInterrupt):
        ask(tmp_path / "replies.jsonl", stopped, guard="mine")
    assert ask(tmp_path / "replies.jsonl", again, guard="mine") == [p.id for p in ASKED]
    assert len(stopped.asked) == 21
    assert sorted(stopped.asked + again.asked) == list(range(len(ASKED)))


def test_replies_made_otherwise_and_damaged_ones_are_asked_again(tmp_path):
    file = tmp_path / "replies.jsonl"
    ask(file, Answers(), guard="mine", recipe=RefusalRecipe("", "no"))
    for recipe, new in ((RefusalRecipe("", "no"), 0), (RefusalRecipe("", "never"), len(ASKED))):
        answers = Answers()
        ask(file, answers, guard="mine", recipe=recipe)
        assert len(answers.asked) == new
    lines = [line for line in file.read_text().splitlines(keepends=True) if line.strip()]
    lines[1] = lines[1].replace("planted", "another", 1)  # a changed reply
    lines[len(ASKED) - 1] = lines[len(ASKED) - 1][:-20]  # and one that a kill cut short
    file.write_text("".join(lines))
    answers = Answers()
    assert ask(file, answers, guard="mine", recipe=RefusalRecipe("", "no")) == [p.id for p in ASKED]
    assert len(answers.asked) == 2


def test_what_cannot_be_told_apart_later_is_not_kept(tmp_path):
    judge = SimpleNamespace(reward=lambda prompt, reply: 0.0)
    ask(tmp_path / "replies.jsonl", Answers(), options=vars(EtaGuard(reply_judge=judge)))
    assert not (tmp_path / "replies.jsonl").exists()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda places: None, "got a NoneType"),
        (lambda places: ["a"], "got 1 of them"),
        (lambda places: [None] * len(places), "a reply is text; got a NoneType"),
    ],
)
def test_what_is_no_reply_is_refused(answer, message):
    with pytest.raises(DetectorError, match=message):
        kept_replies(model(), ASKED, answer, made_by={}, file=None)
