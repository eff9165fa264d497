"""Arguments that no public function takes, the good ones beside them, and what a bad call has to do."""

import datetime
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import workbench as wb
from tests.builders.prompts import text_prompts
from tests.unit.synthetic_run import synthetic_run
from workbench.errors import WorkbenchError

# By function: how it is called with one argument replaced, and by argument what to put there.
Targets = dict[str, tuple[Callable[..., Any], dict[str, list[Any]]]]

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


def cases(targets: Targets) -> Iterator[Any]:
    for name, (call, arguments) in targets.items():
        for argument, values in arguments.items():
            for number, value in enumerate(values):
                yield pytest.param(call, argument, value, id=f"{name}-{argument}-{number}")


def check_refused(call: Callable[..., Any], argument: str, value: Any, folder: Path) -> None:
    with pytest.raises(WorkbenchError) as refused:
        call(**{argument: value})
    said = str(refused.value)
    assert 20 < len(said) < 3000, said[:200]
    said.encode()  # or it could not be printed
    assert not list(folder.iterdir()), "a call that was refused left something"
