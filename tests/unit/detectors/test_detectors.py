"""Detectors on the planted model, whose answer is known, and how they are stored."""

import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from tests.unit.planted_parts import labels, model, prompts, split
from tests.unit.synthetic_run import synthetic_run
from workbench.axes import LABELS
from workbench.criteria.thresholds import kde_threshold
from workbench.detectors import HiddenDetect, JudgeDetector, OneHeadDetector, SAHsDetector, load_detector
from workbench.detectors.calibration import calibration_parts
from workbench.detectors.looks import look
from workbench.errors import DetectorError
from workbench.models.masks import Mask
from workbench.prompts.prompt import PromptSet

PLANTED, DECOY = (3, 1), (0, 2)


def undeclared(n: int | None = None) -> PromptSet:
    return PromptSet(replace(p, split="") for p in prompts()[:n])


@pytest.mark.slow
def test_one_head_finds_the_planted_head_and_separates_prompts_it_has_not_seen(one_head):
    test = split("test")
    scores, unsafe = one_head.decision_function(model(), test), labels(test) == "unsafe"
    assert one_head.head == PLANTED
    assert scores[unsafe].min() > 10 * scores[~unsafe].max(), "toy problem too weak to prove anything"
    assert scores[~unsafe].max() < one_head.threshold < scores[unsafe].min()
    assert (one_head.predict(model(), test) == labels(test)).all()


@pytest.mark.slow
def test_score_is_the_angle_of_that_head_alone(one_head):
    prompt = split("test")[0]
    base = model().state(prompt).double().numpy()
    masked = model().state(prompt, heads=[PLANTED]).double().numpy()
    angle = np.degrees(np.arccos(base @ masked / np.linalg.norm(base) / np.linalg.norm(masked)))
    assert one_head.decision_function(model(), [prompt])[0] == pytest.approx(angle, abs=1e-3)


def test_declared_splits_pick_the_head_on_one_part_and_the_threshold_on_the_other(one_head):
    used = one_head.calibration
    assert set(used["selection_prompts"]) == {p.id for p in split("selection")}
    assert set(used["threshold_prompts"]) == {p.id for p in split("threshold")}
    of = split("threshold")
    values, unsafe = one_head.decision_function(model(), of), labels(of) == "unsafe"
    assert one_head.threshold == pytest.approx(kde_threshold(values[unsafe], values[~unsafe]).value)


@pytest.mark.slow
def test_undeclared_prompts_choose_all_together_and_set_the_threshold_out_of_fold(run):
    detector = OneHeadDetector(seed=3).fit(model(), undeclared())
    parts = calibration_parts(undeclared(), seed=3)
    assert detector.head == PLANTED
    assert detector.stability == 1
    assert detector.calibration["split"] == "cross-fitted in 4 folds, seed 3"
    everything = [p.id for p in prompts()]
    assert detector.calibration["selection_prompts"] == detector.calibration["threshold_prompts"] == everything
    # Every fold takes the planted head, so the values out of fold are that head's.
    values, unsafe = run["deflection"].sel(projection="query", layer=3, head=1).values, labels(prompts()) == "unsafe"
    assert detector.threshold == pytest.approx(kde_threshold(values[unsafe], values[~unsafe]).value, rel=1e-4)
    sizes = np.bincount(parts.fold)
    assert len(sizes) == 4
    assert sizes.min() >= 20
    pair_folds = {(p.pair_id, int(fold)) for p, fold in zip(prompts(), parts.fold, strict=True)}
    assert len(pair_folds) == len({p.pair_id for p in prompts()}), "a pair lies in two folds"


@pytest.mark.slow
def test_no_prompt_is_thresholded_by_what_was_chosen_on_it(run, monkeypatch):
    chosen_on, valued, known = [], [], OneHeadDetector.values
    monkeypatch.setattr(OneHeadDetector, "choose", lambda self, seen, unsafe: chosen_on.append(set(seen.prompt.values)))
    monkeypatch.setattr(OneHeadDetector, "_chooses", lambda self: True)
    monkeypatch.setattr(
        OneHeadDetector, "values", lambda self, seen: (valued.append(set(seen.prompt.values)), known(self, seen))[1]
    )
    undeclared_run = run.assign_coords(split=("prompt", [""] * run.sizes["prompt"]))
    OneHeadDetector(head=PLANTED).fit_run(undeclared_run)
    assert len(chosen_on) == 5
    assert len(valued) == 4
    for trained, tested in zip(chosen_on, valued, strict=False):
        assert not trained & tested
        assert len(trained | tested) == run.sizes["prompt"]
    assert set.union(*valued) == chosen_on[-1] == set(run.prompt.values)


