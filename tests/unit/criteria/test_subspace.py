"""Angles of vectors and of data sets, re-derived in plain numpy, and each published quirk seen."""

import numpy as np
import pytest
import xarray as xr

from tests.unit.synthetic_run import synthetic_run
from workbench.criteria import score
from workbench.criteria.deflection import angle_deg
from workbench.criteria.subspace import first_left_singular, first_right_singular, line_angle_deg

PROMPTS, WIDTH = 20, 7


def states(seed: int = 0, prompts: int = PROMPTS) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(prompts, WIDTH)) + 1.5


def run_with(change, *, unsafe_only: bool = False) -> xr.Dataset:
    """Every head's masked states are `change(base)` for query masks and untouched for value masks."""
    run = synthetic_run(pairs=PROMPTS, layers=1, heads=2, d_model=WIDTH, planted=(), decoy=None)
    base = states(prompts=2 * PROMPTS)
    unsafe = (run["label"].values == "unsafe")[:, None]
    masked = np.where(unsafe, change(base), base) if unsafe_only else change(base)
    run["base_state"] = run["base_state"].astype(float).copy(data=base)
    stored = np.broadcast_to(base[:, None, None, None], run["state"].shape).copy()
    stored[:, 0] = masked[:, None, None]
    run["state"] = run["state"].astype(float).copy(data=stored)
    return run


def of(run: xr.Dataset, criterion: str) -> tuple[float, float, float]:
    """unsafe and safe under the query mask, and the largest value under the (idle) value mask."""
    found = score(run, criterion)
    query = found[found["projection"] == "query"].iloc[0]
    return query["unsafe"], query["safe"], found.loc[found["projection"] == "value", ["unsafe", "safe"]].max(axis=None)


def by_arccos(u: np.ndarray, v: np.ndarray) -> float:
    return float(np.degrees(np.arccos(np.clip(u @ v / np.linalg.norm(u) / np.linalg.norm(v), -1, 1))))


def test_angles_hold_from_nothing_to_opposite() -> None:
    for degrees in (0.0, 1e-7, 0.3, 45.0, 90.0, 179.9999, 180.0):
        radians = np.radians(degrees)
        u, v = np.array([3.0, 0.0]), 0.2 * np.array([np.cos(radians), np.sin(radians)])
        assert angle_deg(u, v) == pytest.approx(degrees, rel=1e-9, abs=1e-13)
    tiny = np.radians(1e-7)
    assert by_arccos(np.array([1.0, 0]), np.array([np.cos(tiny), np.sin(tiny)])) == 0, "what the arc cosine would say"
    assert np.isnan(angle_deg(np.zeros(2), np.ones(2)))


@pytest.mark.parametrize("prompts", [5, 30], ids=["fewer prompts than width", "more prompts than width"])
def test_singular_vectors_are_numpys(prompts: int) -> None:
    batch = np.stack([states(seed, prompts) for seed in range(4)])
    for matrix, left, right in zip(batch, first_left_singular(batch), first_right_singular(batch), strict=True):
        u, _, vt = np.linalg.svd(matrix, full_matrices=False)
        assert abs(left @ u[:, 0]) == pytest.approx(1)
        assert abs(right @ vt[0]) == pytest.approx(1)


def test_each_data_set_angle_by_hand() -> None:
    def change(base: np.ndarray) -> np.ndarray:
        return base + 0.4 * np.random.default_rng(9).normal(size=base.shape)

    run = run_with(change)
    base, masked = run["base_state"].values, run["state"].values[:, 0, 0, 0]
    for label, position in (("unsafe", 0), ("safe", 1)):
        rows = run["label"].values == label
        u, _, ut = np.linalg.svd(base[rows], full_matrices=False)
        v, _, vt = np.linalg.svd(masked[rows], full_matrices=False)
        expected = {
            "svd_left": np.degrees(np.arccos(abs(u[:, 0] @ v[:, 0]))),
            "svd_right": np.degrees(np.arccos(abs(ut[0] @ vt[0]))),
            "mean_vector": by_arccos(base[rows].mean(0), masked[rows].mean(0)),
            "first_coordinate": by_arccos(base[rows][:, 0], masked[rows][:, 0]),
        }
        assert len({round(v, 3) for v in expected.values()}) == 4, "the four measure different things"
        for criterion, value in expected.items():
            assert of(run, criterion)[position] == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("criterion", ["svd_left", "svd_right", "mean_vector", "first_coordinate"])
