"""`find_heads`: what its statuses and intervals claim, held against the exact map; and what would make them wrong."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import workbench as wb
from tests.builders.models import tiny
from tests.builders.prompts import text_prompts
from workbench.bench import replay as replaying
from workbench.bench.replay import Stored, replay
from workbench.criteria.ranking import best_cells, rule_values
from workbench.errors import ArgumentError, PromptError, WorkbenchError
from workbench.finding import search as searching
from workbench.finding.bounds import Fit
from workbench.finding.decisions import sets
from workbench.finding.find import _prompts_wanted
from workbench.finding.order import search_order
from workbench.sweeps.engines.exact import ExactBlock

N = 48  # prompts of the made-up map
BOTH = ("query", "value")


def made_up(seed=0, *, heads=10, layers=4, noise=0.3) -> Stored:
    """A map with rare cells far above the others, which estimates flag but do not follow; and heads of all sizes."""
    random = np.random.default_rng(seed)
    shape = (N, 2, layers, heads)
    size = random.lognormal(0.5, 0.6, shape[1:])
    loud = random.random(shape) < 0.02
    prompt = random.lognormal(0, 0.2, (N, 1, 1, 1))
    exact = size * prompt * random.lognormal(0, 0.15, shape) * np.where(loud, 6.0, 1.0)
    unsafe = np.arange(N) % 2 == 0
    exact[unsafe, :, 2, :6] *= random.uniform(1.0, 2.0, 6)
    estimate = 0.7 * exact * random.lognormal(0, noise, shape)
    estimate = np.where(loud, estimate / 2.5, estimate)
    return Stored(exact, estimate, unsafe, [f"pair {i // 2}" for i in range(N)], np.full(N, 8), 4)


def rates(found):
    return found.groupby("draw")["right"].all().mean(), found["covered"].mean(), found["work"].mean()


@pytest.mark.parametrize("rule", ["sensitivity", "selectivity"])
def test_statuses_and_intervals_hold_at_their_level(rule):
    found = replay(made_up(), each=20, draws=12, rule=rule, k=3, budget=0.6)
    right, covered, work = rates(found)
    assert right >= 0.9  # of 12 fixed draws
    assert covered > 0.93
    assert work <= 0.6
    assert found["possible"].mean() < 0.5 * 4 * 10  # and they say something
    if rule == "sensitivity":
        assert found["certain"].mean() > 1.5


def test_replays_take_several_sets_of_directions_in_turn():
    one, two = made_up(heads=6), replace(made_up(heads=6), estimate=made_up(heads=6, noise=0.6).estimate)
    how = {"each": 8, "draws": 4, "rule": "sensitivity", "k": 2}
    both, alone = replay(one, two, **how), [replay(of, **how) for of in (one, two)]
    assert not alone[0].equals(alone[1])
    for draw in range(4):
        assert both[both["draw"] == draw].equals(alone[draw % 2][alone[draw % 2]["draw"] == draw])


def test_a_biased_estimator_is_found_out(monkeypatch):
    def biased(cls, cells, estimate, sure, known=Fit.of):
        fit = known(cells, estimate, sure)
        return replace(fit, mean=fit.mean + 0.5 * fit.level, middle=fit.middle + 0.5 * fit.level)

    monkeypatch.setattr(Fit, "of", classmethod(biased))
    _, covered, _ = rates(replay(made_up(), each=20, draws=3, rule="sensitivity", k=3, budget=0.6))
    assert covered < 0.8


def test_a_sample_that_is_not_random_is_found_out(monkeypatch):
    stored = made_up(noise=1.5)  # estimates that say little, so that everything hangs on the sample
    options = {"each": 20, "draws": 3, "rule": "sensitivity", "k": 3, "budget": 0.25}
    honest = rates(replay(stored, **options))[1]
    strength, inner = np.zeros(40), replaying.replayed

    def strongest_last(unsafe, units, rule, seed):
        order, n_read = search_order(unsafe, units, rule, seed)
        return [*sorted(order[:n_read], key=lambda i: strength[i]), *order[n_read:]], n_read

    def known_beforehand(given, part, ask):
        strength[:] = given.exact[part].mean((1, 2, 3))
        return inner(given, part, ask)

    monkeypatch.setattr(replaying, "search_order", strongest_last)
    monkeypatch.setattr(replaying, "replayed", known_beforehand)
    skewed = rates(replay(stored, **options))[1]
    assert honest > 0.92
    assert skewed < 0.8


def test_sets_are_wrong_in_no_more_draws_than_they_may():
    random = np.random.default_rng(0)
    values = np.array([5.0, 4, 1, 0.9, 0.8, -1.2]) + random.normal(0, [0.1, 0.1, 0.4, 0.4, 0.4, 0.1], (4000, 6))
    certain, excluded = sets(values, 3, 0.02)
    assert certain.tolist() == [True, True, False, False, False, False]
    assert excluded.tolist() == [False, False, False, False, False, True]
    assert not sets(values + random.normal(0, 5, values.shape), 3, 0.02)[0].any()
    # A head that may have more than was drawn is not excluded where that would bring it among the first.
    assert not sets(values, 3, 0.02, np.array([0, 0, 0, 0, 0, 3.0]))[1].any()
    left_out = np.where(np.arange(6) == 5, -np.inf, values)
    assert sets(left_out, 3, 0.02, np.full(6, 1e300))[1].tolist() == [False] * 5 + [True]


def test_heads_of_which_nothing_was_drawn_exclude_no_others_and_are_not_excluded():
    random, everyone = np.random.default_rng(0), [np.ones(20, dtype=bool)]
    size = np.full((1, 3, 6), 2.0)
    size[0, 0, 0] = 10.0
    cells = size * random.lognormal(0, 0.05, (20, 1, 3, 6))
    known = np.where((np.arange(20) < 4)[:, None, None, None], cells, np.nan)
    ranks = np.full(cells.shape, searching.DRAWN)
    ranks[:4, 0, 1, :3] = 0  # all that is known of three heads was chosen, not drawn
    ask = searching.Question(2, "sensitivity", 0.95, 0.5, 0)
    none = np.zeros((1, 3, 6), dtype=bool)
    estimate = cells * random.lognormal(0, 0.05, cells.shape)
    found = searching._judge(ask, everyone, none, ranks, 0.02, random, known, estimate)
    assert found.status[0, 0, 0] == searching.CERTAIN
    assert (found.status[0, 1, :3] == searching.POSSIBLE).all()


def test_how_many_more_prompts_would_tell_follows_the_gap_and_its_scatter():
    random, share = np.random.default_rng(0), np.array([1.0, 0.5, 0.4, 0.0])
    values = np.array([9.0, 3.0, 2.0, 0.0]) + random.normal(0, 2**-0.5, (5000, 4))  # a gap of 1 with scatter 1
    many = int(_prompts_wanted(values, share, 2, 100).split()[1])
    assert 260 <= many <= 310  # 100 * (1.96**2 - 1), but for the draws
    assert "tell the first heads" in _prompts_wanted(values * [1, 3, 1, 1], share, 2, 100)
    never = np.where(np.arange(5000)[:, None] % 2 == [[2, 0, 1, 2]], np.nan, values)  # never both
    assert "no redraw has a value of both head 2" in _prompts_wanted(never, share, 2, 100)


def test_the_order_is_even_random_and_keeps_pairs_side_by_side():
    unsafe = np.arange(40) % 2 == 0
    units = [f"pair {i // 2}" for i in range(40)]
    firsts = np.zeros(40)
    for seed in range(400):
        order, n_read = search_order(unsafe, units, "selectivity", seed)
        assert sorted(order) == list(range(40))
        assert n_read == 40
        assert all(order[i] // 2 == order[i + 1] // 2 for i in range(0, 40, 2))
        firsts[order[:8]] += 1
    # Every prompt is among the first eight as often as any other.
    assert np.abs(firsts - 80).max() < 5 * np.sqrt(80 * 0.8)
    order, n_read = search_order(unsafe, units, "sensitivity", 0)
    assert n_read == 20
    assert unsafe[order[:20]].all()


def test_cells_that_stand_out_are_few_and_hold_most_of_the_loud_ones():
    stored = made_up()
    ranks = searching.strong_ranks(stored.estimate, [stored.unsafe, ~stored.unsafe])
    strong = ranks < searching.DRAWN
    assert 0.005 < strong.mean() <= searching.STRONG_SHARE
    loud = stored.exact > 4 * np.median(stored.exact, 0)
    assert (strong & loud).sum() > 0.7 * loud.sum()
    # More of them each time, in the end all.
    shares = [(ranks < limit).mean() for limit in searching.strong_limits(ranks)]
    assert shares == sorted(set(shares))
    assert shares[-1] == strong.mean()


@pytest.fixture(scope="module")
def double():
    return tiny(dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("criterion", ["deflection", "ships", "l2", "refusal_change"])
def test_every_status_is_right_on_a_small_model(double, criterion):
    prompts = text_prompts(40)
    found = wb.find_heads(double, prompts, k=2, criterion=criterion, projection=BOTH, progress=False)
    assert found.attrs["run"].attrs["complete"]
    exact = wb.sweep(double, prompts, keep_states=False, progress=False)
    cells = exact[{"ships": "kl"}.get(criterion, criterion)].values * (-1 if criterion == "refusal_change" else 1)
    unsafe = exact.label.values.astype(str) == "unsafe"
    for number, projection in enumerate(BOTH):
        best = best_cells(rule_values(cells, unsafe, "selectivity")[number], 2)
        mine = found[found.projection == projection].set_index(["layer", "head"])
        assert len(mine) == double.n_layers * double.n_heads
        assert all(mine.status[cell] != "excluded" for cell in best)
        assert set(mine.index[mine.status == "certain"]) <= set(best)
        truth = (cells[unsafe].mean(0) - cells[~unsafe].mean(0))[number]
        for cell, value in mine[mine.ci_low == mine.ci_high].value.items():
            np.testing.assert_allclose(value, truth[cell], atol=1e-5 * np.abs(truth).max())


@pytest.mark.slow
def test_estimates_are_never_among_exact_numbers(double):
    prompts = text_prompts(48)
    run = wb.find_heads(double, prompts, k=2, rule="sensitivity", budget=0.3, progress=False).attrs["run"]
    exact = wb.sweep(double, prompts, projections=("query",), keep_states=False, progress=False)
    known = run.deflection.notnull().values
    assert 0 < known.mean() < 0.6
    np.testing.assert_allclose(run.deflection.values[known], exact.deflection.values[known], atol=1e-9)
    assert "not exact" in run.deflection_estimate.attrs["long_name"]
    assert "deflection_estimate" not in exact
    assert "js" not in run.data_vars  # nothing but what was asked for is measured


def test_where_the_exact_map_is_the_shortest_way_its_first_heads_are_certain(double):
    for n in (8, 10, 12):
        prompts = text_prompts(n)
        found = wb.find_heads(double, prompts, k=3, projection=BOTH, progress=False)
        assert found.attrs["work"] == 1
        exact, unsafe = found.attrs["run"].deflection.values, np.array([p.label == "unsafe" for p in prompts])
        for projection, values in zip(BOTH, rule_values(exact, unsafe, "selectivity"), strict=True):
            mine = found[(found["projection"] == projection) & (found["status"] == "certain")]
            assert set(zip(mine["layer"], mine["head"], strict=True)) == set(best_cells(values, 3))
        assert "possible" not in set(found["status"])


@pytest.mark.slow
def test_work_is_what_the_model_counts_and_stays_within_the_budget(double):
    prompts = text_prompts(60)
    before = double.work.layer_tokens
    found = wb.find_heads(double, prompts, k=2, rule="sensitivity", budget=0.7, progress=False)
    spent = double.work.layer_tokens - before
    exact = wb.sweep(double, prompts, projections=("query",), keep_states=False, progress=False)
    assert found.attrs["work"] == pytest.approx(spent / exact.attrs["layer_tokens"])
    assert found.attrs["work"] <= 0.7


@pytest.mark.slow
def test_the_search_finds_the_planted_head(tmp_path):
    model, prompts = wb.load_model("planted"), wb.load_prompts("planted", split="selection", n=60)
    found = wb.find_heads(model, prompts, k=1, progress=False, out=tmp_path / "run.zarr")
    first = found.iloc[0]
    assert (first.layer, first["head"], first.status) == (3, 1, "certain")
    assert first.stability > 0.99
    assert set(found.status) == {"certain", "excluded"}
    assert "these prompts tell the first heads from the others" in found.attrs["says"]
    assert found.equals(wb.find_heads(model, prompts, k=1, progress=False, out=tmp_path / "run.zarr"))
    # Where prompts declare splits, heads are chosen on the split for it, as when runs are scored.
    run = wb.find_heads(model, wb.load_prompts("planted", n=30), k=1, progress=False).attrs["run"]
    assert {str(split) for split in run.split.values} == {"selection"}


@pytest.mark.slow
def test_a_killed_search_goes_on_with_the_same_choices(double, tmp_path, monkeypatch):
    options = {"k": 2, "rule": "sensitivity", "budget": 0.35, "progress": False}
    whole = wb.find_heads(double, text_prompts(48), **options)
    calls, layer_arrays = [], ExactBlock.layer_arrays

    def killed(self, layer):
        calls.append(layer)
        if len(calls) in (9, 40):
            raise KeyboardInterrupt
        return layer_arrays(self, layer)

    with monkeypatch.context() as patch:
        patch.setattr(ExactBlock, "layer_arrays", killed)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt, match="go on from there"):
                wb.find_heads(double, text_prompts(48), out=tmp_path / "run.zarr", **options)
    resumed = wb.find_heads(double, text_prompts(48), out=tmp_path / "run.zarr", **options)
    assert whole.equals(resumed)
    for name in ("deflection", "find_status", "prompts_used"):
        np.testing.assert_array_equal(resumed.attrs["run"][name].values, whole.attrs["run"][name].values)
    assert json.loads(resumed.attrs["run"].attrs["engine_options"])["k"] == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"criterion": "probe"}, "criterion must be one of deflection"),
        ({"criterion": "js"}, "criterion must be one of deflection"),
        ({"rule": "auroc"}, "rule must be one of selectivity, sensitivity"),
        ({"projection": ("query", "output")}, "query, key, value"),
        ({"budget": 0}, "budget"),
        ({"level": 1.0}, "level"),
    ],
)
def test_what_cannot_be_found_is_refused_by_name(double, options, said):
    with pytest.raises(ArgumentError, match=said):
        wb.find_heads(double, text_prompts(), progress=False, **options)


def test_prompts_and_criteria_that_say_nothing_are_refused(double, monkeypatch):
    safe = [replace(p, label="safe") for p in text_prompts()]
    with pytest.raises(PromptError, match="selectivity reads unsafe prompts, and of 6 none is"):
        wb.find_heads(double, safe, progress=False)
    with pytest.raises(PromptError, match="sensitivity reads unsafe prompts"):
        wb.find_heads(double, safe, rule="sensitivity", progress=False)
    with pytest.raises(WorkbenchError, match=r"derivative is known: .*deflection.*; got 'js'"):
        wb.sweep(double, text_prompts(), engine="find", engine_options={"criterion": "js"}, progress=False)
    monkeypatch.setitem(double.__dict__, "refusal_tokens", ())
    with pytest.raises(WorkbenchError, match="knows no opening of a refusal"):
        wb.find_heads(double, text_prompts(), criterion="refusal_change", progress=False)
