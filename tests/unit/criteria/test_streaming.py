"""A stored run is scored variable by variable, and of each the selection prompts only."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from xarray.backends.common import BackendArray
from xarray.core import indexing

from tests.unit.synthetic_run import synthetic_run
from workbench.criteria import get_criterion, prompt_values, score, top_heads
from workbench.runs import reading


class Watched(BackendArray):
    """An array that notes how much of it is read, and the most that is read at once."""

    def __init__(self, name: str, array: np.ndarray, read: dict[str, int]) -> None:
        self.name, self.array, self.read = name, array, read
        self.shape, self.dtype = array.shape, array.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> np.ndarray:
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
