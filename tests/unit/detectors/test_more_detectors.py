"""The other detectors, on states that were built and on planted models: closed forms, and second roads to scores."""

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.spatial.distance import cdist, mahalanobis
from sklearn.linear_model import LogisticRegression

from tests.unit.planted_parts import labels, model, prompts, split
from workbench.criteria.thresholds import kde_threshold
from workbench.detectors import (
    DETECTORS,
    DirectionDetector,
    FusedHeadsDetector,
    GradSafe,
    JudgeDetector,
    ProbedStateDetector,
    RCSDetector,
    SAHsDetector,
    load_detector,
    make_detector,
)
from workbench.detectors.direction import best_layer
from workbench.detectors.gradsafe import gradients, matrices
from workbench.detectors.probed_states import fit_wide
from workbench.detectors.rcs import cluster_names, shrunk_covariance
from workbench.detectors.rcs_projection import contrast
from workbench.errors import DetectorError
from workbench.models.hooked import HookedLVLM
from workbench.sweeps.sweep import sweep

UNSAFE = np.array([True] * 12 + [False] * 12)


def built(states: np.ndarray, **coordinates: list[str]) -> xr.Dataset:
    """What a detector sees of prompts whose residual stream is `states`, [prompt, layer, d]."""
    n = len(states)
    about = {name: ["x"] * n for name in ("source", "family")} | coordinates
    coords = {name: ("prompt", np.array(of, dtype=object)) for name, of in about.items()}
    return xr.Dataset({"residual": (("prompt", "layer", "d_model"), states)}, {"prompt": np.arange(n), **coords})


@pytest.fixture(scope="module")
def run():
    return sweep(model(), prompts(), projections=("query",), progress=False, keep_states=False)


@pytest.mark.slow
@pytest.mark.parametrize("fuse", ["mean", "max", "vote"])
def test_fused_heads_are_each_on_their_own_scale(run, fuse):
    detector = FusedHeadsDetector(k=3, fuse=fuse).fit_run(run)
    part, test = (run.isel(prompt=run["split"].values == name) for name in ("selection", "test"))
    unsafe, scaled = part["label"].values == "unsafe", []
    for layer, head in detector.heads:
        learned, asked = (
            of["deflection"].sel(projection="query", layer=layer, head=head).values.astype(float) for of in (part, test)
        )
        scaled.append((asked - kde_threshold(learned[unsafe], learned[~unsafe]).value) / learned.std())
    wanted = {"mean": np.mean(scaled, 0), "max": np.max(scaled, 0), "vote": np.mean(np.array(scaled) > 0, 0)}[fuse]
    np.testing.assert_allclose(detector.stored_scores(test), wanted, rtol=1e-6)
    assert (3, 1) in detector.heads
    assert detector.threshold == 0.5 or fuse != "vote"


@pytest.mark.slow
def test_masked_heads_measure_what_their_criterion_reads_and_no_more(run):
    watched, readouts = model(), []
    for criterion in ("deflection", "ships"):
        before = watched.work.readouts
        live = FusedHeadsDetector(k=3, criterion=criterion).fit(watched, prompts())
        readouts.append(watched.work.readouts - before)
        stored = FusedHeadsDetector(k=3, criterion=criterion).fit_run(run)
        assert live.heads == stored.heads
        asked = split("test")
        np.testing.assert_array_equal(live.decision_function(watched, asked), stored.decision_function(watched, asked))
        assert (watched.work.readouts > before + readouts[-1]) == (criterion == "ships")
    assert readouts[0] == 0 < readouts[1]


@pytest.mark.slow
def test_a_head_is_drawn_for_every_prompt_by_its_id(run):
    detector = FusedHeadsDetector(k=4, fuse="random", draws=50).fit_run(run)
    test = run.isel(prompt=run["split"].values == "test")
    every = (detector.columns(test, detector.heads) - detector.centres[:, None]) / detector.scales[:, None]
    draws = detector.drawn_values(test)
    assert draws.shape == (50, test.sizes["prompt"])
    picked = (draws[:, None] == every).argmax(1)
    assert (every[picked, np.arange(every.shape[1])] == draws).all()
    assert min(len(set(row)) for row in picked) > 1, "a draw took one head for all prompts"
    shares = np.bincount(picked.ravel(), minlength=4) / picked.size
    assert shares == pytest.approx([0.25] * 4, abs=0.05)  # three standard errors of a share are 0.03
    turned = test.isel(prompt=slice(None, None, -1))
    np.testing.assert_array_equal(detector.stored_scores(turned), detector.stored_scores(test)[::-1])
    np.testing.assert_array_equal(detector.stored_scores(test), draws[0])


