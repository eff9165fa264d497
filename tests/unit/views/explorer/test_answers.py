"""What Python answers the browser, in which order, and what goes wrong."""

import dataclasses
import io
import threading

import numpy as np
import pytest
from PIL import Image

import workbench as wb
from tests.unit.views.explorer.asking import ask, look, unsafe_prompt
from workbench.errors import PromptError
from workbench.views.explorer.desk import Desk
from workbench.views.explorer.explore import explore
from workbench.views.explorer.inspector import altered, readable

RED, GREY = (255, 0, 0), (127, 127, 127)


@pytest.mark.slow
def test_a_look_says_where_a_head_looks_and_what_it_does(board, model, run, prompts):
    prompt = unsafe_prompt(run)
    said = {record["kind"]: (record, data) for record, data in look(board, prompt, [3, 1], values=[[0, 3, 1]])}
    values = np.frombuffer(said["values"][1], np.float32, count=24)
    np.testing.assert_allclose(values, run["deflection"].sel(projection="query", layer=3, head=1), rtol=1e-6)
    asked = next(p for p in prompts if p.id == prompt)
    n = model.encode(asked).n_tokens
    rows = np.frombuffer(said["rows"][1], np.float32).reshape(4, n)
    np.testing.assert_allclose(rows, model.attention(asked)[3], atol=1e-6)
    assert said["prompt"][0]["about"]["text"] == asked.text
    _, with_head, without = said["next"][0]["rows"][0]
    assert with_head > 0.5 > without, "the likeliest token is that of the refusal, which goes with the head"


@pytest.mark.slow
def test_every_position_and_the_whole_pattern_are_one_thing(board, model, run):
    prompt = unsafe_prompt(run)
    ((record, data),) = ask(board, ask="pattern", prompt=prompt, head=[2, 0])
    n = len(board._answers._inspectors[0].base(prompt).encoded[0].tokens)
    cells = np.frombuffer(data, np.uint16).reshape(n, n) / 65535
    np.testing.assert_allclose(cells.sum(1), 1, atol=n / 65535)
    assert record["key"] == f"{prompt}/2,0"
    for position in (2, n - 1):
        said = {r["kind"]: d for r, d in look(board, prompt, [2, 0], position=position)}
        row = np.frombuffer(said["rows"], np.float32).reshape(4, n)[0]
        np.testing.assert_allclose(row, cells[position], atol=1e-5)
    ((record, _),) = ask(board, ask="box", prompt=prompt, position=None, keys=[0, 1])
    sums = model.attention(board._answers._inspectors[0].prompts[prompt])[:, :, :2].sum(-1)
    assert tuple(record["heads"][0]) == divmod(int(sums.argmax()), 4)
    assert record["shares"][0] == pytest.approx(float(sums.max()), rel=1e-5)


def test_a_set_is_masked_together_and_replies_come_in_pieces(board, model, run):
    prompt = unsafe_prompt(run)
    said = [r for r, _ in ask(board, ask="try", serial=7, prompt=prompt, heads=[[3, 1], [3, 2]], projection="query")]
    asked = board._answers._inspectors[0].prompts[prompt]
    for side, heads in (("base", []), ("masked", [(3, 1), (3, 2)])):
        text = "".join(r.get("piece", "") for r in said if r.get("side") == side)
        assert text.strip() == model.generate(asked, heads=heads, max_new_tokens=48)
    measures = next(r["measures"] for r in said if "measures" in r)
    base, masked = model.state(asked), model.state(asked, heads=[(3, 1), (3, 2)])
    angle = np.rad2deg(np.arccos(float((base @ masked) / base.norm() / masked.norm())))
    assert measures["deflection"] == pytest.approx(angle, rel=1e-4)
    assert said[-1]["done"] is True
    halved = [
        r
        for r, _ in ask(
            board, ask="try", serial=8, prompt=prompt, heads=[[3, 1]], projection="query", form="scale", factor=1.0
        )
    ]
    assert next(r["measures"] for r in halved if "measures" in r) == {"deflection": 0.0, "ships": 0.0}


