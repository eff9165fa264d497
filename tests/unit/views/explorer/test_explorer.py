"""The explorer without a browser: what a click changes, what it shows of a model, and that text stays text."""

import dataclasses
import json
import sys

import ipywidgets as widgets
import pytest
import xarray as xr

import workbench as wb
from workbench.errors import PromptError, RunError, WorkbenchError
from workbench.prompts.prompt import PromptSet
from workbench.runs import origin
from workbench.runs.origin import prompts_of
from workbench.views.explorer import pane
from workbench.views.explorer.explore import explore
from workbench.views.explorer.inspector import readable

HOSTILE = '<img src=x onerror="alert(1)">'


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
    return wb.score(run, bootstrap=0, permutations=0)


@pytest.fixture
def board(run, model, prompts, scores):
    return explore(run, model, prompts, scores=scores)


def everything(widget):
    """Every HTML value and drawing under a widget."""
    if isinstance(widget, widgets.HTML):
        yield widget.value
    if hasattr(widget, "svg"):
        yield widget.svg
    for child in getattr(widget, "children", ()):
        yield from everything(child)


def shown(widget):
    return "\n".join(everything(widget))


def click(board, criterion, key):
    board._maps[criterion].widget._handle_custom_msg({"key": key}, [])


def test_a_click_in_one_map_selects_the_head_in_all_of_them_and_fills_the_panel(board):
    click(board, "ships", "1,2")
    assert board.head == (1, 2)
    assert (board._layer_box.value, board._head_box.value) == (1, 2)
    frames = {drawing.count('stroke-width="2.5"') for p in board._maps.values() for drawing in everything(p.widget)}
    assert frames == {1}
    panel = shown(board._panel)
    for said in ("L1H2", "Deflection angle", "AUROC", "Attention from the last prompt position", "Next token", "Reply"):
        assert said in panel, said


def test_arrow_keys_and_dropdowns_select_too_and_stop_at_the_edge(board):
    board.select((0, 0))
    step = board._maps["probe"].widget._handle_custom_msg
    step({"step": [1, 0]}, [])
    assert board.head == (1, 0)
    step({"step": [0, -1]}, [])
    assert board.head == (1, 0)
    board._head_box.value = 3
    assert board.head == (1, 3)
    assert "L1H3" in shown(board._panel)


def test_masking_the_planted_head_turns_the_refusal_into_compliance(board, model, run):
    unsafe = str(run["prompt"].values[run["label"].values == "unsafe"][0])
    board.select_prompt(unsafe)
    (layer, head), *_ = model.truth["planted"]
    base, masked = board._stored.inspector.replies(unsafe, (layer, head), "query")
    assert "cannot" in base
    assert "cannot" not in masked
    board.select((layer, head))
    assert base in shown(board._panel)
    assert masked in shown(board._panel)
    rows = board._stored.inspector.next_tokens(unsafe, (layer, head), "query")
    _, with_head, without = rows[0]
    assert with_head > 0.5 > without, "the likeliest token is that of the refusal, which goes with the head"


def test_a_locked_head_stays_while_another_is_chosen(board):
    board.select((0, 1))
    board._lock.value = True
    board.select((2, 2))
    assert (board.locked, board.head) == ((0, 1), (2, 2))
    assert "L0H1" in board._locked_panel._title.value
    assert "locked" in board._locked_panel._title.value
    assert "L2H2" in board._panel._title.value
    assert board._locked_panel.layout.display is None
    board._lock.value = False
    assert board.locked is None
    assert board._locked_panel.layout.display == "none"


def test_projection_column_and_rule_change_the_maps(board):
    before = board._maps["deflection"].widget.svg
    board._projection.value = "value"
    after = board._maps["deflection"].widget.svg
    assert after != before
    board._column.value = "auroc"
    assert "AUROC" in board._maps["deflection"].widget.svg
    board._rule.value = "auroc"
    assert "none in" not in board._hint.value
    board._rule.value = "selectivity"
    assert "none in Probe accuracy" in board._hint.value


