"""Bad calls of what reads runs and traces, fits detectors, draws and makes studies: each is refused likewise."""

import pandas as pd
import pytest

import workbench as wb
from tests.builders.models import tiny
from tests.faults.bad_calls import (
    COUNTS,
    FLAGS,
    INF,
    LONE,
    NAMES,
    NAN,
    PATHS,
    THINGS,
    Targets,
    cases,
    check_refused,
    prompts,
    run,
    scores,
    traced,
)
from workbench.detectors import OneHeadDetector, load_detector
from workbench.errors import WorkbenchError
from workbench.runs.opening import open_run

TARGETS: Targets = {
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


@pytest.mark.parametrize(("call", "argument", "value"), [*cases(TARGETS)])
def test_bad_call(call, argument, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_refused(call, argument, value, tmp_path)


def test_unknown_keyword():
    with pytest.raises((WorkbenchError, TypeError), match="nonsense"):
        TARGETS["score"][0](nonsense=1)