def test_a_reply_is_stepped_through_as_it_was_decoded(board, model, run):
    prompt = unsafe_prompt(run)
    said = [r for r, _ in ask(board, ask="try", serial=9, prompt=prompt, heads=[[3, 1]], projection="query")]
    steps = {r["side"]: r["steps"] for r in said if "steps" in r}
    at_once = next(r["measures"] for r in said if "measures" in r)
    asked = board._answers._inspectors[0].prompts[prompt]
    for side, column in (("base", 1), ("masked", 2)):
        of = steps[side]
        likeliest = [max(rows, key=lambda row: row[column])[0] for rows in of["next"]]
        assert likeliest == of["tokens"], "what is likeliest at a step is what was decoded there"
        # The other road: the reply so far stands in the prompt as the beginning of the reply.
        so_far = dataclasses.replace(asked, prefill=" ".join(of["tokens"][:2]))
        assert model.encode(so_far).n_tokens == of["first"] + 3
        base, masked = model.state(so_far), model.state(so_far, heads=[(3, 1)])
        angle = np.rad2deg(np.arccos(min(1.0, float((base @ masked) / base.norm() / masked.norm()))))
        assert of["measures"][2]["deflection"] == pytest.approx(angle, abs=0.1)  # float32 knows no small angle better
        assert of["measures"][0] == pytest.approx(at_once, rel=1e-3)
        assert of["measures"][0]["deflection"] > 10 * of["measures"][2]["deflection"], "it says when the head matters"
        seen = {r["kind"]: d for r, d in look(board, of["reply"], [3, 1], position=of["first"] + 2)}
        rows = np.frombuffer(seen["rows"], np.float32).reshape(4, -1)[:, : of["first"] + 3]
        wanted = model.attention(so_far)[3].numpy()
        others = [0, 2, 3]
        np.testing.assert_allclose(rows[others], wanted[others], atol=1e-5)
        if side == "base":
            np.testing.assert_allclose(rows, wanted, atol=1e-5)
        else:
            seen = {r["kind"]: d for r, d in look(board, of["reply"], [3, 1], position=of["first"])}
            even = np.frombuffer(seen["rows"], np.float32).reshape(4, -1)[1, : of["first"] + 1]
            np.testing.assert_allclose(even, 1 / len(even), atol=1e-6)  # so looks a head whose query is off
            assert model.attention(asked)[3, 1].max() > 0.5, "a trivial case"
    assert len(steps["masked"]["tokens"]) > 3


def test_a_threshold_is_kept_as_a_detector(board, model, run):
    asked = {"run": 0, "criterion": "deflection", "projection": "query", "head": [3, 1], "bound": 12.5}
    ((record, _),) = ask(board, ask="keep", **asked)
    assert record["words"].startswith("Kept as board.detectors[0]")
    (kept,) = board.detectors
    assert (kept.head, kept.threshold) == ((3, 1), 12.5)
    tried = list(board._answers._inspectors[0].prompts.values())[:4]
    values = run["deflection"].sel(projection="query", layer=3, head=1).values[:4]
    np.testing.assert_allclose(kept.decision_function(model, tried), values, rtol=1e-4)


def test_a_typed_prompt_and_a_blank_picture():
    prompt = wb.Prompt(id="p", text="a", image=Image.new("RGB", (8, 4), "red"))
    assert altered(prompt, "b", "keep").text == "b"
    assert altered(prompt, "", "blank").image.getpixel((0, 0)) == GREY
    assert altered(prompt, "", "blank").image.size == (8, 4)
    assert altered(prompt, "", "none").image is None
    boxed = altered(prompt, "", "box", box=[0.5, 0, 1, 0.5]).image
    assert [boxed.getpixel(at) for at in ((3, 0), (4, 0), (7, 1), (7, 2))] == [RED, GREY, GREY, RED]
    assert prompt.image.getpixel((7, 0)) == RED
    file = io.BytesIO()
    Image.new("RGB", (3, 5), "blue").save(file, format="PNG")
    assert altered(prompt, "", "own", files=[file.getvalue()]).image.size == (3, 5)
    with pytest.raises(PromptError, match="the picture given"):
        altered(prompt, "", "own", files=[b"no picture"])


