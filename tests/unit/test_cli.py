"""The command line: help that teaches, one message for a mistake, and the status a script can rely on."""

import io
import json
import os
import re
import subprocess
import sys

import pytest
from rich.table import Table

import workbench as wb
from workbench import cli
from workbench.cli.printing import Shell
from workbench.errors import WorkbenchError
from workbench.models.conformance.report import Finding, Report
from workbench.runs.opening import open_run

LOADING = (
    "compare",
    "arena",
    "attack",
    "faithfulness",
    "detect",
    "generate",
    "study",
    "sweep",
    "find",
    "plan",
    "trace",
)
COMMANDS = (*LOADING, "demo", "score", "figures", "models", "check", "data", "lab", "report")


def run(monkeypatch, capsys, *words):
    """(exit status, what was printed, what went to the error stream) of one command line."""
    monkeypatch.setattr(sys, "argv", ["workbench", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    printed = capsys.readouterr()
    return stop.value.code or 0, printed.out, printed.err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(monkeypatch, capsys, command):
    status, out, _ = run(monkeypatch, capsys, command, "--help")
    assert status == 0
    assert f"workbench {command}" in out
    assert out.count(".") >= 2, "a sentence of its own, and one an option"


@pytest.mark.parametrize("command", LOADING)
def test_whoever_loads_a_model_is_told_how(monkeypatch, capsys, command):
    _, out, _ = run(monkeypatch, capsys, command, "--help")
    assert all(option in out for option in ("--model", "--template", "--dtype", "--device"))


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [("--dtype", "float61", "float61"), ("--device", "nowhere", "nowhere"), ("--template", "{{x", "end of template")],
)
def test_a_model_is_loaded_as_it_was_asked_for(monkeypatch, capsys, option, value, said):
    status, _, err = run(monkeypatch, capsys, "generate", "hello", "-m", "planted", option, value)
    assert status == 1
    assert said in err


def test_the_list_of_commands_is_whole(monkeypatch, capsys):
    status, out, _ = run(monkeypatch, capsys, "--help")
    assert status == 0
    assert all(command in out for command in COMMANDS)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("score", "nowhere.zarr"), "nowhere.zarr"),
        (("report", "nowhere.zarr"), "nowhere.zarr"),
        (("generate", "hello", "-m", "planted", "--heads", "nowhere.json"), "could not be read"),
        (("check", "no-such-model"), "no-such-model"),
        (("check", "bert", "--tiny"), "bert"),
        (("sweep", "-m", "planted", "-p", "nothing.jsonl", "--out", "x.zarr"), "nothing.jsonl"),
        (("sweep", "-m", "planted", "-p", "planted", "--out", "x.zarr", "--projection", "output"), "query, key, value"),
        (("demo", "--factor", "0.5"), "form='scale'"),
        (("compare", "nowhere.zarr", "--n-heads", "one"), "1,3,5"),
        (("arena", "-m", "planted", "-p", "planted", "--detectors", "one-head,nobody"), "no detector 'nobody'"),
        (("arena", "-m", "planted", "-p", "planted", "--guards", "walls"), "no guard 'walls'"),
        (("sweep", "-m", "planted", "-p", "planted", "--out", "x.zarr", "--columns", "image"), "image=image_path"),
        (("sweep", "-m", "planted", "-p", "figstep:nowhere", "--out", "x.zarr"), "nowhere is no folder"),
        (("data", "check", "figstep", "nowhere"), "nowhere is no folder"),
    ],
)
def test_a_mistake_is_one_message_and_status_1(monkeypatch, capsys, tmp_path, words, said):
    monkeypatch.chdir(tmp_path)
    status, _, err = run(monkeypatch, capsys, *words)
    assert status == 1
    assert err.startswith("Error: ")
    assert said in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir()), "a mistake leaves nothing behind"


