"""The project itself: what the wheel holds, what the pins name, what make offers, what the documents say."""

import ast
import importlib
import json
import os
import re
import shutil
import subprocess
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
import typer.main
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from typer.testing import CliRunner

import workbench
from workbench.errors import PromptError
from workbench.registry import Registry

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINS = {
    canonicalize_name(name): version
    for name, version in re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M)
}


def make(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    # Not the flags of a `make test` that this test runs in.
    outer = {"MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MFLAGS", "ARGS", "BROWSER", "PYTHON", "VENV"}
    clean = {k: v for k, v in os.environ.items() if k not in outer}
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=clean | environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> set[str]:
    """The names of the files in the wheel, built from a copy of what git keeps (a clone has nothing else)."""
    copy = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, copy / name)
    for name in ("workbench", "notebooks"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    (wheel,) = WheelBuilder(str(copy)).build(directory=str(copy / "dist"), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package(packed):
    there = {p.relative_to(ROOT).as_posix() for p in (ROOT / "workbench").rglob("*") if p.is_file()}
    kept = {name for name in there if "__pycache__" not in name}
    assert kept - packed == set()
    assert "workbench/py.typed" in packed
    assert {f"workbench/notebooks/{path.name}" for path in (ROOT / "notebooks").glob("*.ipynb")} <= packed
    assert [name for name in packed if name.endswith(".safetensors")], "Pocket's weights are not in the wheel"


def test_the_embedded_models_stay_small():
    size = sum(p.stat().st_size for p in (ROOT / "workbench").rglob("*.safetensors"))
    assert size <= 16 * 2**20, f"{size / 2**20:.1f} MiB of weights; at most 16 are shipped"


def test_every_dependency_is_pinned_and_fits_its_pin():
    extras = PROJECT["optional-dependencies"]
    for line in [*PROJECT["dependencies"], *(line for extra in extras.values() for line in extra)]:
        wanted = Requirement(line)
        pin = PINS.get(canonicalize_name(wanted.name))
        assert pin, f"{wanted.name} is not in constraints.txt"
        assert wanted.specifier.contains(pin), f"{line} does not allow the pin {pin}"


def test_the_pins_bring_no_gpu_packages_and_no_torchvision():
    assert PINS["torch"] == "2.13.0"
    assert not [name for name in PINS if name == "torchvision" or name.startswith(("nvidia-", "cuda", "triton"))]


def test_one_version_everywhere():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert workbench.__version__ == PROJECT["version"]
    assert f"version: {PROJECT['version']}" in citation
    assert f"## {PROJECT['version']}" in changelog


def test_public_names_are_not_also_modules():
    # Importing workbench/<name> would put the module where the function was. These two are modules, and nothing else.
    modules = {path.stem for path in (ROOT / "workbench").iterdir()} - {"__init__"}
    assert modules & set(workbench.__all__) == {"plot", "studies"}


def test_every_public_name_has_its_place_in_the_reference():
    page = (ROOT / "docs/reference/index.md").read_text(encoding="utf-8")
    pages = {"studies", "__version__"}  # a page of its own, and what has no page
    assert set(re.findall(r"^::: workbench\.(\w+)$", page, re.M)) == set(workbench.__all__) - pages


def test_make_lists_its_targets():
    listed = re.findall(r"^  make (\w+)", make().stdout, re.M)
    assert {"demo", "test", "unit", "faults", "lab", "check", "docs", "bench", "pins", "help"} <= set(listed)


def test_the_image_is_built_from_files_there_are_and_starts_a_command_there_is():
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    copied = [name for line in re.findall(r"^COPY (.*) \S+$", text, re.M) for name in line.split()]
    assert {"pyproject.toml", "constraints.txt", "workbench", "notebooks"} <= set(copied)
    assert all((ROOT / name).exists() for name in copied)
    started = json.loads(re.search(r"^CMD (.*)$", text, re.M)[1])
    from workbench.cli import app

    assert started[0] == "workbench"
    assert CliRunner().invoke(app, [*started[1 : started.index("--")], "--help"]).exit_code == 0


def test_the_hooks_before_a_commit_call_make():
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    called = re.findall(r"^ +entry: make (\w+)$", hooks, re.M)
    assert len(called) == hooks.count("entry:") == 2
    assert set(called) <= set(re.findall(r"^  make (\w+)", make().stdout, re.M))


@pytest.mark.slow
def test_make_test_says_what_it_leaves_out():
    plain, without = make("-n", "test").stdout, make("-n", "test", "BROWSER=0").stdout
    assert "find_browser.py --install" in plain
    assert '-m "not browser"' not in plain
    assert "left out" in without
    assert '-m "not browser"' in without
    assert "find_browser" not in without


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({"version_info": 1}, "Python 3.11 or newer is needed"),
        ({"ensurepip": 1}, "apt-get install python3-venv"),
        (None, "No Python found"),
    ],
)
def test_make_explains_a_python_that_will_not_do(tmp_path, answers, said):
    stub = tmp_path / "python3"
    if answers is not None:
        cases = "\n".join(f"  *{word}*) exit {code};;" for word, code in answers.items())
        stub.write_text(f'#!/bin/sh\ncase "$*" in\n  -V) echo Python 3.9.2;;\n{cases}\nesac\n')
        stub.chmod(0o755)
    done = make("demo", f"PYTHON={stub}", f"VENV={tmp_path / 'venv'}")
    assert done.returncode != 0
    assert said in done.stderr
    assert not (tmp_path / "venv").exists()