def test_a_direction_is_the_difference_of_means_at_the_layer_that_tells_best():
    rng = np.random.default_rng(0)
    states = rng.normal(size=(24, 3, 5))
    states[UNSAFE, 1] += [0, 0, 9, 0, 0]
    detector = DirectionDetector()
    detector.choose(built(states), UNSAFE)
    mean = states[UNSAFE, 1].mean(0) - states[~UNSAFE, 1].mean(0)
    assert detector.at == 1
    np.testing.assert_allclose(detector.direction, mean / np.linalg.norm(mean))
    np.testing.assert_allclose(detector.values(built(states)), states[:, 1] @ mean / np.linalg.norm(mean))
    assert best_layer(states[:, ::-1], UNSAFE) == 1


def test_neighbours_and_clusters_in_plain_states():
    rng = np.random.default_rng(1)
    states = rng.normal(size=(24, 1, 3)) + np.where(UNSAFE, 2.0, -2.0)[:, None, None]
    asked = built(rng.normal(size=(7, 1, 3)))
    unit = [s / np.linalg.norm(s, axis=1, keepdims=True) for s in (asked["residual"].values[:, 0], states[:, 0])]
    nearest = RCSDetector(width=0, k=4)
    nearest.choose(built(states), UNSAFE)
    benign, bad = (np.sort(cdist(unit[0], unit[1][of]), axis=1)[:, 3] for of in (~UNSAFE, UNSAFE))
    np.testing.assert_allclose(nearest.values(asked), benign - bad, atol=1e-12)
    clusters = RCSDetector(distance="mcd", width=0)
    sources = ["a"] * 6 + ["b"] * 6 + ["c"] * 12
    clusters.choose(built(states, source=sources), UNSAFE)
    inverse = {name: np.linalg.inv(shrunk_covariance(states[np.array(sources) == name, 0])) for name in "abc"}
    means = {name: states[np.array(sources) == name, 0].mean(0) for name in "abc"}
    for x, found in zip(asked["residual"].values[:, 0], clusters.values(asked), strict=True):
        away = {name: mahalanobis(x, means[name], inverse[name]) for name in "abc"}
        assert found == pytest.approx(away["c"] - min(away["a"], away["b"]))


def test_a_covariance_is_drawn_towards_the_identity_the_more_the_fewer_points():
    rng = np.random.default_rng(2)
    wide = rng.normal(size=(4000, 4)) * [1, 2, 3, 4]
    np.testing.assert_allclose(shrunk_covariance(wide), np.cov(wide.T), rtol=0.05, atol=0.3)
    few = shrunk_covariance(wide[:3])
    assert np.linalg.cond(few) < np.linalg.cond(np.cov(wide[:5].T))
    assert np.trace(few) == pytest.approx(np.trace(np.cov(wide[:3].T)))
    with pytest.raises(DetectorError, match="the same state"):
        shrunk_covariance(np.ones((5, 3)))


def test_clusters_are_sources_or_families_and_small_ones_go_together():
    families = ["text"] * 9 + ["icon"] * 3 + ["a"] * 6 + ["b"] * 6
    named = cluster_names(built(np.zeros((24, 1, 2)), family=families), UNSAFE)
    assert sorted(set(named)) == ["False a", "False b", "True text"]
    sources = ["s"] * 5 + ["t"] * 7 + ["u"] * 12
    assert len(set(cluster_names(built(np.zeros((24, 1, 2)), source=sources, family=families), UNSAFE))) == 4