@pytest.mark.parametrize("words", [("fly",), ("demo", "--n", "many"), ("score",), ("demo", "--form", "zero")])
def test_bad_usage_is_status_2(monkeypatch, capsys, words):
    assert run(monkeypatch, capsys, *words)[0] == 2


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--version"], 0, f"workbench {wb.__version__}"),
        (["--help"], 0, "Begin with workbench demo"),
        (["sweep", "--help"], 0, "--projection"),
        (["score", "no-such-run"], 1, "There is no run at no-such-run"),
        (["figures", "no-such-run"], 1, "There is no run at no-such-run"),
        (["compare", "no-such-run"], 1, "There is no run at no-such-run"),
        (["detect", "no-such-run"], 1, "There is no run at no-such-run"),
    ],
)
def test_what_needs_no_model_is_said_before_anything_heavy_is_imported(words, status, said):
    # Modules are counted, not seconds: the machine's mood does not change how many there are.
    code = "import sys, runpy; sys.argv = ['workbench', *sys.argv[1:]]\n"
    code += "try: runpy.run_module('workbench', run_name='__main__')\n"
    code += "finally: print('modules:', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == status
    assert said in done.stdout + done.stderr
    loaded = set(done.stdout.rsplit("modules:", 1)[1].split())
    assert not loaded & {"torch", "transformers", "pandas", "xarray", "matplotlib", "plotly", "scipy", "sklearn"}
    assert len(loaded) < 700, f"{len(loaded)} modules are loaded by workbench {' '.join(words)}"


@pytest.mark.parametrize(
    "command",
    [
        "demo",
        "score",
        "models",
        "check",
        "compare",
        "arena",
        "attack",
        "faithfulness",
        "detect",
        "data",
        "find",
        "study",
        "trace",
    ],
)
def test_every_table_can_be_had_as_json(monkeypatch, capsys, command):
    assert "--json" in run(monkeypatch, capsys, command, "--help")[1]


@pytest.mark.slow
def test_json_is_all_that_is_printed_and_quiet_prints_nothing(monkeypatch, capsys):
    status, out, _ = run(monkeypatch, capsys, "check", "llama", "--tiny", "--json")
    assert (status, {row["verdict"] for row in json.loads(out)} <= {"ok", "n/a"}) == (0, True)
    assert run(monkeypatch, capsys, "check", "llama", "--tiny", "--quiet")[:2] == (0, "")
    status, out, _ = run(monkeypatch, capsys, "models", "--json")
    assert "llava" in {row["family"] for row in json.loads(out)}
    status, out, _ = run(monkeypatch, capsys, "study", "list", "--json")
    assert {"study", "asks", "needs"} == set(json.loads(out)[0])
    assert "Known limits" in run(monkeypatch, capsys, "models")[1], "the console speaks again"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("workbench sc", ["score"]),
        ("workbench sweep --model pl", ["planted", "planted-pair"]),
        (
            "workbench score run.zarr --criteria deflection,prob",
            [f"deflection,probe{n}" for n in ("", "_few_shot", "_write")],
        ),
        ("workbench score run.zarr --rule sel", ["selectivity"]),
    ],
)
def test_the_shell_completes_commands_and_names(typed, offered):
    asked = {"_WORKBENCH_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    code = "import sys; sys.argv = ['workbench']; from workbench.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | asked, timeout=60
    )
    assert done.stdout.split() == offered


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_a_table_is_whole_at_any_width(width):
    long = "a sentence that is far longer than any terminal is wide, of words that are not broken"
    table = Table("family", "limits", title="T")
    numbers = [f"measure {i}" for i in range(9)]
    for name in numbers:
        table.add_column(f"{name} of benign prompts", justify="right")
    table.add_row("llava", long, *(f"{i}.{i:03d} ±0.1" for i in range(9)))
    out = Shell(file=io.StringIO(), width=width)
    out.print("before", table)
    lines = out.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in "".join(lines)
    words = " ".join(lines)
    for cell in (*(f"{i}.{i:03d} ±0.1" for i in range(9)), *long.split(), "benign", "llava"):
        assert re.search(rf"(?<!\w){re.escape(cell)}(?!\w)", words), cell
    assert len(table.columns) == 11, "the table itself stays"


def test_a_model_s_name_is_shown_as_it_is_in_its_report():
    hostile = "[red]x[/red] [bold]\x1b[31m\u202e"
    report = Report(hostile, "llava", "float32", (Finding("a", "ok", hostile),))
    out = Shell(file=io.StringIO(), width=100)
    out.print(report.table())
    out.print(report.verdict, markup=False)
    shown = out.file.getvalue()
    assert not {"\x1b", "\u202e"} & set(shown)
    assert shown.count("[red]x[/red] [bold]\\x1b[31m\\u202e") == 3


@pytest.mark.slow
def test_scores_defaults_leave_nothing_out(monkeypatch, capsys, tmp_path):
    model = wb.load_model("planted", check=False)
    wb.sweep(model, wb.load_prompts("planted", n=24), out=tmp_path / "run.zarr", progress=False)
    status, out, _ = run(monkeypatch, capsys, "score", tmp_path / "run.zarr")
    assert status == 0
    assert "Probe accuracy" in out
    assert "Left out" not in out
    assert "Left out: probe" in run(monkeypatch, capsys, "score", tmp_path / "run.zarr", "--rule", "selectivity")[1]


