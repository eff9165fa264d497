"""Bad calls of every public function: each is refused with an error of the workbench, and none returns a value."""

import datetime
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import workbench as wb
from tests.builders.models import tiny
from tests.builders.prompts import text_prompts
from tests.unit.synthetic_run import synthetic_run
from workbench.detectors import OneHeadDetector, load_detector
from workbench.errors import WorkbenchError
from workbench.prompts import split_prompts
from workbench.runs.opening import open_run

NAN, INF, LONE, LONG = float("nan"), float("inf"), "\ud800", "x" * 100_000
NAMES = ["nonsense", "", 3, True, b"exact", LONE, LONG, NAN, [], {}, object()]
SHARES = [0, 1, -0.5, 2, NAN, "0.9", None, True, INF]
COUNTS = [-1, 1.5, NAN, INF, "3", True, [1], 10**30, -(10**30), LONE, object()]
THINGS = [None, 3, NAN, True, object(), [], {}, b"pocket", LONE, LONG, datetime.date(2020, 1, 1)]
FLAGS = ["yes", 1.5, None, [], NAN, object()]
HEADS = [
    [(0.0, 1)], [(True, 1)], [(0, 99)], [(99, 0)], [(-1, 0)], [(0, -1)], ["nonsense"], [(0,)], [(0, 1, 2)], "L0H", 3,
    [[]], [(0, NAN)], [("0", "1")], [None], np.zeros((2, 3)), np.array([[0.5, 1.0]]), {0: 1}, ["L0H99"], [LONE],
    object(), True,
]  # fmt: skip
PATHS = ["", " ", 3, b"run", LONE, "x" * 5000, "a\0b", "unknown://run", True, [], object()]
PICTURES = [Image.new("RGB", (0, 0)), Image.new("RGB", (0, 5)), 3, "cat.png", b"", np.zeros((4, 4)), True, [], object()]


@cache
def prompts() -> tuple[wb.Prompt, ...]:
    return tuple(text_prompts())


@cache
def run() -> Any:
    return synthetic_run(pairs=12, keep_states=False)


@cache
def scores() -> pd.DataFrame:
    return wb.score(run(), "deflection", bootstrap=0, permutations=0)


@cache
def traced() -> Any:
    pair = wb.load_prompts("planted", split="test", n=2)
    return wb.trace("planted", pair, components="residual", sources=0, progress=False)


def prompt(**wrong: Any) -> wb.Prompt:
    return wb.Prompt(**{"id": "p", "text": "what is this", "label": "safe", **wrong})