def test_an_idle_mask_turns_nothing(criterion: str) -> None:
    assert max(of(run_with(lambda base: base), criterion)) < 1e-5
    assert of(run_with(lambda base: base * 3), criterion)[0] < 1e-5, "length is not direction"


def test_unsafe_and_safe_sets_are_taken_apart() -> None:
    unsafe, safe, idle = of(run_with(lambda base: base[:, ::-1] ** 2, unsafe_only=True), "svd_right")
    assert unsafe > 5
    assert max(safe, idle) < 1e-5


def test_first_coordinate_sees_nothing_but_coordinate_0() -> None:
    def all_but_the_first(base: np.ndarray) -> np.ndarray:
        return np.concatenate([base[:, :1], -base[:, 1:]], axis=1)

    run = run_with(all_but_the_first)
    assert of(run, "first_coordinate")[0] < 1e-5, "every state turned, and it saw nothing"
    assert of(run, "mean_vector")[0] > 90

    def the_first_only(base: np.ndarray) -> np.ndarray:
        return np.concatenate([-base[:, :1], base[:, 1:]], axis=1)

    assert of(run_with(the_first_only), "first_coordinate")[0] == pytest.approx(180), "signed: up to 180"


def test_singular_vectors_have_no_sign() -> None:
    turned_round = run_with(lambda base: -base)
    assert of(turned_round, "svd_left")[0] < 1e-5
    assert of(turned_round, "svd_right")[0] < 1e-5
    assert of(turned_round, "mean_vector")[0] == pytest.approx(180)


def test_svd_left_lives_in_the_space_of_prompts() -> None:
    """The same rotation of every state changes all states and no left singular vector, as in Ships' code."""
    rotation = np.linalg.qr(np.random.default_rng(4).normal(size=(WIDTH, WIDTH)))[0]
    run = run_with(lambda base: base @ rotation)
    assert of(run, "svd_left")[0] < 1e-5
    assert of(run, "svd_right")[0] > 20
    reweighted = run_with(lambda base: base * np.linspace(0.2, 5, len(base))[:, None])
    assert of(reweighted, "svd_left")[0] > 20


def test_nothing_is_centred() -> None:
    """Far from the origin the first singular vector is the mean, and hides a turn of what varies."""
    far = run_with(lambda base: base)
    base = states(prompts=2 * PROMPTS) + 1000.0
    far["base_state"][:] = base
    far["state"][:] = (base + np.random.default_rng(2).normal(size=base.shape))[:, None, None, None]
    assert of(far, "svd_right")[0] < 0.2


def test_mean_vector_misses_turns_that_cancel() -> None:
    signs = np.tile([1.0, 1.0, -1.0, -1.0], PROMPTS // 2)[:, None]  # alternates within each class

    def apart(base: np.ndarray) -> np.ndarray:
        return base + signs * 5 * np.eye(WIDTH)[0]

    assert of(run_with(apart), "mean_vector")[0] < 1e-5
    assert of(run_with(apart), "svd_right")[0] > 5


def test_lines_have_no_direction() -> None:
    assert line_angle_deg(np.array([1.0, 0.0]), np.array([-1.0, 0.1])) == pytest.approx(np.degrees(np.arctan(0.1)))


def test_many_heads_go_through_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    run = synthetic_run(pairs=10, heads=5)
    whole = score(run, "svd_left")["unsafe"]
    monkeypatch.setattr("workbench.criteria.subspace.CELLS_AT_ONCE", 10 * 16 * 2)  # two heads at a time
    np.testing.assert_array_equal(score(run, "svd_left")["unsafe"], whole)