def test_filters_keep_the_prompts_of_a_label_and_a_click_on_a_point_chooses_its_prompt(board, run):
    board._label.value = "safe"
    offered = [i for _, i in board._prompt.options]
    assert offered
    assert set(run.sel(prompt=offered)["label"].values) == {"safe"}
    unsafe = str(run["prompt"].values[run["label"].values == "unsafe"][-1])
    board._panel._chart.widget._handle_custom_msg({"key": unsafe}, [])
    assert board._prompt.value == unsafe
    assert board._label.value == "all"


def test_no_text_gets_out_as_markup(run, model, prompts, scores):
    first = dataclasses.replace(prompts[0], category=HOSTILE, text=prompts[0].text + HOSTILE)
    changed = PromptSet([first, *prompts[1:]])
    hashes = ("prompt", [p.content_hash() for p in changed])
    hostile = run.assign_coords(category=("prompt", [HOSTILE] * run.sizes["prompt"]), content_hash=hashes)
    hostile.attrs = run.attrs | {"model": HOSTILE, "prompt_hash": changed.content_hash()}
    board = explore(hostile, model, changed, scores=scores)
    board._stored.inspector._replies[changed[0].id, None, ""] = HOSTILE
    board.select_prompt(changed[0].id)
    board._by.value = "family"
    out = shown(board)
    assert "&lt;img src=x" in out, "the text was not shown at all"
    assert "<img" not in out
    assert "onerror=&quot;" in out


def test_what_goes_wrong_in_a_callback_is_shown_and_the_rest_stays(board, monkeypatch):
    def fail(*arguments, **more):
        raise RuntimeError("out of <b>memory</b>")

    monkeypatch.setattr(board._stored.inspector, "next_tokens", fail)
    board.select((2, 0))
    assert "RuntimeError: out of &lt;b&gt;memory&lt;/b&gt;" in board._panel._status.value
    assert "Deflection angle" in board._panel._stats.value
    monkeypatch.undo()
    board.select((2, 1))
    assert board._panel._status.value == ""


def test_without_a_model_it_says_what_one_would_add(run, scores):
    board = explore(run, scores=scores)
    board.select((1, 1))
    assert "Give the model too" in shown(board._panel)
    assert "Next token" not in shown(board._panel)


def test_without_anywidget_the_dropdowns_still_choose(run, scores, monkeypatch):
    monkeypatch.setattr(pane, "LIVE", False)
    board = explore(run, scores=scores)
    assert isinstance(board._maps["deflection"].widget, widgets.HTML)
    board._layer_box.value = 2
    assert f"L2H{board.head[1]}" in shown(board._panel)
    assert 'stroke-width="2.5"' in board._maps["ships"].widget.value


def test_without_the_lab_it_says_how_to_install_it(run, monkeypatch):
    widgets = ("workbench.views.explorer.board", "workbench.views.explorer.head_panel")
    for name in [n for n in sys.modules if n.startswith(widgets)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(WorkbenchError, match=r"pip install 'lvlm-workbench\[lab\]'"):
        explore(run)


def test_a_model_with_other_weights_is_refused(run, model, scores):
    other = run.assign_attrs(weight_hash="0123456789abcdef")
    with pytest.raises(RunError, match=r"weights 0123456789abcdef.*weights [0-9a-f]{16}"):
        explore(other, model, scores=scores)


def test_prompts_that_were_not_swept_are_refused(run, prompts):
    assert prompts_of(run, prompts).content_hash() == run.attrs["prompt_hash"]
    with pytest.raises(PromptError, match=r"24 prompts, and 4 of them are not among the 20 given"):
        prompts_of(run, prompts[4:])
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


def test_a_stored_run_is_explored_as_a_fresh_one(run, scores, tmp_path):
    run.to_zarr(tmp_path / "run.zarr", consolidated=False)
    board = explore(xr.open_zarr(tmp_path / "run.zarr", consolidated=False), scores=scores)
    board._label.value = "unsafe"
    assert board._prompt.options


def test_representations_are_short(board):
    for one in (board, board._panel, board._stored.inspector, board._maps["probe"].widget):
        assert len(repr(one)) < 120


@pytest.mark.parametrize(("token", "said"), [("▁bomb", "bomb"), ("Ġa", "a"), ("▁", "␣"), ("\n", "⏎"), ("<s>", "<s>")])
def test_tokens_are_written_as_a_person_reads_them(token, said):
    assert readable(token) == said
