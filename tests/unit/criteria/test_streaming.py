"""A stored run is scored variable by variable, and of each the selection prompts only."""

import numpy as np
import pandas as pd
import xarray as xr
from xarray.backends.common import BackendArray
from xarray.core import indexing

from tests.unit.synthetic_run import synthetic_run
from workbench.criteria import score


class Watched(BackendArray):
    """An array that notes how much of it is read."""

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
    assert read == {"deflection": selected * cells, "kl": selected * cells}
    pd.testing.assert_frame_equal(scores, score(run, ("deflection", "ships"), bootstrap=50, permutations=50))


def test_states_are_read_a_few_heads_at_a_time() -> None:
    run = synthetic_run(pairs=10)
    lazy, read = watched(run)
    score(lazy, "mean_vector")
    assert read["state"] == run["state"].size
    assert set(read) == {"state", "base_state"}
