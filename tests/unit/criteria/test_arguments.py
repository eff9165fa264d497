"""Public functions of criteria: bad input is refused in words, plain input is taken."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from tests.unit.synthetic_run import synthetic_run
from workbench.criteria import detection_table, head_stability, leave_one_family_out, rank_agreement, score, top_heads
from workbench.errors import WorkbenchError


@pytest.fixture(scope="module")
def run() -> xr.Dataset:
    return synthetic_run(pairs=36, keep_states=False, splits=("selection", "threshold", "test"))


@pytest.fixture(scope="module")
def scores(run: xr.Dataset) -> pd.DataFrame:
    return score(run, ("deflection", "ships"), bootstrap=0, permutations=0)


PICK = {"criterion": "deflection", "rule": "auroc"}
OF_RUN: list[tuple[Callable, dict]] = [
    (score, {"criteria": "deflection"}),
    (head_stability, {**PICK, "resamples": 1}),
    (detection_table, {"criteria": "deflection", "rules": "auroc"}),
    (leave_one_family_out, PICK),
]


@pytest.mark.parametrize("given", [None, 3, {}, [], np.zeros(3), "no such file", pd.DataFrame()], ids=repr)
@pytest.mark.parametrize(("function", "rest"), OF_RUN, ids=lambda v: getattr(v, "__name__", ""))
def test_what_is_no_run_is_refused(function: Callable, rest: dict, given: Any) -> None:
    with pytest.raises(WorkbenchError, match=r"\w{3}"):
        function(given, **rest)


BAD: dict[str, list] = {
    "criterion": [None, "", "deflexion", 3, ["deflection"]],
    "criteria": [None, "", "deflexion", 3, [], [None], {"deflection": 1}],
    "rule": ["", "selectiv", 3, ["auroc"]],
    "rules": [None, "", "selectiv", 3, [None]],
    "projection": ["", "key", 3],
    "k": [None, 0, -1, 1.5, True, "3", 10**6],
    "seed": [None, -1, 0.5, "0"],
    "bootstrap": [None, -1, 0.5, "10"],
    "permutations": [-1, 0.5, "10"],
    "resamples": [None, 0, -1, 2.5],
    "percentile": [None, -1, 101, float("nan"), "80"],
    "scores": [None, 3, [], {}, pd.DataFrame()],
}
TAKES = [
    (score, "criteria bootstrap permutations seed"),
    (top_heads, "scores criterion rule projection k seed percentile"),
    (rank_agreement, "scores rule k"),
    (head_stability, "criterion rule projection k resamples seed"),
    (detection_table, "criteria rules bootstrap seed"),
    (leave_one_family_out, "criterion rule projection bootstrap seed"),
]
GOOD = {score: {"criteria": "deflection", "bootstrap": 0, "permutations": 0}, top_heads: PICK, rank_agreement: {}}
GOOD |= {function: rest for function, rest in OF_RUN if function is not score}
# What stands in for "as many as there are", and controls' own seeds, are no mistakes.
FINE = {("rank_agreement", "k", 10**6), ("head_stability", "k", 10**6)}


@pytest.mark.parametrize(
    ("function", "name", "value"),
    [
        (function, name, value)
        for function, names in TAKES
        for name in names.split()
        for value in BAD[name]
        if name == "scores" or (function.__name__, name, str(value)) not in {(f, n, str(v)) for f, n, v in FINE}
    ],
    ids=lambda v: getattr(v, "__name__", None) or repr(v)[:24],
)
def test_bad_arguments_are_refused(
    run: xr.Dataset, scores: pd.DataFrame, function: Callable, name: str, value: Any
) -> None:
    subject = scores if function in (top_heads, rank_agreement) else run
    arguments = {**GOOD[function], name: value}
    with pytest.raises(WorkbenchError) as caught:
        if name == "scores":
            function(value, **GOOD[function])
        else:
            function(subject, **arguments)
    assert len(str(caught.value).split()) > 5, "not a sentence"


def test_plain_input_is_taken(run: xr.Dataset, scores: pd.DataFrame) -> None:
    for names in ("deflection", ["deflection"], ("deflection",), np.array(["deflection"]), {"deflection"}):
        found = score(run, names, bootstrap=np.int64(0), permutations=0)
        pd.testing.assert_frame_equal(found, scores[scores["criterion"] == "deflection"])
    assert len(top_heads(scores, **PICK, k=np.int64(3))) == 3
    table = detection_table(run, criteria="deflection", rules="auroc", bootstrap=0)
    rates = table["measure"].isin(["detection_rate", "false_positive_rate"])
    assert table.loc[rates, "ci_low"].notna().all()
    assert table.loc[~rates, "ci_low"].isna().all(), "no resamples, no interval"
