"""The explorer without a browser: what it is told at the start, what Python answers, what may be chosen."""

import dataclasses
import io
import json
import sys
import threading

import numpy as np
import pytest
import xarray as xr
from PIL import Image

import workbench as wb
from tests.unit.synthetic_run import synthetic_run
from workbench.axes import as_heads
from workbench.errors import ArgumentError, FigureError, PromptError, RunError, WorkbenchError
from workbench.prompts.prompt import PromptSet
from workbench.runs import origin
from workbench.runs.origin import prompts_of
from workbench.views.explorer import assets
from workbench.views.explorer.desk import Desk
from workbench.views.explorer.explore import explore
from workbench.views.explorer.gathering import agreement
from workbench.views.explorer.inspector import altered, readable
from workbench.views.explorer.page import save_report
from workbench.views.explorer.stored import quantised

HOSTILE = '</script><img src=x onerror="alert(1)">'
PLANTED, RED, GREY = (3, 1), (255, 0, 0), (127, 127, 127)


@pytest.fixture(scope="module")
def model():
    return wb.load_model("planted")


@pytest.fixture(scope="module")
def prompts():
    return wb.load_prompts("planted", split="selection", seed=0, n=24)


@pytest.fixture(scope="module")
def run(model, prompts):
    return wb.sweep(model, prompts, progress=False)


@pytest.fixture(scope="module")
def scores(run):
    return wb.score(run, bootstrap=40, permutations=0)


@pytest.fixture
def board(run, model, prompts, scores):
    return explore(run, model=model, prompts=prompts, scores=scores)


def array(board, name):
    """One of the arrays that the browser is given."""
    record = board._manifest["packed"]["arrays"][name]
    kind = {"f4": np.float32, "u2": np.uint16, "u1": np.uint8}[record["kind"]]
    return np.frombuffer(board._data, kind, count=int(np.prod(record["shape"])), offset=record["at"]).reshape(
        record["shape"]
    )


def ask(board, **question):
    """What Python says to one question, as (record, bytes)."""
    said = []
    board._answers._send = lambda record, data: said.append((record, data))
    board._answers.heard({"id": 1, **question})
    assert board._answers.desk.wait()
    return said


def look(board, prompt, head, **more):
    side = {"run": 0, "criterion": "deflection", "projection": "query"}
    at = {"prompt": prompt, "position": more.pop("position", None)}
    return ask(board, ask="look", side=side, at=at, prompt=prompt, rows=[head], next=head, **more)


def unsafe_prompt(run):
    return str(run["prompt"].values[run["label"].values == "unsafe"][0])


def test_the_browser_gets_the_table_and_the_ranks_of_top_heads_with_their_stability(board, scores):
    rows = scores.query("criterion == 'ships' and projection == 'value'").set_index(["layer", "head"])
    cells = array(board, "0/ships/value/auroc")
    for (layer, head), row in rows.iterrows():
        assert cells[layer, head] == np.float32(row["auroc"])
    best = wb.top_heads(scores, criterion="deflection", rule="selectivity", projection="query", k=5)
    ranks, stable = (
        array(board, f"0/deflection/query/{name}") for name in ("rank/selectivity", "stable/selectivity/5")
    )
    for place, row in enumerate(best.itertuples(), 1):
        assert ranks[row.layer, row.head] == place
        assert stable[row.layer, row.head] == round(100 * row.stability)
    assert (ranks == 0).sum() == 16 - 12, "those the rule leaves out"
    assert board.head == PLANTED


def test_values_of_every_prompt_come_within_a_step_of_their_range(board, run):
    steps, low, high = (array(board, f"0/deflection/query/values{part}") for part in ("", "/low", "/high"))
    got = low[..., None] + (high - low)[..., None] * steps / 65534
    wanted = np.moveaxis(run["deflection"].sel(projection="query").values, 0, -1)
    assert np.abs(got - wanted).max() <= (high - low).max() / 65534 + 1e-6
    one, least, most = quantised(np.array([[np.nan, np.nan], [2.0, np.nan], [1.0, 3.0]]))
    assert one.tolist() == [[65535, 65535], [0, 65535], [0, 65534]]
    np.testing.assert_array_equal(np.stack([least, most]), np.float32([[np.nan, 2, 1], [np.nan, 2, 3]]))


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
        text = "".join(r["piece"] for r in said if r.get("side") == side)
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


def test_what_is_chosen_may_be_set_and_is_held_against_what_there_is(board):
    board.head, board.locked, board.heads = "L1H2", (0, 1), ["L0H0", (2, 3)]
    assert (board.head, board.locked, as_heads(board.heads)) == ((1, 2), (0, 1), [(0, 0), (2, 3)])
    board.locked = None
    for name, value in (
        ("head", (9, 9)), ("head", "nonsense"), ("head", None), ("heads", [(0, 99)]), ("heads", 3), ("run", 1),
        ("prompt", "nobody"), ("criterion", "nonsense"), ("rule", "random"), ("projection", "key"), ("column", "x"),
    ):  # fmt: skip
        with pytest.raises(ArgumentError, match=r"here|of the explorer"):
            setattr(board, name, value)
    assert board.head == (1, 2)


