"""Every number of a run, and every criterion that is more than a mean of them, has the value worked out by hand."""

from itertools import product

import numpy as np
import pytest
import xarray as xr

import workbench as wb
from tests.planted import closed_form

CELLS = tuple(product(("query", "value"), range(4), range(4)))
SET_ANGLES = ("svd_left", "svd_right", "mean_vector", "first_coordinate")


@pytest.fixture(scope="module")
def run(planted, few) -> xr.Dataset:
    """In double precision, stored as float32, which resolves 3e-6 of the decoy's 40 degrees."""
    return wb.sweep(planted, few, progress=False)


@pytest.mark.slow
def test_every_variable_of_every_cell(run, few):
    for prompt, (projection, layer, head) in product(few, CELLS):
        cell = run.sel(prompt=prompt.id, projection=projection, layer=layer, head=head)
        wanted = closed_form.expected_cell(prompt, layer, head, projection)
        found = {name: float(cell[name]) for name in wanted}
        assert found == pytest.approx(wanted, rel=1e-7, abs=1e-6), (projection, layer, head, prompt)


def test_states_are_those_of_the_closed_form(run, few):
    """Up to a rotation, which leaves all inner products between states as they are."""
    for projection, layer, head in CELLS:
        masked = run["state"].sel(projection=projection, layer=layer, head=head).values.astype(float)
        both = np.concatenate([run["base_state"].values.astype(float), masked])
        by_hand = closed_form.aligned(
            *(closed_form.normed_state(p) for p in few),
            *(closed_form.normed_state(p, (layer, head), projection) for p in few),
        )
        np.testing.assert_allclose(both @ both.T, by_hand @ by_hand.T, atol=2e-5)


@pytest.mark.slow
def test_scores_are_means_over_the_class(run, few):
    scores = wb.score(run, criteria=("deflection", "ships", "refusal_change"), bootstrap=0, permutations=0)
    names = {"deflection": "deflection", "ships": "kl", "refusal_change": "refusal_change"}
    for row in scores.itertuples():
        for label, found in (("unsafe", row.unsafe), ("safe", row.safe)):
            values = [
                closed_form.expected_cell(p, row.layer, row.head, row.projection)[names[row.criterion]]
                for p in few.where(label=label)
            ]
            assert found == pytest.approx(np.mean(values), rel=1e-6, abs=1e-6), row


@pytest.mark.slow
def test_angles_between_data_sets(run, few):
    scores = wb.score(run, criteria=SET_ANGLES, bootstrap=0, permutations=0)
    for row in scores.itertuples():
        for label, found in (("unsafe", row.unsafe), ("safe", row.safe)):
            wanted = closed_form.expected_set_angles(few.where(label=label), row.layer, row.head, row.projection)
            assert found == pytest.approx(wanted[row.criterion], abs=2e-5), (row, label)
