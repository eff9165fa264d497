"""Attacks whose reach is known: a score that is linear in the pixels, the planted model's, the null model's."""

from math import sqrt
from statistics import NormalDist
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch

import workbench as wb
from tests.unit import planted_parts
from workbench.attacks import words
from workbench.attacks.descent import Descent, drawn_scores, largest_score
from workbench.attacks.pictures import noise, twin_pictures
from workbench.attacks.words import harmless_words, search, sentences
from workbench.comparison.entrants import entrants, fit_all
from workbench.detectors import gradients
from workbench.detectors.detector import Detector
from workbench.detectors.fused_heads import FusedHeadsDetector
from workbench.detectors.looks import Wants
from workbench.detectors.one_head import OneHeadDetector
from workbench.detectors.rcs import RCSDetector
from workbench.errors import DetectorError, PromptError
from workbench.models.embedded import planted_weights as w
from workbench.prompts.prompt import PromptSet
from workbench.prompts.worlds import pocket, pocket_words
from workbench.prompts.worlds.planted import draw_planted_prompts

HAZARD_HEAD = (3, 1)


def value(table: pd.DataFrame, **keys: object) -> pd.Series:
    for name, wanted in keys.items():
        table = table[table[name] == wanted]
    return table.set_index("eps")["value"]


@pytest.fixture(scope="module")
def icons() -> PromptSet:
    """Twins whose hazard is an icon in the picture, and nowhere else."""
    return draw_planted_prompts(n=96).where(family="icon")


@pytest.fixture(scope="module")
def one(icons) -> OneHeadDetector:
    return OneHeadDetector(head=HAZARD_HEAD).fit(planted_parts.model(), icons)


@pytest.fixture(scope="module")
def unsafe(icons) -> PromptSet:
    return icons.where(label="unsafe", split="test")


def descended(model, prompts, detector, eps: int, steps: int, **how):
    """A descent, and the best that it found in one box."""
    descent = Descent(model, prompts, detector, **how)
    ((_, found),) = descent.within(eps, (steps,))
    return descent, found


class Brightness(Detector):
    """How bright a picture is: the mean of its normalised pixels, -1 to 1."""

    name: ClassVar[str] = "brightness"

    def wants(self, model, *, choosing):
        return Wants(reads={"light": lambda model, base: ((), self.light(base).detach().numpy())})

    @staticmethod
    def light(base):
        return torch.stack([e.model_inputs["pixel_values"].double().mean() for e in base.encoded])

    def values(self, seen):
        return seen["light"].values


class Shortness(Detector):
    """How short a prompt is: less its number of tokens."""

    name: ClassVar[str] = "shortness"

    def wants(self, model, *, choosing):
        return Wants(reads={"short": lambda model, base: ((), np.full(base.n_prompts, -float(base.n_pos)))})

    def values(self, seen):
        return seen["short"].values


@pytest.mark.slow
def test_a_linear_score_is_evaded_at_the_size_worked_out_by_hand(monkeypatch, icons):
    """A pixel of value x is seen as x / 127.5 - 1. The planted world's are 0 or 255, and only the bright ones can get
    darker: a change of eps takes eps / 127.5 times their share from the mean."""
    monkeypatch.setattr(gradients, "SCORES", {Brightness: lambda d, model, base: d.light(base)[None]})
    pixels = np.stack([np.asarray(p.image, dtype=float) for p in icons if p.label == "unsafe" and p.split == "test"])
    mean, bright = (pixels / 127.5 - 1).mean((1, 2, 3)), (pixels == 255).mean((1, 2, 3))
    threshold = float(mean.min()) - 0.15
    needed = (mean - threshold) * 127.5 / bright
    detector = {"light": Brightness(threshold, 0)}
    boxes = [round(float(np.median(needed))), int(np.ceil(needed.max()))]
    how = {"eps": boxes, "steps": 8, "kl_budget": None, "starts": "picture", "max_new_tokens": 1}
    table = wb.attack(planted_parts.model(), icons, detector, **how)
    found = value(table, attacked="light", scored_by="light", measure="evasion")
    assert found.to_dict() == {eps: np.mean(needed <= eps) for eps in boxes}
    assert 0 < found[boxes[0]] < found[boxes[1]] == 1


def gelu(x: float) -> float:
    return x * NormalDist().cdf(x)


def sees_hazard(agreement: float) -> bool:
    """Whether the planted head looks at a patch that agrees so far, of 6, with an icon of a hazard.

    The projector shows the share `shown` of the icon on the background, and the head looks at it rather than at the
    first token where what is left of the hazard, in a state brought back to length 8, is over a half of its full size.
    """
    x = 24 * (agreement - 5)
    shown = (gelu(x + 8) - gelu(x - 8)) / 16
    background, icon = (np.array(w.embedding(parts)) for parts in ({}, w.thing(0, hazard=True)))
    state = background + shown * (icon - background)
    return 8 * shown / np.linalg.norm(state) > 0.5