# By function: how it is called with one argument replaced, and by argument what to put there.
TARGETS: dict[str, tuple[Callable[..., Any], dict[str, list[Any]]]] = {
    "Prompt": (
        prompt,
        {
            "id": [None, 3, "", b"p", LONE, NAN, [], LONG],
            "text": [None, 3, b"x", LONE, NAN, [], ""],
            "label": NAMES,
            "image": PICTURES,
            "split": ["nonsense", 3, True, LONE, None, []],
            "variant": [3, None, LONE],
            "family": [3, None, LONE, []],
            "pair_id": [3, None, LONE, []],
        },
    ),
    "PromptSet": (
        lambda items: wb.PromptSet(items),
        {"items": [[3], [None], ["p"], [prompt(), prompt()], 3, None, "ab"]},
    ),
    "Mask": (
        lambda **wrong: wb.Mask(**{"form": "scale", "factor": 0.5, **wrong}),
        {
            "form": [*NAMES, None],
            "grain": [*NAMES, None],
            "positions": [*NAMES, None],
            "factor": [NAN, INF, -INF, "0.5", None, True, [0.5], object(), 1j],
        },
    ),
    "load_model": (
        lambda **wrong: wb.load_model(**{"name": "planted", "device": "cpu", "check": False, **wrong}),
        {
            "name": [
                None,
                3,
                "",
                " ",
                True,
                b"planted",
                LONE,
                "x" * 5000,
                "a\0b",
                "../nowhere",
                "/nowhere/at/all",
                object(),
            ],
            "dtype": ["float99", "int8", "", 3, None, True, LONE],
            "device": ["nonsense", "meta", "cuda:99", 3, True, "", LONE],
            "check": FLAGS,
            "revision": [3, True, []],
        },
    ),
    "load_prompts": (
        lambda **wrong: wb.load_prompts(**{"name_or_path": "planted", "n": 4, **wrong}),
        {
            "name_or_path": [None, 3, "", True, LONE, "x" * 5000, "a\0b", "nonsense", "nonsense.jsonl", ".", object()],
            "n": [0, *COUNTS],
            "seed": COUNTS,
            "split": ["nonsense", "", 3, True, LONE, []],
        },
    ),
    "split_prompts": (
        lambda **wrong: split_prompts(**{"prompts": wb.load_prompts("planted", n=24), **wrong}),
        {
            "prompts": [None, 3, [3], []],
            "fractions": [
                None,
                {},
                {"test": 2.0},
                {"test": -1.0, "selection": 2.0},
                {"nonsense": 1.0},
                {"test": NAN},
                3,
            ],
            "seed": COUNTS,
        },
    ),
    "sweep": (
        lambda **wrong: wb.sweep(
            **{
                "model": tiny(),
                "prompts": prompts(),
                "heads": [(3, 0)],
                "progress": False,
                "keep_states": False,
                **wrong,
            }
        ),
        {
            "model": [*THINGS, "nonsense"],
            "prompts": [None, 3, NAN, True, [], [3], [None], "nonsense", {}, object(), LONE, [prompt(), prompt()]],
            "projections": ["nonsense", (), ("query", "query"), ("nonsense",), 3, True, (3,), None, LONE, (LONE,)],
            "mask": ["nonsense", 3, True, 0.5, [], object(), LONE],
            "engine": NAMES,
            "heads": HEADS,
            "keep_states": ["nonsense", 1.5, None, [], NAN],
            "rows": [0, *COUNTS],
            "seed": COUNTS,
            "progress": FLAGS,
            "repair": FLAGS,
            "out": PATHS,
            "engine_options": [{"nonsense": 1}, 3, "nonsense", [1], True],
            "cluster": [3, True, "", "local:0", "local:x", LONE],
        },
    ),
    "find": (
        lambda **wrong: wb.sweep(tiny(), prompts(), engine="find", engine_options=wrong, progress=False),
        {"directions": [0, *COUNTS], "k": [0, *COUNTS], "rule": NAMES, "criterion": NAMES, "level": SHARES},
    ),
    "trace": (
        lambda **wrong: wb.trace(**{"model": tiny(), "prompts": prompts()[:2], "progress": False, **wrong}),
        {
            "model": THINGS,
            "prompts": [None, 3, True, [], {}, object(), LONE, "nonsense"],
            "components": [*NAMES[:4], [], ["nonsense"], None, object()],
            "heads": HEADS,
            "sources": [-1, 1.5, NAN, INF, "3", True, [1], 10**30, LONE, object(), None],
            "window": [-1, 1.5, NAN, "3", True, 10**30, object()],
            "out": PATHS,
            "rows": [0, *COUNTS],
            "on_error": [*NAMES, None],
            "progress": FLAGS,
        },
    ),
    "open_trace": (lambda path: wb.open_trace(path), {"path": [None, *PATHS, "nonsense.zarr"]}),
    "plot.trace": (
        lambda **wrong: wb.plot.trace(**{"trace": traced(), **wrong}),
        {
            "trace": [*THINGS, run()],
            "component": [*NAMES, None],
            "value": [*NAMES, None],
            "direction": [*NAMES, None],
            "group": [*NAMES, None],
        },
    ),
    "plot.save_trace_figures": (
        lambda **wrong: wb.plot.save_trace_figures(**{"trace": traced(), "out": "figures", "formats": "svg", **wrong}),
        {"trace": [*THINGS, run()], "out": [p for p in PATHS if p != "x" * 5000], "formats": ["jpeg", 3, [], None]},
    ),
    "find_heads": (
        lambda **wrong: wb.find_heads(**{"model": tiny(), "prompts": prompts(), "progress": False, **wrong}),
        {
            "model": [*THINGS, "nonsense"],
            "prompts": [None, 3, NAN, True, [], [3], [None], "nonsense", {}, object(), LONE, [prompt(), prompt()]],
            "k": [0, *COUNTS],
            "criterion": [*NAMES, "probe", "auroc"],
            "rule": [*NAMES, "auroc", "random"],
            "projection": ["nonsense", (), ("query", "query"), ("nonsense",), 3, True, (3,), None, LONE, (LONE,)],
            "level": SHARES,
            "budget": [0, -0.5, NAN, "0.9", None, True, INF],
            "mask": ["nonsense", 3, True, 0.5, [], object(), LONE],
            "seed": COUNTS,
            "progress": FLAGS,
            "out": PATHS,
        },
    ),
    "groups": (
        lambda groups: wb.sweep(tiny(), prompts(), groups=groups, progress=False),
        {
            "groups": [
                [],
                [[]],
                3,
                "nonsense",
                [3],
                [(0, 1)],
                [[(0, 99)]],
                [[(0.5, 1)]],
                [["nonsense"]],
                True,
            ]
        },
    ),
    "score": (
        lambda **wrong: wb.score(
            **{"run": run(), "criteria": "deflection", "bootstrap": 0, "permutations": 0, **wrong}
        ),
        {
            "run": [*THINGS, "nonsense.zarr", pd.DataFrame()],
            "criteria": ["nonsense", "", (), ("nonsense",), 3, None, True, (3,), LONE, NAN, ("deflection", None)],
            "bootstrap": COUNTS,
            "permutations": COUNTS,
            "seed": COUNTS,
        },
    ),
    "top_heads": (
        lambda **wrong: wb.top_heads(
            **{
                "scores": scores(),
                "criterion": "deflection",
                "rule": "selectivity",
                "projection": "query",
                "k": 1,
                **wrong,
            }
        ),
        {
            "scores": [*THINGS, pd.DataFrame(), "nonsense"],
            "criterion": [*NAMES, None, "probe"],
            "rule": [*NAMES, None],
            "projection": NAMES,
            "k": [0, *COUNTS],
            "seed": COUNTS,
            "percentile": [-1, 101, NAN, "80", None, True, INF],
        },
    ),
    "generate": (
        lambda **wrong: wb.generate(**{"model": tiny(), "prompt": prompts()[0], "max_new_tokens": 1, **wrong}),
        {
            "model": [*THINGS, "nonsense"],
            "prompt": [None, 3, NAN, True, object(), [], {}, b"x", prompts()],
            "max_new_tokens": [0, *COUNTS],
            "guard": [3, "nonsense", True, object(), OneHeadDetector(), []],
            "on_error": [*NAMES, None],
        },
    ),
    "arena": (
        lambda **wrong: wb.arena(
            **{"model": "planted", "prompts": "planted", "detectors": "direction", "costed": 0, "bootstrap": 0, **wrong}
        ),
        {
            "model": [*THINGS, "nonsense"],
            "prompts": [None, 3, "nonsense", [], [3], object()],
            "detectors": [None, 3, "nonsense", (), [3], "direction:layer", "direction:layer=x", object()],
            "guards": [3, "nonsense", [3], object()],
            "bootstrap": COUNTS,
            "costed": COUNTS,
            "max_new_tokens": [0, *COUNTS],
            "seed": [-1, 1.5, "3", True, NAN],
        },
    ),
    "state": (
        lambda **wrong: tiny().state(**{"prompt": prompts()[0], "heads": [(0, 1)], **wrong}),
        {
            "prompt": [None, 3, "x", []],
            "heads": HEADS,
            "projection": [*NAMES, None],
            "mask": ["nonsense", 3, True, object()],
        },
    ),
    "save_figures": (
        lambda **wrong: wb.save_figures(
            **{"run": run(), "out": "figures", "formats": ("png",), "scores": scores(), **wrong}
        ),
        {
            "run": [*THINGS, "nonsense.zarr"],
            "out": ["", " ", 3, b"run", LONE, "x" * 5000, "a\0b", True, [], object()],
            "formats": [(), ("exe",), "exe", 3, None, True, (3,), LONE, ("../x",)],
            "scores": [3, "nonsense", pd.DataFrame(), [], True],
        },
    ),
    "study": (
        lambda **wrong: wb.study(**{"name": "maps", "model": tiny("llama"), "prompts": prompts(), **wrong}),
        {
            "name": NAMES,
            "model": [*THINGS[:-1], "x" * 5000],
            "prompts": [None, 3, [3], [], "nonsense"],
            "others": [3, [3], [None], ["nonsense"], NAN, object()],
            "seed": COUNTS,
            "progress": FLAGS,
        },
    ),
    "explore": (
        lambda **wrong: wb.explore(wrong.pop("run", run()), **{"scores": scores(), **wrong}),
        {"run": [*THINGS, "nonsense.zarr"], "model": [3, True, object(), []], "prompts": [3, [3], True, object()]},
    ),
    "save_report": (
        lambda **wrong: wb.save_report(**{"run": run(), "path": "report.html", "scores": scores(), **wrong}),
        {
            "run": [*THINGS, "nonsense.zarr"],
            "path": [*PATHS, "report.pdf", "nowhere/report.html"],
            "prompts": [3, [3], True, object()],
            "scores": [3, "nonsense", pd.DataFrame(), [3]],
            "texts": FLAGS,
            "pictures": [3, "nobody", ["nobody"], [3], True],
            "k": [0, *COUNTS],
        },
    ),
    "OneHeadDetector": (
        lambda **wrong: OneHeadDetector(**wrong),
        {
            "projection": [*NAMES, None],
            "criterion": [*NAMES, None, "probe", "svd_left"],
            "rule": [*NAMES, None],
            "k": [0, *COUNTS],
            "head": [(0.5, 1), (True, 0), (-1, 0), "nonsense", 3, (0,), (0, NAN)],
            "threshold": ["nonsense", NAN, None, True, [], INF],
            "seed": COUNTS,
            "mask": ["nonsense", 3, True],
        },
    ),
    "fit": (
        lambda **wrong: OneHeadDetector().fit(**{"model": tiny(), "prompts": prompts(), **wrong}),
        {"model": THINGS, "prompts": [None, 3, NAN, True, [], [3], "nonsense", object()]},
    ),
    "open_run": (lambda path: open_run(path), {"path": [None, *PATHS, "nonsense.zarr"]}),
    "load_detector": (lambda path: load_detector(path), {"path": [None, *PATHS, "nonsense"]}),
}
SAME_EVERYWHERE = {  # functions, as they are called with a keyword they do not have
    name: call
    for name, (call, arguments) in TARGETS.items()
    if name in ("load_model", "load_prompts", "sweep", "score")
}


def cases() -> Iterator[Any]:
    for name, (call, arguments) in TARGETS.items():
        for argument, values in arguments.items():
            for number, value in enumerate(values):
                yield pytest.param(call, argument, value, id=f"{name}-{argument}-{number}")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("call", "argument", "value"), [*cases()])
def test_bad_call(call, argument, value, tmp_path):
    with pytest.raises(WorkbenchError) as refused:
        call(**{argument: value})
    said = str(refused.value)
    assert 20 < len(said) < 3000, said[:200]
    said.encode()  # or it could not be printed
    assert not list(tmp_path.iterdir()), "a call that was refused left something"


@pytest.mark.parametrize("name", SAME_EVERYWHERE)
def test_unknown_keyword(name):
    with pytest.raises((WorkbenchError, TypeError), match="nonsense"):
        SAME_EVERYWHERE[name](nonsense=1)