@pytest.mark.slow
def test_few_prompts_choose_a_better_head_when_all_of_them_choose():
    def fitted(splits: tuple[str, ...], seed: int) -> OneHeadDetector:
        sizes = {"pairs": 16, "layers": 6, "heads": 8, "planted": ((2, 3),), "effect": 1.5}
        made = synthetic_run(**sizes, splits=splits, seed=seed, keep_states=False)
        return OneHeadDetector().fit_run(made.assign_attrs(weight_hash="0123", **Mask().describe()))

    found = [fitted(("",), seed) for seed in range(20)]
    halved = [fitted(("selection", "threshold"), seed) for seed in range(20)]
    assert sum(d.head == (2, 3) for d in found) > sum(d.head == (2, 3) for d in halved) + 3
    assert all(0 <= d.stability <= 1 for d in found)
    assert min(d.stability for d in found) < 1, "toy problem too easy to prove anything"
    assert all(np.isnan(d.stability) for d in halved)


def test_a_stored_run_gives_the_same_detector_as_the_model(one_head, run):
    stored = OneHeadDetector().fit_run(run)
    assert (stored.head, stored.weight_hash) == (one_head.head, one_head.weight_hash)
    assert stored.threshold == pytest.approx(one_head.threshold, rel=1e-4)


def test_ships_by_sensitivity_falls_for_the_decoy(run):
    assert OneHeadDetector(criterion="ships", rule="sensitivity").fit_run(run).head == DECOY
    assert OneHeadDetector(criterion="ships", rule="auroc").fit_run(run).head == PLANTED


def test_one_of_k_candidates_is_drawn_with_the_seed(run):
    drawn = {seed: OneHeadDetector(rule="sensitivity", k=4, seed=seed).fit_run(run) for seed in range(6)}
    kept = drawn[0].candidates
    assert len(kept) == 4
    assert all(d.head in kept and d.candidates == kept for d in drawn.values())
    assert len({d.head for d in drawn.values()}) > 1
    assert OneHeadDetector(rule="sensitivity", k=4, seed=5).fit_run(run).head == drawn[5].head


def test_a_given_head_is_used_without_choosing(run):
    assert OneHeadDetector(head=(1, 2)).fit_run(run).head == (1, 2)


def test_refusal_change_is_turned_so_that_higher_is_more_unsafe(run):
    detector = OneHeadDetector(criterion="refusal_change", rule="selectivity").fit_run(run)
    test = split("test")
    scores = detector.decision_function(model(), test)
    raw = run["refusal_change"].sel(prompt=[p.id for p in test], projection="query", layer=3, head=1).values
    assert detector.head == PLANTED
    np.testing.assert_allclose(scores, -raw, atol=1e-3)
    assert scores[labels(test) == "unsafe"].min() > scores[labels(test) == "safe"].max()


@pytest.mark.slow
def test_sahs_puts_the_best_heads_together_as_scikit_learn_would(run):
    detector = SAHsDetector(k=3).fit(model(), prompts())
    z = run["head_output"].sel(prompt=[p.id for p in split("selection")])
    features = np.concatenate([z.sel(layer=at, head=head).values for at, head in detector.heads], axis=1).astype(float)
    theirs = LogisticRegression(tol=1e-12, max_iter=10_000).fit(features, labels(split("selection")) == "unsafe")
    test = run["head_output"].sel(prompt=[p.id for p in split("test")])
    features = np.concatenate([test.sel(layer=at, head=head).values for at, head in detector.heads], axis=1)
    scores = detector.decision_function(model(), split("test"))
    assert detector.heads[0] == PLANTED
    assert len(detector.heads) == 3
    np.testing.assert_allclose(scores, theirs.decision_function(features.astype(float)), atol=1e-3)
    assert (detector.predict(model(), split("test")) == labels(split("test"))).all()


