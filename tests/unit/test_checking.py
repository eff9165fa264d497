"""The one way in which public functions check what they are given."""

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import pytest

from workbench.checking import Converted, Finite, OneOf, Whole, checked
from workbench.errors import ArgumentError, PromptError, WorkbenchError


def upper(value):
    if value is None:
        raise PromptError("There is no text here; give one.")
    if not isinstance(value, str):
        raise ValueError("must be text")
    return value.upper()


@checked
def example(
    table: pd.DataFrame,
    text: Annotated[str, Converted(upper)] = "a",
    *,
    k: Annotated[int, Whole(1, 9)] = 1,
    level: Annotated[float, Finite(0, 1)] = 0.5,
    rule: Annotated[str, OneOf(lambda: ("selectivity", "auroc"))] = "auroc",
    n: Annotated[int, Whole(0)] | None = None,
    form: Literal["limit", "scale"] = "limit",
    names: Sequence[str] = (),
    flag: bool = False,
) -> tuple:
    return text, k, level, rule, n, form, names, flag


TABLE = pd.DataFrame()


def test_what_is_right_is_handed_on():
    names = ["a", "b"]
    got = example(TABLE, "b", k=np.int64(3), level=1, n=0, form="scale", names=names, flag=True)
    assert got == ("B", 3, 1.0, "auroc", 0, "scale", names, True)
    assert type(got[1]) is int


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"k": 0}, "example: k must be a whole number from 1 to 9; got 0."),
        ({"k": True}, "k must be a whole number from 1 to 9; got True"),
        ({"k": 2.0}, "k must be a whole number"),
        ({"k": "2"}, "got '2'"),
        ({"k": None}, "got None"),
        ({"level": float("nan")}, "level must be a finite number from 0 to 1; got nan"),
        ({"level": 2}, "level must be a finite number from 0 to 1; got 2"),
        ({"level": False}, "got False"),
        ({"rule": "selectivty"}, "must be one of selectivity, auroc (did you mean 'selectivity'?); got 'selectivty'"),
        ({"rule": 3}, "must be one of selectivity, auroc; got 3"),
        ({"n": -1}, "n must be a whole number from 0; got -1"),
        ({"form": "lmit"}, "form must be 'limit' or 'scale'; got 'lmit'"),
        ({"flag": 1}, "flag must be a valid boolean; got 1"),
        ({"text": 3}, "text must be text; got 3"),
        ({"text": "\x1b[31m", "k": 0}, "got 0"),
        ({"kk": 1}, "unexpected keyword argument 'kk'; it takes table, text, k,"),
        ({"names": [1]}, "names must be a valid string; got [1]"),
        ({"k": 0, "level": 7}, "k must be a whole number from 1 to 9; got 0. level must be"),
    ],
)
def test_what_is_wrong_is_named(given, said):
    with pytest.raises(ArgumentError) as caught:
        example(TABLE, **given)
    assert said in str(caught.value)
    assert isinstance(caught.value, WorkbenchError)


def test_a_large_or_strange_value_is_shown_short_and_plain():
    with pytest.raises(ArgumentError) as caught:
        example(TABLE, k="\x1b[31m" * 1000)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 200
    with pytest.raises(ArgumentError, match="table must be an instance of DataFrame; got a ndarray"):
        example(np.zeros((1000, 1000)))


def test_an_error_of_ours_passes_as_it_is():
    with pytest.raises(PromptError, match="no text here"):
        example(TABLE, None)


def test_without_what_is_needed():
    with pytest.raises(ArgumentError, match="missing a required argument: 'table'"):
        example()