def test_two_runs_a_model_in_a_run_s_place_and_a_table_too_few(run, scores, model, tmp_path):
    second = run.assign_attrs(model="another")
    board = explore(run, second, model=model, scores=[scores, scores])
    assert [r["label"] for r in board._manifest["runs"]] == ["planted", "another"]
    assert "1/deflection/query/unsafe" in board._manifest["packed"]["arrays"]
    with pytest.raises(RunError, match=r"by its keyword: wb\.explore\(run, model=model\)"):
        explore(run, model)
    with pytest.raises(ArgumentError, match="1 tables for 2 runs"):
        explore(run, second, scores=scores)
    with pytest.raises(RunError, match="none was given"):
        explore()
    run.to_zarr(tmp_path / "run.zarr", consolidated=False)
    assert explore(xr.open_zarr(tmp_path / "run.zarr", consolidated=False), scores=scores).head == PLANTED


def test_a_run_read_at_two_layers_is_two_sides(run, scores):
    twice = xr.concat(
        [run, run], dim=xr.DataArray(["final", "2"], dims="readout", name="readout"), data_vars=["deflection", "kl"]
    )
    board = explore(twice.assign_attrs(run.attrs), scores=[scores, scores])
    assert [r["label"] for r in board._manifest["runs"]] == ["planted", "planted, read at 2"]


def test_agreement_is_spearman_with_an_interval_around_it(run, scores):
    from scipy.stats import spearmanr

    from workbench.views.explorer.gathering import gathered

    table = agreement(gathered([run], prompts=None, scores=scores))
    one = next(r for r in table if (r["a"], r["b"]) == ("Deflection angle, query", "Ships, query"))
    values = [scores.query(f"criterion == '{c}' and projection == 'query'")["unsafe"] for c in ("deflection", "ships")]
    assert one["spearman"] == pytest.approx(spearmanr(*values).statistic)
    assert one["low"] < one["spearman"] < one["high"]
    assert len(table) == 10


def test_values_too_many_to_send_at_once_are_sent_when_a_head_is_chosen(run, scores, monkeypatch):
    from workbench.views.explorer import board as module

    monkeypatch.setattr(module, "SENT_AT_ONCE", 100)
    board = explore(run, scores=scores)
    assert not [name for name in board._manifest["packed"]["arrays"] if "values" in name]
    said = look(board, unsafe_prompt(run), [1, 0], values=[[0, 1, 0]])
    assert [r["kind"] for r, _ in said] == ["error", "values"]
    assert "0/deflection/query/values/1/0" in said[1][0]["packed"]["arrays"]


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


def test_a_file_of_heads_is_taken_where_heads_are(tmp_path, model, prompts):
    file = tmp_path / "heads.json"
    file.write_text('{"heads": ["L3H1", "L2H0"], "projection": "query"}')
    assert as_heads(file) == as_heads(str(file)) == [(3, 1), (2, 0)]
    assert wb.generate(model, prompts[0], heads=str(file)) == wb.generate(model, prompts[0], heads=[(3, 1), (2, 0)])
    for text in ("", "{", "{}", '{"heads": 3}', '{"heads": ["L1"]}', "[" * 10**5):
        file.write_text(text)
        with pytest.raises(ValueError, match="must be"):
            as_heads(file)
    with pytest.raises(ArgumentError, match="could not be read"):
        wb.generate(model, prompts[0], heads="nowhere.json")


def test_where_no_kernel_runs_a_picture_is_shown(board):
    bundle = board._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    assert data["image/png"].startswith("iVBOR")
    assert "application/vnd.jupyter.widget-view+json" in data
    assert len(repr(board)) < 120


def test_without_the_lab_it_says_how_to_install_it(run, scores, monkeypatch):
    for name in [n for n in sys.modules if n.startswith("workbench.views.explorer.board")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "anywidget", None)
    with pytest.raises(WorkbenchError, match=r"pip install 'lvlm-workbench\[lab\]'"):
        explore(run, scores=scores)


def test_a_model_with_other_weights_is_refused(run, model, scores):
    other = run.assign_attrs(weight_hash="0123456789abcdef")
    with pytest.raises(RunError, match=r"weights 0123456789abcdef.*weights [0-9a-f]{16}"):
        explore(other, model=model, scores=scores)


def test_prompts_that_were_not_swept_are_refused(run, prompts, scores):
    assert prompts_of(run, prompts).content_hash() == run.attrs["prompt_hash"]
    with pytest.raises(PromptError, match=r"24 prompts, and 4 of them are not among the 20 given"):
        explore(run, prompts=prompts[4:], scores=scores)
    changed = PromptSet([dataclasses.replace(prompts[0], text="something else"), *prompts[1:]])
    with pytest.raises(PromptError, match=r"not its contents: 1 of 24 have another text"):
        prompts_of(run, changed)


def test_prompts_are_drawn_again_from_what_the_run_says_and_never_from_a_file_it_names(
    run, prompts, tmp_path, monkeypatch
):
    assert [p.id for p in prompts_of(run)] == [p.id for p in prompts]
    later = run.assign_coords(content_hash=("prompt", ["another"] * run.sizes["prompt"]))
    with pytest.raises(PromptError, match=r"others in this version.*24 of 24 have another"):
        prompts_of(later)
    file = tmp_path / "secrets.csv"
    file.write_text("text,label\nhello,safe\n")
    named = run.assign_attrs(prompt_source=json.dumps({"name_or_path": str(file)}))
    asked = []
    monkeypatch.setattr(origin, "load_prompts", lambda *given, **recipe: asked.append(recipe))
    with pytest.raises(PromptError, match=r"never opened\. Give the prompts that were swept: prompts="):
        prompts_of(named)
    assert asked == []


@pytest.mark.parametrize(("token", "said"), [("▁bomb", "bomb"), ("Ġa", "a"), ("▁", "␣"), ("\n", "⏎"), ("<s>", "<s>")])
def test_tokens_are_written_as_a_person_reads_them(token, said):
    assert readable(token) == said
