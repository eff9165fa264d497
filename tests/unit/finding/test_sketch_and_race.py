"""The sketch and the race: estimates that rank, exact numbers that are exact, and neither taken for the other."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

import workbench as wb
from tests.builders.models import tiny
from tests.builders.prompts import text_prompts
from workbench.criteria.ranking import best_cells, rule_values
from workbench.criteria.values import calibration, safe_levels
from workbench.errors import CriterionError, MaskError, PromptError, WorkbenchError
from workbench.finding import race, sketch
from workbench.finding.race import report as race_report
from workbench.models.walk import base_pass
from workbench.runs.job import Job
from workbench.sweeps.engines import first_order as screen
from workbench.sweeps.engines.exact import ExactBlock


@pytest.fixture(scope="module")
def double():
    return tiny(dtype=torch.float64)


def swept(model, engine, prompts=None, **options):
    return wb.sweep(model, prompts or text_prompts(), engine=engine, progress=False, **options)


@pytest.mark.parametrize("thrifty", [False, True], ids=["graph", "checkpoints"])
@pytest.mark.parametrize("grain", ["query_head", "kv_group"])
@pytest.mark.parametrize("positions", ["all", "last"])
def test_one_backward_pass_gives_every_heads_first_order_change(double, thrifty, grain, positions):
    # A mask that changes almost nothing is linear: its states, exactly computed, are the derivative.
    step = 1e-5
    mask = wb.Mask(form="scale", factor=1 - step, grain=grain, positions=positions)
    exact = swept(double, "exact", mask=mask, keep_states=True)
    job = Job(("query", "value"), mask, None, False)
    for index, prompt in enumerate(text_prompts()):
        base = base_pass(double, [double.encode(prompt)])
        along = torch.randn(1, double.d_model, dtype=torch.float64)
        state, taps = screen.tapped_state(double, base, thrifty=thrifty)
        slopes = dict(zip(taps, torch.autograd.grad((state * along).sum(), list(taps.values())), strict=True))
        found = screen._moved(slopes, screen._changes(double, base, job), job, double)[0] / step
        masked, unmasked = exact.state[index].values, base.state[0].numpy()
        wanted = ((masked - unmasked) @ along[0].numpy()) / step
        assert np.abs(wanted).max() > 0.05
        np.testing.assert_allclose(found, wanted, atol=2e-3 * np.abs(wanted).max())


def test_the_directions_have_the_moments_they_should(double):
    base = base_pass(double, [double.encode(text_prompts()[0])])
    draws = 4000
    generators = [torch.Generator().manual_seed(0)]
    across = torch.cat([screen._across(base.state, generators) for _ in range(draws)])
    assert (across @ base.state[0]).abs().max() < 1e-9 * draws
    spread = across.T @ across / draws
    unit = base.state[0] / base.state[0].norm()
    np.testing.assert_allclose(spread, torch.eye(len(unit)) - unit[:, None] * unit, atol=0.12)
    # The Fisher matrix in the state: W_Uᵀ (diag p - p pᵀ) W_U.
    fisher = torch.cat([screen._score_directions(double, base, generators) for _ in range(draws)])
    unembed, p = double.hf.lm_head.weight.detach(), base.logits[0].softmax(-1)
    wanted = unembed.T @ (torch.diag(p) - p[:, None] * p) @ unembed
    np.testing.assert_allclose(fisher.T @ fisher / draws, wanted, atol=0.12 * float(wanted.abs().max()))


def test_estimates_rank_pocket_like_the_exact_engine():
    model, prompts = wb.load_model("pocket", device="cpu"), wb.load_prompts("pocket", n=16)
    exact = wb.sweep(model, prompts, keep_states=False, progress=False)
    options = {"directions": 4, "best": 6, "edge": 2, "sample": 6}
    run = wb.sweep(model, prompts, engine="sketch", engine_options=options, keep_states=False, progress=False)
    for name in ("deflection", "kl"):
        for projection in ("query", "value"):
            one = exact[name].sel(projection=projection).mean("prompt").values.ravel()
            other = run[f"{name}_estimate"].sel(projection=projection).mean("prompt").values.ravel()
            assert spearmanr(one, other).statistic > 0.93, (name, projection)
    assert set(run.attrs["screen_recall"]) == {"query", "value"}
    assert run.attrs["layer_tokens"] < 0.6 * exact.attrs["layer_tokens"]


def test_estimates_are_never_taken_for_exact_numbers(double):
    exact = swept(double, "exact")
    run = swept(double, "sketch", engine_options={"best": 3, "edge": 0, "sample": 2})
    known = np.zeros(run.deflection.shape[1:], dtype=bool)
    for projection, layer, head in run.attrs["exact_cells"]:
        known[("query", "value").index(projection), layer, head] = True
    # Three best and two drawn ones a projection: a head that is best under one mask only is masked by that one only.
    assert all(3 <= cells <= 5 for cells in known.sum((1, 2)))
    assert (known[0] != known[1]).any()
    for name in ("deflection", "kl", "state"):
        values = run[name].values
        assert np.isnan(values[:, ~known]).all()
        np.testing.assert_allclose(values[:, known], exact[name].values[:, known], atol=1e-9)
    assert run.deflection_estimate.notnull().all()
    assert "not exact" in run.deflection_estimate.attrs["long_name"]
    assert "deflection_estimate" not in exact


def test_heads_at_the_safe_bound_are_scored_exactly(double):
    options = {"best": 1, "edge": 4, "sample": 0}
    run = swept(double, "sketch", engine_options=options)
    low = run.deflection_estimate.values[::2].mean(0)
    for name, values in zip(("query", "value"), low, strict=True):
        nearest = np.abs(values - np.percentile(values, 80)).ravel().argsort()[:4]
        cells = {(name, int(i) // double.n_heads, int(i) % double.n_heads) for i in nearest}
        assert cells <= {tuple(cell) for cell in run.attrs["exact_cells"]}


def test_a_screen_that_fails_says_so(double, monkeypatch):
    wrong = screen.estimates

    def reversed_(model, base, job, **options):
        return {name: 100 - value for name, value in wrong(model, base, job, **options).items()}

    options = {"best": 6, "sample": 12, "rule": "sensitivity", "directions": 16}
    mask = wb.Mask(form="scale", factor=0.9)
    sound = swept(double, "sketch", engine_options=options, mask=mask)
    monkeypatch.setattr(screen, "estimates", reversed_)
    run = swept(double, "sketch", engine_options=options, mask=mask)
    for projection in ("query", "value"):
        assert sound.attrs["screen_recall"][projection] > 0.9
        assert run.attrs["screen_missed"][projection] > 0
        assert run.attrs["screen_recall"][projection] < 0.7
        assert run.attrs["screen_spearman"][projection] < 0
    assert "misses heads" in sketch.report(run.attrs)
    assert "misses heads" not in sketch.report(sound.attrs)
    assert "12 heads drawn at random" in sketch.report(sound.attrs)


def test_a_killed_sketch_goes_on_with_the_same_choice(double, tmp_path, monkeypatch):
    whole = swept(double, "sketch", engine_options={"best": 3})
    with monkeypatch.context() as patch:
        patch.setattr(ExactBlock, "layer_arrays", lambda self, layer: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            swept(double, "sketch", engine_options={"best": 3}, out=tmp_path / "run.zarr")
    run = swept(double, "sketch", engine_options={"best": 3}, out=tmp_path / "run.zarr")
    for name in whole.data_vars:
        np.testing.assert_array_equal(run[name].values, whole[name].values)


class Filled:
    """A store in which a race finds what `truth` says of the cells it asks for, and what an earlier race left."""

    def __init__(self, truth, estimate, left=None):
        self.truth, self.estimate = truth, estimate
        self.cells = np.full_like(truth, np.nan) if left is None else left.copy()

    def fill(self, tasks):
        for task in tasks:
            for layer, cells in (task.cells or {}).items():
                for number, head in cells:
                    some = slice(task.start, task.stop)
                    self.cells[some, number, layer, head] = self.truth[some, number, layer, head]

    def read(self, name):
        return self.estimate if name.endswith("_estimate") else self.cells

    def rows(self, start, unit):
        return 1

    def done(self, start, unit):
        return False

    def put(self, *_):
        pass

    def note(self, **_):
        pass


def test_an_interrupted_race_judges_each_round_by_what_it_knew_then():
    model = SimpleNamespace(n_heads=16, n_kv_heads=16, n_layers=4, masked_layers=(0, 1, 2, 3))
    unsafe, dropped = np.arange(60) % 2 == 0, 0
    for seed in range(10):
        generator = np.random.default_rng(seed)
        size = generator.gamma(1.0, 1.0, (1, 1, 4, 16))
        truth = size * generator.gamma(9.0, 0.2, (60, 1, 4, 16))
        estimate = truth * generator.gamma(4.0, 0.25, truth.shape)
        options = {**race.DEFAULTS, "k": 2, "screen": 30, "level": 0.5}
        asked, left = [], None
        for _ in range(2):  # the second time, everything that the first one stored is there from the start
            sink = Filled(truth, estimate, left)
            this = SimpleNamespace(
                model=model, job=Job(("query",), wb.Mask(), None, False), sink=sink, options=options, unsafe=unsafe,
                selection=np.ones(60, dtype=bool), bounds=[(i, i + 12) for i in range(0, 60, 12)],
            )  # fmt: skip
            rounds = []
            for tasks in race.phases(this):
                sink.fill(tasks)
                rounds.append([task.cells for task in tasks])
            asked.append(rounds)
            left = sink.cells
        assert asked[0] == asked[1]
        dropped += asked[0][1] != asked[0][-1]
    assert dropped > 4, "hardly anything was dropped, so hardly anything was judged"


def test_the_cost_of_a_screen_does_not_grow_with_heads(double):
    encoded = [double.encode(p) for p in text_prompts()]
    tokens, before = double.n_layers * sum(e.n_tokens for e in encoded), double.work.layer_tokens
    job = Job(("query", "value"), wb.Mask(), None, False, estimates=("deflection", "kl"), directions=4)
    ((_, arrays),) = screen.first_order_step(double, encoded, job, 64, [0])
    assert arrays["deflection_estimate"].shape == (6, 2, double.n_layers, double.n_heads)
    # One base pass, and one with a graph, which in the last layer has only the last position.
    assert tokens < double.work.layer_tokens - before < 2 * tokens


def test_exact_heads_fill_the_bound_of_a_sketched_top():
    generator = np.random.default_rng(0)
    truth = generator.gamma(1.0, 2.0, (40, 1, 4, 10)) * generator.gamma(1.0, 1.0, (1, 1, 4, 10))
    unsafe = np.arange(40) % 2 == 0
    estimate = 0.7 * truth
    exact = np.where(generator.random((4, 10)) < 0.5, truth, np.nan)
    low, high = truth[~unsafe].mean(0), truth[unsafe].mean(0)
    large = low > 0.5 * np.median(low)
    np.testing.assert_allclose((calibration(exact, estimate) * estimate.mean(0))[large], truth.mean(0)[large], rtol=0.3)
    levels = safe_levels(exact, unsafe, estimate)
    known = ~np.isnan(exact[0])
    np.testing.assert_allclose(levels[known], low[known])
    np.testing.assert_allclose(levels[large], low[large], rtol=0.3)
    # Of a head that left a race early, the prompts it was scored on.
    exact[20:, 0, 0, 0] = np.nan
    exact[:20, 0, 0, 0] = truth[:20, 0, 0, 0]
    assert safe_levels(exact, unsafe, estimate)[0, 0, 0] == pytest.approx(truth[:20][~unsafe[:20]].mean(0)[0, 0, 0])
    values = rule_values(truth, unsafe, "selectivity")
    assert (np.isneginf(values) == (low >= np.percentile(low, 80))).all()
    first = best_cells(values[0], 1)[0]
    assert values[0][first] == pytest.approx((high - low)[0][first])


def test_the_bound_is_that_of_all_heads():
    # Six heads of the ten were scored, and the two loudest on safe prompts are not among them: by the scored ones
    # alone, the bound would leave out the fourth head.
    safe = np.array([1.0, 2, 3, 4, 5, 6, 7, 8, 9, 10])
    cells = np.stack([safe, safe + 1, safe, safe + 1])[:, None, None]
    unsafe = np.array([False, True, False, True])
    exact = np.where(safe <= 5, cells, np.nan)
    alone, among_all = (rule_values(exact, unsafe, "selectivity", estimate=e)[0, 0] for e in (None, cells))
    assert np.isneginf(alone[4])
    np.testing.assert_allclose(among_all[:5], 1)
    assert np.isnan(among_all[5:]).all()


def test_the_sketched_top_is_the_exact_one():
    model, prompts = wb.load_model("planted", device="cpu"), wb.load_prompts("planted", n=24)
    run = wb.sweep(model, prompts, engine="sketch", keep_states=False, progress=False)
    exact = wb.sweep(model, prompts, keep_states=False, progress=False)
    unsafe = exact.label.values.astype(str) == "unsafe"
    best = best_cells(rule_values(exact.deflection.values, unsafe, "selectivity")[1], 1)
    scores = wb.score(run, "deflection", bootstrap=0, permutations=0)
    top = wb.top_heads(scores, criterion="deflection", rule="selectivity", projection="value", k=1)
    assert [(top.layer[0], top["head"][0])] == best


def test_heads_are_chosen_on_the_selection_prompts(tmp_path):
    model, prompts = wb.load_model("planted", device="cpu"), wb.load_prompts("planted", n=60)
    selection = [p for p in prompts if p.split == "selection"]
    assert 0 < len(selection) < 60
    options = {"best": 2, "edge": 1, "sample": 2}
    whole = wb.sweep(model, prompts, engine="sketch", engine_options=options, progress=False)
    part = wb.sweep(model, selection, engine="sketch", engine_options=options, progress=False)
    assert whole.attrs["screen_best"] == part.attrs["screen_best"]
    assert whole.attrs["screen_recall"] == part.attrs["screen_recall"]
    race = wb.sweep(model, prompts, engine="race", engine_options={"k": 1}, out=tmp_path / "race.zarr", progress=False)
    assert race.attrs["race_prompts"] == len(selection)
    # The winner is scored on every prompt, so that the run can be scored, and tested on the other splits.
    scores = wb.score(race, "deflection", bootstrap=0, permutations=0)
    for projection, cells in json.loads(race.attrs["race_top"]).items():
        top = wb.top_heads(scores, criterion="deflection", rule="selectivity", projection=projection, k=1)
        assert top[["layer", "head"]].values.tolist() == cells
        assert race.deflection.sel(projection=projection).values[:, *cells[0]].min() >= 0
    assert "L" in race_report(race.attrs)


def test_an_estimate_alone_cannot_be_scored(double):
    run = swept(double, "sketch", engine_options={"best": 0, "edge": 0, "sample": 0})
    assert run.deflection.isnull().all()
    assert sketch.report(run.attrs).startswith("All numbers are estimates")
    with pytest.raises(CriterionError, match=r"estimates only \(run.deflection_estimate\)"):
        wb.score(run, "deflection")


def test_chosen_heads_bound_the_sketch_and_the_race(double):
    heads = [(0, 0), (0, 1), (1, 0), (1, 1)]
    run = swept(double, "sketch", heads=heads, engine_options={"best": 3, "edge": 1, "sample": 4})
    assert {tuple(cell[1:]) for cell in run.attrs["exact_cells"]} <= set(heads)
    # Heads may come as a table's values do.
    same = swept(double, "sketch", heads=np.array(heads), engine_options={"best": 3, "edge": 1, "sample": 4})
    assert same.attrs["exact_cells"] == run.attrs["exact_cells"]


def test_the_race_finds_the_planted_head_with_less_work():
    model, prompts = wb.load_model("planted", device="cpu"), wb.load_prompts("planted", n=80)
    exact = wb.sweep(model, prompts, projections=("value",), keep_states=False, progress=False)
    unsafe = exact.label.values.astype(str) == "unsafe"
    best = best_cells(rule_values(exact.deflection.values, unsafe, "selectivity")[0], 1)
    options = {"k": 1, "level": 0.9}
    run = wb.sweep(
        model, prompts, projections=("value",), engine="race", engine_options=options, keep_states=False, progress=False
    )
    assert run.prompt.values.tolist() == [p.id for p in prompts]
    assert run.attrs["race_decided"]
    assert [tuple(cell) for cell in json.loads(run.attrs["race_top"])["value"]] == best
    assert run.attrs["layer_tokens"] < 0.7 * exact.attrs["layer_tokens"]
    known = run.deflection.notnull().values
    np.testing.assert_allclose(run.deflection.values[known], exact.deflection.values[known], atol=1e-2)
    raced = np.array([p.split == "selection" for p in prompts])
    np.testing.assert_array_equal(run.prompts_used.fillna(0).values, known[raced].sum(0))
    np.testing.assert_array_equal(known.sum(0) == len(prompts), run.prompts_used.values == raced.sum())


def test_the_level_of_the_race_holds():
    # Twelve heads, two prompts' classes, normal values: how often is one of the two best dropped?
    generator, lost = np.random.default_rng(0), 0
    unsafe = np.arange(96) % 2 == 0
    for _ in range(100):
        effect = np.concatenate([[0.8, 0.8], generator.uniform(-1, 0.5, 10)]).reshape(1, 1, 3, 4)
        cells = 5 + generator.normal(size=(96, 1, 3, 4)) + effect * unsafe[:, None, None, None]
        truth = best_cells(rule_values(cells, unsafe, "sensitivity")[0], 2)
        alive, risk, seen = np.ones((1, 3, 4), dtype=bool), 0.05 / (2 * 12 * 6), np.full_like(cells, np.nan)
        for stop in range(16, 97, 16):
            seen[stop - 16 : stop] = np.where(alive, cells[stop - 16 : stop], np.nan)
            now = race.standing(seen[:stop], unsafe, "sensitivity", risk)
            alive = race.survivors(alive, now, seen[:stop], unsafe, "sensitivity", 2)
        lost += not all(alive[0][cell] for cell in truth)
        assert alive.sum() < 12, "nothing was ever dropped"
    assert lost <= 5


@pytest.mark.parametrize(
    ("engine", "options", "said"),
    [
        ("sketch", {"rule": "best"}, "rule must be one of selectivity"),
        ("sketch", {"by": "js"}, "by must be one of deflection, kl"),
        ("sketch", {"directions": 0}, "directions must be a whole number"),
        ("sketch", {"heads": 3}, "takes no option heads; it takes directions"),
        ("race", {"level": 1.0}, "level must be a finite number from 0.5"),
        ("race", {"screen": 2}, "at least k = 5"),
        ("race", {"k": 0}, "k must be a whole number from 1; got 0"),
        ("sketch", {"edge": -1}, "edge must be a whole number from 0; got -1"),
        ("exact", {"k": 2}, "takes no option k"),
    ],
)
def test_options_without_a_meaning_are_refused(double, engine, options, said):
    with pytest.raises(WorkbenchError, match=said):
        swept(double, engine, engine_options=options)


def test_what_an_engine_cannot_do_is_refused(double):
    with pytest.raises(MaskError, match="engine='exact'"):
        swept(double, "sketch", groups=[[(0, 1)]])
    with pytest.raises(PromptError, match="at least 3 unsafe"):
        swept(double, "race", prompts=[p for p in text_prompts() if p.label == "safe"])
    assert set(sketch.DEFAULTS) > {"directions", "best", "sample"}


def test_heads_are_compared_prompt_by_prompt():
    # Prompts differ far more than heads do: only what a prompt does to both tells heads apart.
    generator, unsafe = np.random.default_rng(0), np.arange(64) % 2 == 0
    cells = generator.normal(size=(64, 1, 1, 1)) * 10 + np.array([3.0, 2.0, 1.0, 0.0]).reshape(1, 1, 1, 4)
    cells += 0.1 * generator.normal(size=cells.shape)
    alive, risk = np.ones((1, 1, 4), dtype=bool), 0.05 / 12
    now = race.standing(cells[:32], unsafe, "sensitivity", risk)
    assert now.low[0, 0, 0] < now.high[0, 0, 3], "the prompts are not different enough to prove anything"
    assert race.survivors(alive, now, cells[:32], unsafe, "sensitivity", 1)[0, 0].tolist() == [
        True,
        False,
        False,
        False,
    ]