@pytest.mark.slow
def test_the_learned_projection_separates_what_lies_in_a_shell():
    """Unsafe states lie on a sphere around the safe ones: no direction tells them apart, a learned projection does."""
    rng = np.random.default_rng(3)
    points = rng.normal(size=(192, 4))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    unsafe = np.arange(192) % 2 == 0
    states = (points * np.where(unsafe, 3.0, 0.3)[:, None])[:, None]
    train, test = built(states[:128]), built(states[128:])
    detector = RCSDetector(k=5)
    state = torch.random.get_rng_state()
    detector.choose(train, unsafe[:128])
    assert torch.equal(torch.random.get_rng_state(), state)
    right = (detector.values(test) > 0) == unsafe[128:]
    assert right.mean() > 0.95
    direction = DirectionDetector()
    direction.choose(train, unsafe[:128])
    assert abs(np.corrcoef(direction.values(test), unsafe[128:])[0, 1]) < 0.5
    again = RCSDetector(k=5)
    again.choose(train, unsafe[:128])
    np.testing.assert_array_equal(again.values(test), detector.values(test))


def test_the_loss_of_the_projection_by_hand():
    embedded = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [-5.0, 0.0]])  # unit vectors: right, up, left, left
    label, group = torch.tensor([True, True, False, False]), torch.tensor([0, 0, 1, 1])
    within = (2**0.5 + 0.0) / 2  # right to up, left to left
    between = 0.0  # right to left is 2, up to left the root of 2: all over the margin of 1
    centres = np.linalg.norm(np.array([0.5, 0.5]) - np.array([-1.0, 0.0]))
    labels = (2 - centres) + np.linalg.norm([0.5, 0.5]) + 0.0
    assert float(contrast(embedded, label, group)) == pytest.approx(within + between + 5 * labels, abs=1e-5)
    one = torch.tensor([0, 0, 0, 0])
    assert float(contrast(embedded, label, one)) == pytest.approx(5 * labels, abs=1e-5)
    near = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
    apart = float(contrast(near, torch.tensor([True, True]), torch.tensor([0, 1])))
    assert apart == pytest.approx(1 - np.hypot(0.2, 0.6), abs=1e-5)


