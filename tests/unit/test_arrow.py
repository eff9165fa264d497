"""The arrow prompts → models → runs → sweeps, criteria → … → views; one door a heavy library; nothing unpickled."""

import ast
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "workbench"
parse = cache(ast.parse)  # every file is read under several rules
FILES = sorted(PACKAGE.rglob("*.py"))
ARROW = ("prompts", "models", "runs", "sweeps", "criteria", "finding", "tracing", "detectors", "replies")
ARROW += ("comparison", "attacks", "views")
ARROW += ("plot", "demo", "studies", "testing", "bench", "cli")
SIBLINGS = {"sweeps", "criteria"}  # both stand on runs, and neither on the other
FREE = ("errors", "axes", "checking", "plain", "registry")  # below the arrow: everyone may import them
DOORS = {
    "transformer_lens": ("models/bridge.py", "models/families/"),
    "plotly": ("views/",),
    "ipywidgets": ("views/",),
    "anywidget": ("views/",),
    "matplotlib": ("views/",),
    "ray": ("sweeps/cluster.py",),
    "nnsight": ("bench/",),
}
UNPICKLERS = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def imports(tree: ast.AST, file: Path) -> list[tuple[int, str]]:
    """(line, dotted name) of every import, those inside functions and the relative ones included."""
    package = ["workbench", *file.relative_to(PACKAGE).parent.parts]
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            found += [(node.lineno, f"{module}.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                found.append((node.lineno, str(node.args[0].value)))
    return found


def against_the_arrow(tree: ast.AST, file: Path) -> list[str]:
    inside = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    wrong = []
    for line, name in imports(tree, file):
        root, _, rest = name.partition(".")
        target = rest.split(".")[0]
        if root != "workbench" or inside in ("__init__", "__main__") or target in (*FREE, "__version__"):
            continue
        if inside in FREE:
            wrong.append(f"line {line}: {inside} stands below the arrow and imports {name}")
        elif target not in ARROW:
            if inside not in ("bench", "cli"):  # the two that use the public names as a person would
                wrong.append(f"line {line}: {name} is the whole package; import from the module that has it")
        elif ARROW.index(target) > ARROW.index(inside) or {target, inside} == SIBLINGS:
            wrong.append(f"line {line}: {inside} imports {name}, which is to its right")
    return wrong


def by_another_door(tree: ast.AST, file: Path) -> list[str]:
    path = file.relative_to(PACKAGE).as_posix()
    return [
        f"line {line}: {name} may be imported only in {' and '.join(DOORS[name.split('.')[0]])}"
        for line, name in imports(tree, file)
        if name.split(".")[0] in DOORS and not path.startswith(DOORS[name.split(".")[0]])
    ]


def unsafe_loading(tree: ast.AST, file: Path) -> list[str]:
    wrong = [f"line {line}: {name} unpickles" for line, name in imports(tree, file) if name.split(".")[0] in UNPICKLERS]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        given = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
        if given.get("trust_remote_code") is True:
            wrong.append(f"line {node.lineno}: trust_remote_code is the user's to switch on, by name")
        if given.get("allow_pickle") is True:
            wrong.append(f"line {node.lineno}: allow_pickle=True")
        is_torch = isinstance(node.func, ast.Attribute) and getattr(node.func.value, "id", "") == "torch"
        if is_torch and node.func.attr == "load" and given.get("weights_only") is not True:
            wrong.append(f"line {node.lineno}: torch.load without weights_only=True unpickles")
        if isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec"):
            wrong.append(f"line {node.lineno}: {node.func.id}")
    return wrong


# A registry names its entries, and an entry needs the record it is made of from the module that names it.
REGISTRIES = {"workbench.sweeps.engines.registry"}


def import_graph(sources: dict[str, str]) -> dict[str, set[str]]:
    """Which modules of the package each module imports, under TYPE_CHECKING and inside functions too.

    Modules that a registry names as text count as imported by it.
    """
    graph = {}
    for module, source in sources.items():
        tree = parse(source)
        names = {name for _, name in imports(tree, PACKAGE.parent / (module.replace(".", "/") + ".py"))}
        names |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and node.value in sources}
        graph[module] = {n if n in sources else n.rpartition(".")[0] for n in names} & set(sources) - {module}
    return graph


def circles(graph: dict[str, set[str]]) -> set[tuple[str, ...]]:
    """Sets of modules each of which imports, through others, itself."""

    def reached(start: str) -> set[str]:
        seen, waiting = set(), [start]
        while waiting:
            new = graph[waiting.pop()] - seen
            seen |= new
            waiting += new
        return seen

    reach = {module: reached(module) for module in graph}
    return {
        tuple(sorted(other for other in reach[module] if module in reach[other]))
        for module in graph
        if module in reach[module]
    }


RULES = (against_the_arrow, by_another_door, unsafe_loading)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_file_keeps_the_rule(rule):
    broken = {
        file.relative_to(PACKAGE).as_posix(): wrong
        for file in FILES
        if (wrong := rule(parse(file.read_text(encoding="utf-8")), file))
    }
    assert not broken, json.dumps(broken, indent=1)


@pytest.mark.parametrize(
    ("rule", "path", "code"),
    [
        (against_the_arrow, "models/hooked.py", "from workbench.sweeps.masks import Mask"),
        (against_the_arrow, "criteria/rules.py", "from workbench import detectors"),
        (against_the_arrow, "criteria/rules.py", "from workbench.sweeps.sweep import sweep"),
        (against_the_arrow, "sweeps/tasks.py", "def f():\n    from ..views import theme"),
        (against_the_arrow, "prompts/files.py", "import workbench as wb"),
        (against_the_arrow, "axes.py", "from workbench.prompts import Prompt"),
        (against_the_arrow, "models/hooked.py", "importlib.import_module('workbench.views.theme')"),
        (by_another_door, "criteria/rules.py", "import matplotlib.pyplot as plt"),
        (by_another_door, "models/hooked.py", "from transformer_lens.model_bridge import TransformerBridge"),
        (by_another_door, "sweeps/tasks.py", "def f():\n    import ray"),
        (unsafe_loading, "runs/zarr_store.py", "import pickle"),
        (unsafe_loading, "runs/zarr_store.py", "torch.load(path)"),
        (unsafe_loading, "runs/zarr_store.py", "torch.load(path, weights_only=False)"),
        (unsafe_loading, "runs/zarr_store.py", "np.load(path, allow_pickle=True)"),
        (unsafe_loading, "models/loading.py", "AutoModel.from_pretrained(d, trust_remote_code=True)"),
        (unsafe_loading, "models/loading.py", "eval('1')"),
    ],
)
def test_the_rules_see_a_breach(rule, path, code):
    assert rule(ast.parse(code), PACKAGE / path)


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("views/theme.py", "import matplotlib\nfrom workbench.detectors import OneHeadDetector"),
        ("models/families/llava.py", "from transformer_lens.factories import x\nfrom . import base"),
        ("sweeps/cluster.py", "import ray\nfrom workbench.errors import RunError"),
        (
            "models/loading.py",
            "AutoModel.from_pretrained(d, trust_remote_code=trust)\ntorch.load(p, weights_only=True)",
        ),
        ("detectors/one_head.py", "from workbench.criteria import scores\nmodel.eval()"),
    ],
)
def test_the_rules_let_good_code_pass(path, code):
    assert not [wrong for rule in RULES for wrong in rule(ast.parse(code), PACKAGE / path)]