@pytest.mark.slow
def test_the_planted_hazard_goes_out_of_sight_between_the_two_sizes_worked_out_by_hand(icons, unsafe, one):
    """Six channels of a patch are ±1. With k of them brought to t of their size, LayerNorm makes of their sum
    4 (6 - k + k t) / sqrt(2 (6 - k + k t²) + 4). The least in a box is with all six (the sum has no minimum inside it);
    the way to the twin's green for the icon's red moves two, past zero."""

    def least(eps: int) -> float:
        t = 1 - 2 * eps / 255
        return min(4 * (6 - k + k * t) / sqrt(2 * (6 - k + k * t * t) + 4) for k in range(7))

    def towards_twin(eps: int) -> float:
        t = 1 - 2 * eps / 255
        return 4 * (4 + 2 * t) / sqrt(2 * (4 + 2 * t * t) + 4)

    hidden = next(eps for eps in range(256) if not sees_hazard(least(eps)))
    twin = next(eps for eps in range(256) if not sees_hazard(towards_twin(eps)))
    assert (hidden, twin) == (52, 107)
    how = {"eps": (hidden - 1, twin), "steps": 0, "kl_budget": None, "max_new_tokens": 5}
    table = wb.attack(planted_parts.model(), icons, {"one": one}, **how)
    found = value(table, attacked="one", scored_by="one", measure="evasion")
    assert found.to_dict() == {hidden - 1: 0, twin: 1}
    # The head that is detected by is the head that refuses: what hides from one frees the other.
    complied = value(table, attacked="one", measure="complied")
    assert (complied[hidden - 1], complied[twin]) == (0, 1)
    model, twins = planted_parts.model(), twin_pictures(unsafe, icons.where(label="safe"))
    _, lost = descended(model, unsafe, one, 255, 0, kl_budget=0.1, starts=twins)
    assert (lost.score > one.threshold).all(), "with the next token kept, no picture is left that hides it"
    _, short = descended(model, unsafe, one, twin - 1, 0, kl_budget=float("inf"), starts=twins)
    assert (short.score > one.threshold).all()
    _, near = descended(model, unsafe, one, hidden - 1, 2, kl_budget=float("inf"), starts=twins)
    assert (near.score > one.threshold).all(), "nor can any, so near"


@pytest.mark.slow
def test_no_change_changes_nothing(icons, unsafe, one):
    table = wb.attack(planted_parts.model(), icons, {"one": one}, eps=0, steps=1, max_new_tokens=1)
    assert set(table["eps"]) == {0}
    assert set(table["attacked"]) == {"nothing"}
    assert table.loc[table["measure"] == "kl", "value"].tolist() == [0.0]
    descent, found = descended(planted_parts.model(), unsafe, one, 0, 2, kl_budget=float("inf"))
    assert all((road.pixels == after).all() for road, after in zip(descent.roads, found.pixels, strict=True))
    assert (found.kl == 0).all()
    assert all(a is b for a, b in zip(unsafe, noise(unsafe, 0, 0), strict=True))


def test_on_the_null_model_nothing_pulls(icons, unsafe):
    null = planted_parts.model("null")
    detector = OneHeadDetector(head=HAZARD_HEAD).fit(null, icons)
    descent, found = descended(null, unsafe, detector, 64, 2, kl_budget=float("inf"))
    assert len(descent.flat) == (found.score > detector.threshold).sum()
    np.testing.assert_allclose(found.score, largest_score(detector, null, unsafe), rtol=1e-4)
    assert (found.kl < 1e-6).all()


NAMES = ("one-head", "ships", "one-head:criterion=l2", "one-head:criterion=refusal_change:projection=value",
         "one-head:criterion=tv", "one-head-fused:k=3", "one-head-fused:k=3:fuse=max", "sahs:k=4", "hidden-detect",
         "direction", "last-layer", "first-token")  # fmt: skip
DRAWN = "one-head-random:k=3"


@pytest.fixture(scope="module")
def fitted(icons) -> dict[str, Detector]:
    left_out: dict[str, str] = {}
    calibration = PromptSet(p for p in icons if p.split != "test")
    asked = entrants((*NAMES, DRAWN), seed=0)
    found = fit_all(planted_parts.model(), asked, calibration, left_out, out=None, progress=False)
    assert not left_out
    return {entrant.key: entrant.detector for entrant in found}