def test_sahs_keeps_every_head_over_an_accuracy():
    assert SAHsDetector(accuracy=0.99).fit(model(), prompts()).heads == [PLANTED]


def refusal_strength(prompts, tokens):
    """What the detector reads of each layer, [prompt, layer]."""
    seen = look(model(), prompts, HiddenDetect(tokens=tokens).wants(model(), choosing=False))
    return seen[f"strength of {tuple(tokens)}"].values


def test_hidden_detect_reads_each_layer_as_hugging_face_shows_it():
    prompt, tokens = split("test")[0], [3, 18]
    seen = model().hf(**model().encode(prompt).model_inputs, output_hidden_states=True).hidden_states
    lens = [model().final_norm(h[:, -1]) for h in seen[1:-1]] + [seen[-1][:, -1]]
    logits = np.stack([model().hf.lm_head(h)[0].detach().numpy() for h in lens]).astype(float)
    wanted = np.zeros(logits.shape[1])
    wanted[tokens] = 1
    cosine = logits @ wanted / (np.linalg.norm(logits, axis=1) * np.linalg.norm(wanted))
    np.testing.assert_allclose(refusal_strength([prompt], tokens)[0], cosine, atol=1e-6)


@pytest.mark.slow
def test_hidden_detect_scores_the_area_over_the_layers_it_chose():
    detector = HiddenDetect().fit(model(), prompts())
    assert detector.layers == (3, 3)  # only the planted head's layer says anything of refusal
    assert (detector.predict(model(), split("test")) == labels(split("test"))).all()
    detector.layers = (1, 3)
    f = refusal_strength(split("test"), model().refusal_tokens)
    area = (f[:, 1] + f[:, 2]) / 2 + (f[:, 2] + f[:, 3]) / 2
    np.testing.assert_allclose(detector.decision_function(model(), split("test")), area)


@pytest.mark.slow
def test_judges_may_be_a_function_or_a_model_that_is_asked():
    told = JudgeDetector(lambda p: float(p.label == "unsafe"), threshold=0.5).fit(model(), prompts())
    assert (told.predict(model(), split("test")) == labels(split("test"))).all()
    asked = JudgeDetector(question="{text}", unsafe_word="i", safe_word="sure").fit(model(), prompts())
    logits = model().logits(split("test")[0])
    words = [model().tokenizer.encode(w, add_special_tokens=False)[0] for w in ("i", "sure")]
    score = asked.decision_function(model(), split("test"))[0]
    assert score == pytest.approx(float(logits[words[0]] - logits[words[1]]), abs=1e-4)
    assert score > 0
    with pytest.raises(DetectorError, match="does not know the word 'unsafe'"):
        JudgeDetector().fit(model(), prompts())
    with pytest.raises(DetectorError, match="same token"):
        JudgeDetector(unsafe_word="sure", safe_word="sure").fit(model(), prompts())


@pytest.mark.slow
def test_a_verdict_is_read_after_the_newlines_that_a_judge_opens_with(monkeypatch):
    tokenizer, decode = model().tokenizer, model().tokenizer.decode
    replies = {label: model().generated(next(p for p in split("test") if p.label == label)) for label in LABELS}
    opened = {int(t) for out in replies.values() for t in out.sequences[0, out.n_prompt_tokens :][:2]}
    monkeypatch.setattr(
        tokenizer, "decode", lambda ids, **o: "\n" if len(ids) == 1 and int(ids[0]) in opened else decode(ids, **o)
    )
    # The third words of "i cannot help …" and "sure here it …" are this double's verdicts; both of two blanks are read.
    judge = JudgeDetector(question="{text}", unsafe_word="help", safe_word="it").fit(model(), prompts())
    test = split("test")[:6]
    scores = judge.decision_function(model(), test)
    assert ((scores > 0) == (labels(test) == "unsafe")).all()
    help_, it = (tokenizer.encode(w, add_special_tokens=False)[0] for w in ("help", "it"))
    out = model().generated(test[0], max_new_tokens=2)
    inputs = {k: v for k, v in model().encode(test[0]).model_inputs.items() if k not in ("input_ids", "attention_mask")}
    logits = model().hf(input_ids=out.sequences, **inputs).logits[0, -1].double()
    assert scores[0] == pytest.approx(float(logits[help_] - logits[it]), abs=1e-4)
    assert judge.cost(model(), test[:2], max_new_tokens=2).forward_passes > 1
    monkeypatch.setattr(tokenizer, "decode", lambda ids, **o: "\n" if int(ids[0]) not in (help_, it) else "x")
    monkeypatch.setattr("workbench.detectors.judge.MOST_BLANK", 1)
    with pytest.raises(DetectorError, match="more than 1 blank tokens"):
        judge.decision_function(model(), test[:1])