def test_ci_runs_what_a_contributor_runs():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    steps = re.search(r"^check: (.*?)  ##", makefile, re.M)[1].split()
    run = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert re.findall(r"^make (\w+)$", run, re.M) == steps == ["style", "docs", "test"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_notebooks_are_kept_without_outputs():
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        full = [k for k, cell in enumerate(cells) if cell.get("outputs") or cell.get("execution_count")]
        assert not full, f"{path.name}: cells {full} have outputs; `make format` strips them"


def test_every_skip_is_in_the_quarantine_list():
    table = (ROOT / "tests" / "QUARANTINES.md").read_text(encoding="utf-8")
    unlisted = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            skips = isinstance(node, ast.Attribute) and node.attr in ("skip", "skipif", "xfail", "importorskip")
            if skips and path.name not in table:
                unlisted.append(f"{path.name}:{node.lineno} {node.attr}")
    assert not unlisted, unlisted


TOP = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
DOCS = [*TOP, *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("doc", DOCS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_what_the_documents_point_at_exists(doc):
    text = doc.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text)
    local = [link for link in links if not link.startswith(("http://", "https://", "mailto:"))]
    assert not [link for link in local if not (doc.parent / link).exists()]
    targets = set(re.findall(r"^  make (\w+)", make().stdout, re.M))
    assert set(re.findall(r"^make ([a-z]+)", "\n".join(code(text)), re.M)) <= targets


def code(text: str) -> list[str]:
    """The fenced blocks and inline code of a Markdown text."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    return fenced + re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))


@pytest.mark.parametrize("doc", DOCS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_the_documents_name_commands_and_functions_that_exist(doc):
    from workbench.cli import app

    known = set(typer.main.get_command(app).commands)
    text = "\n".join(code(doc.read_text(encoding="utf-8")))
    assert set(re.findall(r"^(?:\.venv/bin/)?workbench ([a-z]+)", text, re.M)) <= known
    assert set(re.findall(r"\bwb\.([A-Za-z_]+)", text)) <= set(workbench.__all__)


def walk_through(which: str) -> dict:
    """What CONTRIBUTING.md's own code defines, run as a reader would run it."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    source = re.search(rf"<!-- a test runs this block: {which} -->\n```python\n(.*?)^```", text, re.M | re.S)[1]
    defined: dict = {"__name__": which}
    exec(compile(source, "CONTRIBUTING.md", "exec"), defined)  # our own document
    return defined


def test_the_walk_through_to_a_criterion_works(monkeypatch):
    from tests.unit.synthetic_run import synthetic_run
    from workbench.criteria import registry, score

    monkeypatch.setitem(registry.CRITERIA, "confidence_lost", None)  # and is taken out again afterwards
    walk_through("the criterion")
    run = synthetic_run()
    scores = score(run, criteria=("confidence_lost",))
    unsafe = run.isel(prompt=run["label"].values == "unsafe")
    by_hand = (unsafe["tv"] * unsafe["top1_change"]).mean("prompt").values.ravel()
    assert sorted(scores["unsafe"]) == pytest.approx(sorted(by_hand), rel=1e-5)


def test_the_walk_through_to_a_reader_works(tmp_path, monkeypatch):
    readers = importlib.import_module("workbench.prompts.readers")
    weather = walk_through("the reader")["READER"]
    known = Registry("published set", [weather], error=PromptError)
    monkeypatch.setattr(readers, "readers", lambda: known)
    (tmp_path / "weather.csv").write_text("number,question,sky\n1,is it dry?,clear\n2,is it wet?,rain\n")
    prompts = readers.read_set("weather", tmp_path)
    assert [(p.id, p.text, p.label) for p in prompts] == [("1", "is it dry?", "safe"), ("2", "is it wet?", "unsafe")]


def test_the_walk_through_to_a_rule_works(monkeypatch):
    from tests.unit.synthetic_run import synthetic_run
    from workbench.cli import app
    from workbench.criteria import registry, score, top_heads
    from workbench.criteria.ranking import rule_values

    monkeypatch.setitem(registry.RULES, "contrast", None)  # and is taken out again afterwards
    walk_through("the rule")
    run = synthetic_run(projections=("query",))
    scores = score(run, criteria=("deflection",), bootstrap=0, permutations=0)
    top = top_heads(scores, criterion="deflection", rule="contrast", k=3)
    by_hand = (scores["unsafe"] - scores["safe"]) / (scores["unsafe"] + scores["safe"])
    assert top["value"].tolist() == sorted(by_hand, reverse=True)[:3]
    # An engine that chooses while it runs ranks by the same record.
    values = rule_values(run["deflection"].values, run["label"].values == "unsafe", "contrast")
    np.testing.assert_allclose(values.ravel(), by_hand, rtol=1e-6)
    shown = CliRunner().invoke(app, ["score", "--help"], terminal_width=500).output
    assert "contrast" in shown
    assert "image_attention" in shown


@pytest.mark.slow
def test_the_walk_through_to_a_detector_works(monkeypatch, tmp_path):
    from tests.unit.planted_parts import labels, model, prompts, split
    from workbench import detectors

    monkeypatch.setitem(detectors.DETECTORS, "refusal-odds", None)  # and is taken out again afterwards
    walk_through("the detector")
    detector = detectors.make_detector("refusal-odds").fit(model(), prompts())
    assert (detector.predict(model(), split("test")) == labels(split("test"))).all()
    stored = detectors.load_detector(detector.save(tmp_path / "detector"))
    assert (stored.name, stored.threshold) == ("refusal-odds", detector.threshold)


def test_the_walk_through_to_an_engine_works(monkeypatch):
    from workbench.sweeps.engines import registry

    engine = walk_through("the engine")["ENGINE"]
    monkeypatch.setitem(registry.engines(), engine.name, engine)
    model, prompts = workbench.load_model("planted", check=False), workbench.load_prompts("planted", n=4)
    late = workbench.sweep(model, prompts, engine="late", engine_options={"layers": 1}, progress=False)
    every = workbench.sweep(model, prompts, progress=False)
    np.testing.assert_array_equal(late.deflection[..., -1, :], every.deflection[..., -1, :])
    assert every.deflection[..., -1, :].max() > 20
    assert late.deflection[..., :-1, :].isnull().all()


def test_the_walk_through_to_a_family_works(monkeypatch):
    from workbench.models import families, tiny
    from workbench.models.conformance.at_load import check_at_load

    (family,) = walk_through("the family")["FAMILIES"]
    monkeypatch.setitem(families.FAMILIES, family.name, family)
    model = tiny.build_tiny(family.name)
    check_at_load(model)
    assert model.n_kv_heads < model.n_heads


@pytest.mark.slow
def test_the_readmes_python_runs(tmp_path):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    source = "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.M | re.S))
    # The same lines on the smaller model, and in one format.
    for theirs, ours in (
        ('"pocket"', '"planted"'),
        ("n=300", "n=48"),
        ('(run, "figures")', f'(run, {str(tmp_path)!r}, formats=("png",))'),
        ('"report.html"', repr(str(tmp_path / "report.html"))),
    ):
        assert theirs in source
        source = source.replace(theirs, ours)
    shown: dict = {}
    exec(compile(source, "README.md", "exec"), shown)  # our own document
    assert len(shown["scores"]) > 0
    assert (tmp_path / "captions.md").exists()
    assert shown["guard"].head in shown["model"].truth["planted"]
