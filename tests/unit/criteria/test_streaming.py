"""A stored run is scored variable by variable, and of each the selection prompts only."""

import copy

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from xarray.backends.common import BackendArray
from xarray.core import indexing

from tests.unit.synthetic_run import synthetic_run
from workbench.comparison import compare
from workbench.criteria import get_criterion, head_stability, prompt_values, score, top_heads
from workbench.criteria.values import safe_ranks
from workbench.models.masks import Mask
from workbench.runs import reading


class Watched(BackendArray):
    """An array that notes how much of it is read, and the most that is read at once."""

    def __init__(self, name: str, array: np.ndarray, read: dict[str, int]) -> None:
        self.name, self.array, self.read = name, array, read
        self.shape, self.dtype = array.shape, array.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> np.ndarray:
        assert not isinstance(key, indexing.VectorizedIndexer), f"{self.name} is read element by element"
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._part)

    def _part(self, key: tuple) -> np.ndarray:
        part = self.array
        for axis in reversed(range(len(key))):
            part = part[(slice(None),) * axis + (key[axis],)]
        self.read[self.name] = self.read.get(self.name, 0) + part.size
        most = f"most of {self.name}"
        self.read[most] = max(self.read.get(most, 0), part.size)
        return part


def watched(run: xr.Dataset) -> tuple[xr.Dataset, dict[str, int]]:
    read: dict[str, int] = {}
    lazy = {name: (v.dims, indexing.LazilyIndexedArray(Watched(str(name), v.values, read))) for name, v in run.items()}
    return xr.Dataset(lazy, coords=run.coords, attrs=run.attrs), read


def test_what_a_criterion_does_not_need_is_not_read_nor_other_prompts() -> None:
    run = synthetic_run(splits=("selection", "threshold", "test"), pairs=36)
    lazy, read = watched(run)
    scores = score(lazy, ("deflection", "ships"), bootstrap=50, permutations=50)
    selected = int((run["split"] == "selection").sum())
    cells = run["deflection"][0].size
    assert {k: n for k, n in read.items() if " " not in k} == {"deflection": selected * cells, "kl": selected * cells}
    pd.testing.assert_frame_equal(scores, score(run, ("deflection", "ships"), bootstrap=50, permutations=50))


def test_states_are_read_a_few_heads_at_a_time() -> None:
    run = synthetic_run(pairs=10)
    lazy, read = watched(run)
    score(lazy, "mean_vector")
    assert read["state"] == run["state"].size
    assert {name for name in read if " " not in name} == {"state", "base_state"}


@pytest.fixture(params=[9, 2], ids=["layers", "heads"])
def small_pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """A run of 72 prompts and two projections is read so many heads at a time; how many numbers that is."""
    numbers = request.param * 72 * 2
    monkeypatch.setattr(reading, "NUMBERS_AT_ONCE", numbers)
    return numbers


NAMES = ("deflection", "ships", "image_attention", "probe", "probe_write")


def test_scores_of_a_run_read_in_pieces_are_those_of_the_whole(small_pieces, monkeypatch) -> None:
    run = synthetic_run(pairs=36)
    run["head_output"][:, 1] = np.nan  # a layer whose heads are not to be masked
    lazy, read = watched(run)
    lazy_scores = score(lazy, NAMES, bootstrap=60, permutations=100)
    best = top_heads(lazy_scores, criterion="ships", rule="auroc", projection="value", k=5)
    of_pieces = prompt_values(lazy, get_criterion("ships"))
    monkeypatch.undo()
    whole = score(run, NAMES, bootstrap=60, permutations=100)
    pd.testing.assert_frame_equal(lazy_scores.drop(columns="ci_low"), whole.drop(columns="ci_low"), rtol=1e-12)
    pd.testing.assert_frame_equal(best, top_heads(whole, criterion="ships", rule="auroc", projection="value", k=5))
    assert best["stability"].notna().all()
    assert read["most of kl"] <= small_pieces
    assert read["most of head_output"] <= max(small_pieces, 72 * 6), "one head at least"
    assert read["kl"] == 3 * run["kl"].size, "once for scores, once for AUROCs of redraws, and once for values"
    xr.testing.assert_equal(of_pieces, prompt_values(run, get_criterion("ships")))


def test_of_one_head_only_that_head_is_read() -> None:
    run = synthetic_run(pairs=36)
    lazy, read = watched(run)
    values = prompt_values(lazy, get_criterion("ships"), head=(2, 1))
    assert read == {"kl": 144, "most of kl": 144}
    np.testing.assert_array_equal(values.values[:, :, 0, 0], run["kl"].values[:, :, 2, 1].astype(float))


@pytest.mark.slow
def test_stability_and_a_breakdown_of_a_run_read_in_pieces_are_those_of_the_whole(small_pieces, monkeypatch) -> None:
    run = synthetic_run(pairs=36, splits=("selection", "threshold", "test"))
    run = run.assign_attrs(weight_hash="0123", **Mask().describe())
    run["kl"][:, :, 0] = np.nan  # a layer whose heads are not to be masked
    asked = {"criterion": "ships", "rule": "selectivity", "projection": "query", "k": 2, "resamples": 5}
    broken = {"criteria": ("ships", "probe"), "rules": ("auroc", "sensitivity"), "n_heads": (1, 3), "bootstrap": 5}
    lazy, read = watched(run)
    table = head_stability(lazy, **asked)
    assert read == {"kl": read["kl"], "most of kl": read["most of kl"]}
    assert read["most of kl"] <= small_pieces
    found = compare(lazy, **broken)
    assert read["most of kl"] <= small_pieces
    assert read["most of head_output"] <= max(small_pieces, 72 * 6)
    monkeypatch.undo()
    pd.testing.assert_frame_equal(table, head_stability(run, **asked))
    pd.testing.assert_frame_equal(found, compare(run, **broken), rtol=1e-6)


def test_ranks_among_heads_that_were_not_computed_come_piece_by_piece(small_pieces, monkeypatch) -> None:
    run = synthetic_run(pairs=36)
    estimate = run["kl"] * 0.5
    left_out = (run["layer"] + run["head"]) % 2 == 0
    run = run.assign(kl=run["kl"].where(~left_out), kl_estimate=estimate)
    lazy, read = watched(run)
    ranks = safe_ranks(lazy, get_criterion("ships"))
    assert max(read["most of kl"], read["most of kl_estimate"]) <= small_pieces
    monkeypatch.undo()
    np.testing.assert_array_equal(ranks, safe_ranks(run, get_criterion("ships")))
    whole = synthetic_run(pairs=36)["kl"]
    safe = whole.values[(run["label"] == "safe").values].astype(float).mean(0)
    expected = [(of.argsort(axis=None).argsort(axis=None) / (of.size - 1) * 100) for of in safe]
    assert np.corrcoef(np.ravel(expected), ranks.ravel())[0, 1] > 0.99


def test_areas_of_redraws_are_read_again_and_not_kept() -> None:
    run = synthetic_run(pairs=36)
    scores = score(run, "ships", bootstrap=30, permutations=0)
    how = {"criterion": "ships", "rule": "auroc", "projection": "query", "k": 2}
    assert top_heads(scores, **how)["stability"].notna().all()
    again = copy.copy(scores.attrs["redraws"])  # as it is pickled
    assert again == scores.attrs["redraws"]
    assert not hasattr(again, "drawn"), "the run does not travel with a table"
    run["kl"][0] += 1
    assert top_heads(scores, **how)["stability"].isna().all(), "the run holds other values now"
    assert top_heads(scores, **(how | {"rule": "sensitivity"}))["stability"].notna().all()