def test_a_criterion_is_scored_when_it_is_asked_for(board, run):
    ((record, data),) = ask(board, ask="score", run=0, criterion="tv", rule="selectivity", k=5)
    assert "0/tv/query/unsafe" in record["packed"]["arrays"]
    assert [c["scored"] for c in record["criteria"] if c["name"] == "tv"] == [True]
    at = record["packed"]["arrays"]["0/tv/query/unsafe"]["at"]
    cells = np.frombuffer(data, np.float32, count=16, offset=at).reshape(4, 4)
    unsafe = run["label"].values == "unsafe"
    np.testing.assert_allclose(cells, run["tv"].sel(projection="query").values[unsafe].mean(0), rtol=1e-6)
    board.criterion = "tv"


def test_what_goes_wrong_is_said_and_the_rest_goes_on(board, monkeypatch, run):
    def fail(*arguments, **more):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(board._answers._inspectors[0], "next_tokens", fail)
    said = [r for r, _ in look(board, unsafe_prompt(run), [2, 0])]
    assert said[-1]["error"] == "This part failed (RuntimeError: out of memory). The rest still works."
    assert "rows" in [r["kind"] for r in said]
    monkeypatch.undo()
    assert look(board, unsafe_prompt(run), [2, 1])[0][0]["error"] == ""
    assert ask(board, ask="nonsense") == []
    board._answers.heard("nonsense")


def test_of_each_kind_only_the_newest_waits_and_urgent_ones_come_first():
    gate, begun, answered = threading.Event(), threading.Event(), []

    def answer(kind, question):
        begun.set()
        gate.wait(10)
        answered.append((kind, question["n"]))

    desk = Desk(answer, ("look", "try"))
    desk.ask("try", {"n": 0})
    assert begun.wait(10)
    for n in range(1, 13):
        desk.ask("look", {"n": n})
    desk.ask("try", {"n": 13})
    gate.set()
    assert desk.wait(10)
    assert answered == [("try", 0), ("look", 12), ("try", 13)]


def test_a_reply_lets_a_look_through_and_goes_on_and_can_be_stopped():
    log, at_work, asked = [], threading.Event(), threading.Event()

    def answer(kind, question):
        log.append((kind, "begins"))
        if kind == "try":
            at_work.set()
            asked.wait(10)
            desk.give_way("try")
            if desk.stopped("try"):
                return
        log.append((kind, "ends"))

    desk = Desk(answer, ("look", "try"))
    desk.ask("try", {})
    assert at_work.wait(10)
    desk.ask("look", {})
    asked.set()
    assert desk.wait(10)
    assert log == [("try", "begins"), ("look", "begins"), ("look", "ends"), ("try", "begins"), ("try", "ends")]
    log.clear(), at_work.clear(), asked.clear()
    desk.ask("try", {})
    assert at_work.wait(10)
    desk.stop("try")
    asked.set()
    assert desk.wait(10)
    assert log == [("try", "begins")]


def test_values_too_many_to_send_at_once_are_sent_when_a_head_is_chosen(run, scores, monkeypatch):
    from workbench.views.explorer import board as module

    monkeypatch.setattr(module, "SENT_AT_ONCE", 100)
    board = explore(run, scores=scores)
    assert not [name for name in board._manifest["packed"]["arrays"] if "values" in name]
    said = look(board, unsafe_prompt(run), [1, 0], values=[[0, 1, 0]])
    assert [r["kind"] for r, _ in said] == ["error", "values"]
    assert "0/deflection/query/values/1/0" in said[1][0]["packed"]["arrays"]


@pytest.mark.parametrize(("token", "said"), [("▁bomb", "bomb"), ("Ġa", "a"), ("▁", "␣"), ("\n", "⏎"), ("<s>", "<s>")])
def test_tokens_are_written_as_a_person_reads_them(token, said):
    assert readable(token) == said