def test_wide_regressions_reach_the_optimum_that_scikit_learn_reaches():
    rng = np.random.default_rng(4)
    features = rng.normal(size=(24, 300)) + UNSAFE[:, None] * 0.2
    coef, intercept = fit_wide(features, UNSAFE, C=0.7)
    theirs = LogisticRegression(C=0.7, tol=1e-12, max_iter=10_000).fit(features, UNSAFE)
    np.testing.assert_allclose(coef, theirs.coef_[0], atol=1e-5)
    assert intercept == pytest.approx(theirs.intercept_[0], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("site", ["state", "logits"])
def test_a_probe_reads_the_model_where_it_says(site):
    detector = ProbedStateDetector(site=site).fit(model(), prompts())
    prompt = split("test")[0]
    read = (model().state if site == "state" else model().logits)(prompt).double().numpy()
    score = detector.decision_function(model(), [prompt])[0]
    assert score == pytest.approx(read @ detector.coef + detector.intercept, abs=1e-4)
    assert (detector.predict(model(), split("test")) == labels(split("test"))).all()


def test_gradients_are_those_of_the_reply_and_leave_no_trace():
    prompt, found = split("test")[0], {}
    gradients(model(), prompt, "sure", lambda number, gradient: found.__setitem__(number, gradient.clone()))
    weights = matrices(model())
    asked = model().encode(prompt)
    word = model().tokenizer.encode("sure", add_special_tokens=False)[0]
    ids = torch.cat([asked.input_ids, torch.tensor([[word]])], 1)
    for weight in weights:
        weight.requires_grad_(True)
    inputs = {k: v for k, v in asked.model_inputs.items() if k not in ("input_ids", "attention_mask")}
    chances = model().hf(input_ids=ids, **inputs).logits[0, -2:].log_softmax(-1)
    loss = -(chances[0, word] + chances[1, model().tokenizer.eos_token_id]) / 2
    wanted = torch.autograd.grad(loss, weights)
    for weight in weights:
        weight.requires_grad_(False)
    assert len(found) == len(weights)
    for number, gradient in enumerate(wanted):
        np.testing.assert_allclose(found[number].numpy(), gradient.numpy(), atol=1e-5)
    assert all(weight.grad is None and not weight.requires_grad for weight in weights)


@pytest.mark.slow
def test_gradsafe_is_the_mean_cosine_of_the_slices_it_kept():
    detector = GradSafe(reply="sure").fit(model(), prompts())
    drawn = [p for p in split("selection") if p.id not in detector.calibration["threshold_prompts"]]
    assert len(detector.calibration["threshold_prompts"]) <= len(split("threshold"))
    assert drawn
    prompt, found = split("test")[1], {}
    gradients(model(), prompt, "sure", lambda number, gradient: found.__setitem__(number, gradient.clone()))
    at, cosines = 0, []
    for number, axis, index in detector.slices.astype(int):
        mine = (found[number][index] if axis == 0 else found[number][:, index]).double().numpy()
        reference = detector.reference[at : at + len(mine)].astype(float)
        length = np.linalg.norm(mine) * np.linalg.norm(reference)
        cosines.append(mine @ reference / length if length else 0.0)
        at += len(mine)
    assert at == len(detector.reference)
    assert detector.decision_function(model(), [prompt])[0] == pytest.approx(np.mean(cosines), abs=1e-5)
    test = split("test")
    assert (detector.predict(model(), test) == labels(test)).mean() > 0.9
    with pytest.raises(DetectorError, match="Give a smaller gap"):
        GradSafe(reply="sure", gap=2.0).fit(model(), prompts())
    with pytest.raises(DetectorError, match="another word as reply"):
        GradSafe(reply="nevermore").fit(model(), prompts())


def test_few_shots_learn_from_that_many_prompts_of_each_category(monkeypatch):
    trained = []
    real = SAHsDetector.choose.__globals__["fit_logistic"]
    monkeypatch.setitem(
        SAHsDetector.choose.__globals__, "fit_logistic", lambda x, y, **o: trained.append(len(y)) or real(x, y, **o)
    )
    detector = make_detector("sahs-few-shot", shots=1).fit(model(), prompts())
    categories = {(p.label, p.category or p.family) for p in split("selection")}
    assert trained == [len(categories)]
    assert (detector.predict(model(), split("test")) == labels(split("test"))).mean() > 0.9


def test_a_judge_may_read_the_reply_too(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "workbench.detectors.judge.verdict", lambda judge, prompt, *words: asked.append(prompt.text) or 1.0
    )
    judge = JudgeDetector(question="{text} / {reply}", unsafe_word="i", safe_word="sure", max_new_tokens=2)
    judge.threshold, judge.weight_hash = 0.0, model().weight_hash
    prompt = next(p for p in split("test") if p.label == "unsafe")
    judge.decision_function(model(), [prompt])
    assert asked == [f"{prompt.text} / i cannot"]


STORED = ("one-head-random", "last-layer", "rcs-mcd", "gradsafe", "direction")


@pytest.mark.slow
@pytest.mark.parametrize("name", STORED)
def test_each_is_stored_and_loaded_as_it_is(name, tmp_path):
    detector = make_detector(name).fit(model(), prompts(48))
    path = detector.save(tmp_path / "it")
    loaded = load_detector(path)
    test = prompts(48).where(split="test")[:4]
    np.testing.assert_array_equal(loaded.decision_function(model(), test), detector.decision_function(model(), test))
    assert repr(loaded) == repr(detector)
    assert loaded.save(tmp_path / "again").joinpath("detector.json").read_text() == (path / "detector.json").read_text()


def test_each_record_says_what_it_is():
    names = (
        "one-head one-head-random one-head-fused ships sahs sahs-few-shot hidden-detect first-token last-layer rcs-kcd"
    )
    assert set(f"{names} rcs-mcd gradsafe direction judge".split()) <= set(DETECTORS)
    for record in DETECTORS.values():
        assert record.needs
        assert record.says
        assert record.source
        assert record.kind.__doc__
        assert "Source:" in record.kind.__doc__


def test_a_guard_does_not_describe_the_tokenizer_at_every_call(monkeypatch):
    from workbench.models import fingerprint

    detector = DirectionDetector().fit(model(), prompts())
    read = []
    monkeypatch.setattr(fingerprint.json, "loads", lambda *a: read.append(a) or {})
    detector.decision_function(model(), split("test")[:1])
    detector.decision_function(model(), split("test")[:1])
    assert not read
    assert isinstance(model(), HookedLVLM)