@pytest.mark.slow
def test_cost_counts_passes_not_time(one_head):
    cost = one_head.cost(model(), split("test")[:2], max_new_tokens=2)
    assert 1 < cost.forward_passes < 1.25  # the planted head is in the last layer: one more position of it
    assert HiddenDetect().fit(model(), prompts()).cost(model(), split("test")[:2]).forward_passes == 1
    early = OneHeadDetector(head=(0, 1)).fit(model(), prompts()).cost(model(), split("test")[:2])
    assert early.forward_passes > 1.5
    assert cost.latency_ratio == pytest.approx(cost.detect_s / cost.generate_s)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda: OneHeadDetector(k=2, mask=Mask(form="scale", factor=0.5), projection="value", seed=4),
        lambda: OneHeadDetector(head=(3, 1), threshold=5.0),
        lambda: SAHsDetector(k=2, threshold="kde"),
        lambda: HiddenDetect(),
        lambda: JudgeDetector(question="{text}", unsafe_word="i", safe_word="sure"),
    ],
    ids=["one head", "given head", "sahs", "hidden detect", "judge"],
)
def test_what_is_stored_is_what_is_loaded(make, tmp_path):
    detector = make().fit(model(), prompts())
    path = detector.save(tmp_path / "detector")
    loaded = type(detector).load(path)
    assert sorted(f.name for f in path.iterdir()) == ["arrays.safetensors", "detector.json"]
    test = split("test")
    np.testing.assert_array_equal(loaded.decision_function(model(), test), detector.decision_function(model(), test))
    for name in ("threshold", "weight_hash", "model_name", "calibration"):
        assert getattr(loaded, name) == getattr(detector, name)
    assert type(load_detector(path)) is type(detector)
    assert loaded.save(tmp_path / "again").joinpath("detector.json").read_text() == (path / "detector.json").read_text()


def test_a_model_judge_has_to_be_given_back(tmp_path):
    judge = model("planted-pair")
    detector = JudgeDetector(judge, question="{text}", unsafe_word="i", safe_word="sure").fit(model(), prompts())
    loaded = JudgeDetector.load(detector.save(tmp_path / "judge"))
    with pytest.raises(DetectorError, match="wants its judge model back"):
        loaded.decision_function(model(), split("test"))
    with pytest.raises(DetectorError, match=judge.weight_hash):
        loaded.with_judge(model())
    test = split("test")[:4]
    found = loaded.with_judge(judge).decision_function(model(), test)
    np.testing.assert_array_equal(found, detector.decision_function(model(), test))
    with pytest.raises(DetectorError, match="function cannot be stored"):
        JudgeDetector(lambda p: 1.0).fit(model(), prompts()).save(tmp_path / "function")


def test_stored_detectors_that_cannot_be_used(one_head, tmp_path):
    with pytest.raises(DetectorError, match="no stored detector"):
        OneHeadDetector.load(tmp_path / "nothing")
    path = one_head.save(tmp_path / "detector")
    with pytest.raises(DetectorError, match="holds a 'one-head' detector"):
        SAHsDetector.load(path)
    whole = json.loads((path / "detector.json").read_text())
    broken = {
        "{": "damaged",
        json.dumps({**whole, "format": "2"}): "format '2'",
        json.dumps({**whole, "learned": {}}): "head",
    }
    for text, message in broken.items():
        (path / "detector.json").write_text(text)
        with pytest.raises(DetectorError, match=message):
            OneHeadDetector.load(path)
    with pytest.raises(DetectorError, match="not fitted"):
        OneHeadDetector().save(tmp_path / "unfitted")
