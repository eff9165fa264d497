"""Bad calls of what loads, sweeps, finds and generates: each is refused with an error of the workbench."""

import pytest

import workbench as wb
from tests.builders.models import tiny
from tests.faults.bad_calls import (
    COUNTS,
    FLAGS,
    HEADS,
    INF,
    LONE,
    LONG,
    NAMES,
    NAN,
    PATHS,
    PICTURES,
    SHARES,
    THINGS,
    Targets,
    cases,
    check_refused,
    prompt,
    prompts,
)
from workbench.detectors import OneHeadDetector
from workbench.errors import WorkbenchError
from workbench.prompts import split_prompts

TARGETS: Targets = {
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
    "state": (
        lambda **wrong: tiny().state(**{"prompt": prompts()[0], "heads": [(0, 1)], **wrong}),
        {
            "prompt": [None, 3, "x", []],
            "heads": HEADS,
            "projection": [*NAMES, None],
            "mask": ["nonsense", 3, True, object()],
        },
    ),
}


@pytest.mark.parametrize(("call", "argument", "value"), [*cases(TARGETS)])
def test_bad_call(call, argument, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_refused(call, argument, value, tmp_path)


@pytest.mark.parametrize("name", ["load_model", "load_prompts", "sweep"])
def test_unknown_keyword(name):
    with pytest.raises((WorkbenchError, TypeError), match="nonsense"):
        TARGETS[name][0](nonsense=1)