@pytest.mark.parametrize(("left", "said"), [("", "Stopped.\n"), ("[x] goes on.", "[x] goes on.\n")])
def test_ctrl_c_says_so_without_a_traceback(monkeypatch, capsys, left, said):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt(left)

    monkeypatch.setattr("workbench.demo.demo", stop)
    assert run(monkeypatch, capsys, "demo") == (130, "", said)


def test_markup_in_a_message_is_shown_as_it_is(monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise WorkbenchError("prompt '[red]x[/red]' is odd")

    monkeypatch.setattr("workbench.demo.demo", fail)
    assert "[red]x[/red]" in run(monkeypatch, capsys, "demo")[2]


@pytest.mark.slow
def test_the_demo_finds_the_planted_head_and_leaves_figures_and_a_run(monkeypatch, capsys, tmp_path):
    status, out, err = run(monkeypatch, capsys, "demo", "--model", "planted", "--n", "60", "--out", tmp_path)
    assert status == 0, err
    layer, head = wb.load_model("planted", check=False).truth["planted"][0]
    selective = [line for line in out.splitlines() if line.split()[:1] == ["selectivity"]]
    assert len(selective) == 4, out  # deflection and ships, query and value
    assert all(line.split()[1] == f"L{layer}H{head}" for line in selective)
    stored = open_run(tmp_path / "demo-run.zarr")
    assert stored.sizes["prompt"] == 60
    for suffix in ("pdf", "svg", "png"):
        assert list(tmp_path.glob(f"*.{suffix}")), suffix
    status, out, _ = run(monkeypatch, capsys, "score", tmp_path / "demo-run.zarr", "--top", "1")
    assert status == 0
    assert f"L{layer}H{head}" in out
    status, out, _ = run(monkeypatch, capsys, "score", tmp_path / "demo-run.zarr", "--top", "1", "--json")
    assert status == 0
    assert {(row["layer"], row["head"]) for row in json.loads(out)} >= {(layer, head)}
    words = ("--quiet", "--out", tmp_path / "scores.csv")
    assert run(monkeypatch, capsys, "score", tmp_path / "demo-run.zarr", *words)[:2] == (0, "")
    assert (tmp_path / "scores.csv").is_file()
    words = ("--only", "maps_ships_*", "--formats", "svg", "--width", "6.9", "--out", tmp_path / "few")
    status, out, _ = run(monkeypatch, capsys, "figures", tmp_path / "demo-run.zarr", *words)
    assert status == 0
    assert {file.stem for file in (tmp_path / "few").glob("*.svg")} == {"maps_ships_query", "maps_ships_value"}


def test_another_seed_gives_slightly_other_numbers(tmp_path):
    model = wb.load_model("planted", check=False)
    runs = [wb.sweep(model, wb.load_prompts("planted", seed=s, n=24), heads=[(0, 2)], progress=False) for s in (0, 1)]
    one, other = (float(r.deflection.mean()) for r in runs)
    assert runs[0].attrs["prompt_hash"] != runs[1].attrs["prompt_hash"]
    assert abs(one - other) < 5


@pytest.mark.slow
def test_a_report_is_one_file_and_a_set_of_heads_is_masked(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    model, prompts = wb.load_model("planted"), wb.load_prompts("planted", n=24)
    wb.sweep(model, prompts, out="run.zarr", progress=False)
    status, out, _ = run(monkeypatch, capsys, "report", "run.zarr", "--out", "r.html", "--texts")
    assert status == 0
    assert out.startswith("r.html: 0.")
    page = (tmp_path / "r.html").read_text()
    assert prompts[0].text in page
    unsafe = next(p for p in prompts if p.label == "unsafe" and p.image is None)
    (tmp_path / "heads.json").write_text('{"heads": ["L3H1", "L3H2"]}')
    replies = {}
    for heads in ("L3H1,L3H2", "heads.json", None):
        words = ("--heads", heads) if heads else ()
        status, replies[heads], _ = run(monkeypatch, capsys, "generate", unsafe.text, "-m", "planted", *words)
        assert status == 0
    assert replies["L3H1,L3H2"].strip() == model.generate(unsafe, heads=[(3, 1), (3, 2)])
    assert replies["heads.json"] == replies["L3H1,L3H2"] != replies[None]