def modules() -> dict[str, str]:
    named = {".".join(["workbench", *f.relative_to(PACKAGE).with_suffix("").parts]): f for f in FILES}
    return {name.removesuffix(".__init__"): f.read_text(encoding="utf-8") for name, f in named.items()}


def test_no_module_imports_itself_through_others():
    graph = import_graph({name: text for name, text in modules().items() if name != "workbench"})
    assert len(graph) > 100
    assert any("workbench.models.hooked" in named for named in graph.values())
    for registry in REGISTRIES:
        graph[registry] -= {name for name in graph[registry] if registry in graph[name]}
    assert not circles(graph)


def test_circles_are_seen():
    one = "from workbench.b import x"
    hidden = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from workbench import a"
    assert circles(import_graph({"workbench.a": one, "workbench.b": hidden})) == {("workbench.a", "workbench.b")}
    assert not circles(import_graph({"workbench.a": one, "workbench.b": "import torch"}))
    named = import_graph({"workbench.a": "HOMES = {'b': 'workbench.b'}", "workbench.b": "import workbench.a"})
    assert circles(named) == {("workbench.a", "workbench.b")}


def test_no_drawer_for_everything():
    names = {"utils", "util", "common", "helpers", "misc", "tools"}
    assert not [str(p) for p in PACKAGE.rglob("*") if p.stem in names and "__pycache__" not in p.parts]


def test_importing_the_package_loads_nothing_heavy():
    # Modules are counted, not seconds: the machine's mood does not change how many there are.
    code = "import sys; before = set(sys.modules); import workbench; print('\\n'.join(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    loaded = done.stdout.split()
    heavy = {
        "torch",
        "transformers",
        "transformer_lens",
        "pandas",
        "xarray",
        "matplotlib",
        "plotly",
        "sklearn",
        "scipy",
    }
    assert not heavy & set(loaded)
    assert len(loaded) < 150, f"{len(loaded)} modules are loaded by `import workbench`"