@pytest.mark.slow
def test_scores_with_a_gradient_are_the_detectors_own(fitted):
    model, some = planted_parts.model(), planted_parts.split("test")[:4]
    bases = [model.base(prompt) for prompt in some]
    for name in NAMES:
        theirs = drawn_scores(fitted[name], model, some)[0]
        ours = [float(gradients.score_parts(fitted[name], model, base)[0, 0]) for base in bases]
        assert np.ptp(theirs) > 0, name
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, err_msg=name)


def test_a_draw_is_attacked_under_every_draw(fitted):
    model, prompt = planted_parts.model(), planted_parts.split("test")[0]
    parts = gradients.score_parts(fitted[DRAWN], model, model.base(prompt))[:, 0].numpy()
    drawn = np.unique(drawn_scores(fitted[DRAWN], model, [prompt]))
    assert len(parts) == 3
    assert all(np.isclose(parts, one, rtol=1e-4).any() for one in drawn)


@pytest.mark.parametrize(
    ("detector", "said"),
    [
        (RCSDetector(at=3, width=0), "RCSDetector has no gradient"),
        (FusedHeadsDetector(fuse="vote"), "A vote"),
        (OneHeadDetector(head=HAZARD_HEAD, criterion="js"), "'js' has no gradient"),
    ],
)
def test_what_has_no_gradient_is_refused_by_name(detector, said):
    model = planted_parts.model()
    with pytest.raises(DetectorError, match=said):
        gradients.score_parts(detector, model, model.base(planted_parts.prompts(96)[0]))


@pytest.mark.slow
def test_what_was_made_against_one_is_tried_on_others_and_kept(icons, unsafe, one, tmp_path):
    model, out = planted_parts.model(), tmp_path / "attack"
    other = OneHeadDetector(head=(1, 2), threshold=1.0).fit(model, icons)
    how = {"scored_by": {"other": other}, "eps": 200, "steps": 0, "kl_budget": None, "max_new_tokens": 1, "out": out}
    passes = model.work.vision_passes
    table = wb.attack(model, icons, {"one": one}, **how, save_pictures=tmp_path / "pictures")
    first = model.work.vision_passes - passes
    assert {"one", "other"} <= set(table.loc[table["attacked"] == "one", "scored_by"])
    assert len(list((out / "parts").glob("*.json"))) == 2  # against it, and noise
    assert len(list((tmp_path / "pictures").rglob("*.png"))) == 2 * len(unsafe)
    pd.testing.assert_frame_equal(table, wb.attack(model, icons, {"one": one}, **how))
    assert model.work.vision_passes - passes - first < first / 2, "what was kept is not made again"
    assert not list(out.rglob("*.png")), "no picture unless it is asked for"


def test_texts_keep_their_request_and_add_no_hazard():
    asked = wb.load_prompts("pocket", n=40).where(label="unsafe")
    harmless = {*harmless_words("pocket"), *harmless_words("planted")}
    assert harmless
    assert not harmless & {*pocket_words.HAZARD_NOUNS, *pocket_words.HARMFUL_VERBS}
    for prompt in asked:
        others = sentences(prompt)
        assert others
        assert prompt.text not in others
        named = {pocket.verb_of(prompt), pocket.noun_of(prompt)} & {*prompt.text.split()}
        assert all(named <= {*other.split()} for other in others)


def test_a_text_search_lowers_a_score_and_keeps_to_its_budget(monkeypatch, icons, unsafe):
    """Of a score that counts tokens a word takes one; the planted world has no other sentences to try first."""
    monkeypatch.setattr(words, "TRIED", 3)
    model = planted_parts.model()
    detector = Shortness(0.0, 0).fit(model, icons)

    def logits(of):
        return torch.stack([model.logits(p).double() for p in of])

    found = {}
    for budget in (float("inf"), 0.0):
        how = {"steps": (0, 2), "kl_budget": budget, "seed": 0, "tick": lambda: None}
        (_, _, same), (_, _, longer) = search(model, unsafe, detector, logits, **how)
        assert all(a is b for a, b in zip(unsafe, same, strict=True))
        found[budget] = longer
    before, after = (drawn_scores(detector, model, of)[0] for of in (unsafe, found[float("inf")]))
    np.testing.assert_array_equal(after, before - 1)
    assert all(a is b for a, b in zip(unsafe, found[0.0], strict=True)), "nothing may move, so nothing is taken"
    stranger = PromptSet([wb.Prompt("x", "what is this", label="unsafe")])
    with pytest.raises(PromptError, match="side='picture'"):
        next(search(model, stranger, detector, logits, steps=(1,), kl_budget=1.0, seed=0, tick=lambda: None))
