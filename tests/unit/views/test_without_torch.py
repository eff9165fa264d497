"""Stored runs are opened, scored and drawn without torch: in a process that cannot import it."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import workbench as wb

ROOT = Path(__file__).parents[3]
WITHOUT = """
import sys
from importlib.machinery import PathFinder

class Here(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        lacking = ("torch", "transformers", "transformer_lens", "safetensors", "jaxtyping", "einops")
        return None if name.split(".")[0] in lacking else super().find_spec(name, path, target)

sys.meta_path[:] = [Here if finder is PathFinder else finder for finder in sys.meta_path]
import workbench as wb
from workbench.errors import CriterionError, WorkbenchError
"""
LOOK = """
run = wb.open_run(sys.argv[1])
scores = wb.score(run, criteria=("deflection", "ships"), permutations=0)
assert wb.top_heads(scores, criterion="deflection", rule="selectivity", k=1)["layer"].item() == 3
files = wb.save_figures(run, "figures", ("svg",), only="*_query")
assert {"selectivity_deflection_query.svg", "criteria_query.svg"} <= {file.name for file in files}
import matplotlib
matplotlib.use("agg")
wb.plot.maps(scores, criterion="deflection", projection="query")
wb.plot.roc(run, criterion="deflection", projection="query", heads=["L3H1"])
wb.save_report(run, "report.html", scores=scores)
assert wb.explore(run, scores=scores).head == (3, 1)
wb.plot.screen.selectivity(scores, criterion="deflection", projection="query")
trace = wb.open_trace(sys.argv[1].replace("run.zarr", "trace.zarr"))
wb.plot.trace(trace)
assert wb.plot.save_trace_figures(trace, "figures", "svg")
wb.explore(run, scores=scores, trace=trace)
assert wb.save_report(run, "report.html", scores=scores).stat().st_size
from workbench.cli import main
sys.argv = ["workbench", "score", sys.argv[1]]
try: main()
except SystemExit as done: assert not done.code, done.code
assert "torch" not in sys.modules
"""
ASK = """
for ask in (lambda: wb.load_model("planted"), lambda: wb.score(wb.open_run(sys.argv[1]), "probe")):
    try: ask()
    except WorkbenchError as error: assert "pip install lvlm-workbench" in str(error), error
    else: raise AssertionError("no error")
sys.argv = ["workbench", "check", "planted"]
from workbench.cli import main
main()
"""


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "run.zarr"
    model = wb.load_model("planted", check=False)
    prompts = wb.load_prompts("planted", n=24)
    wb.sweep(model, prompts, out=path, progress=False)
    wb.trace(model, prompts[:2], components="residual", window=0, out=path.with_name("trace.zarr"), progress=False)
    return path


def without_torch(code, stored, folder):
    command = [sys.executable, "-W", "error", "-c", WITHOUT + code, str(stored)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, cwd=folder)


@pytest.mark.slow
def test_a_stored_run_is_looked_at_without_torch(stored, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = without_torch(LOOK, stored, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "L3H1" in done.stdout
    assert "probe" not in done.stdout.lower()


@pytest.mark.slow
def test_what_needs_torch_says_how_to_get_it(stored, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = without_torch(ASK, stored, tmp_path)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("Error: This needs ")
    assert "pip install lvlm-workbench" in done.stderr


def test_the_viewer_s_packages_are_lines_of_the_whole_s():
    whole, viewer = (tomllib.loads((ROOT / name / "pyproject.toml").read_text())["project"] for name in (".", "viewer"))
    assert viewer["version"] == whole["version"]
    assert set(viewer["dependencies"]) <= set(whole["dependencies"])
    assert viewer["optional-dependencies"]["lab"] == whole["optional-dependencies"]["lab"]
    left_out = {re.split(r"[><=]", line)[0] for line in set(whole["dependencies"]) - set(viewer["dependencies"])}
    assert left_out == {"torch", "transformers", "transformer-lens", "safetensors", "einops", "jinja2", "jaxtyping"}
