"""Attacks whose reach is known: a score that is linear in the pixels, the planted model's, the null model's."""

import json
from math import sqrt
from statistics import NormalDist
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest

import workbench as wb
from tests.unit import planted_parts
from workbench.attacks.descent import Descent, drawn_scores
from workbench.attacks.pictures import noise
from workbench.attacks.words import harmless_words, sentences
from workbench.detectors import gradients, make_detector
from workbench.detectors.detector import Detector
from workbench.detectors.fused_heads import FusedHeadsDetector
from workbench.detectors.looks import Wants
from workbench.detectors.one_head import OneHeadDetector
from workbench.errors import DetectorError, PromptError
from workbench.models.embedded import planted_weights as w
from workbench.prompts.prompt import PromptSet
from workbench.prompts.worlds import pocket_words
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


class Brightness(Detector):
    """How bright a picture is: the mean of its normalised pixels, -1 to 1."""

    name: ClassVar[str] = "brightness"

    def wants(self, model, *, choosing):
        return Wants(reads={"light": lambda model, base: ((), self.light(base).detach().numpy())})

    @staticmethod
    def light(base):
        return torch_stack([e.model_inputs["pixel_values"].double().mean() for e in base.encoded])

    def values(self, seen):
        return seen["light"].values


def torch_stack(values):
    import torch

    return torch.stack(values)


def test_a_linear_score_is_evaded_at_the_size_worked_out_by_hand(monkeypatch, icons):
    """A pixel of value x is seen as x / 127.5 - 1. The planted world's are 0 or 255, and only the bright ones can get
    darker: a change of eps takes eps / 127.5 times their share from the mean."""
    monkeypatch.setattr(gradients, "SCORES", {Brightness: lambda d, model, base: d.light(base)[None]})
    pixels = np.stack([np.asarray(p.image, dtype=float) for p in icons if p.label == "unsafe" and p.split == "test"])
    mean, bright = (pixels / 127.5 - 1).mean((1, 2, 3)), (pixels == 255).mean((1, 2, 3))
    threshold = float(mean.min()) - 0.15
    needed = (mean - threshold) * 127.5 / bright
    detector = {"light": Brightness(threshold, 0)}
    boxes = [int(np.floor(needed.min())), round(float(np.median(needed))), int(np.ceil(needed.max()))]
    table = wb.attack(planted_parts.model(), icons, detector, eps=boxes, steps=12, kl_budget=None, starts="picture")
    found = value(table, attacked="light", scored_by="light", measure="evasion")
    assert found.to_dict() == {eps: np.mean(needed <= eps) for eps in boxes}
    assert {0.0, 1.0} < {*found}, "sizes on both sides, and one between"


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


def test_the_planted_hazard_goes_out_of_sight_between_the_two_sizes_worked_out_by_hand(icons):
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
    assert (hidden, twin) == (51, 106)
    one = {"one": OneHeadDetector(head=HAZARD_HEAD)}
    how = {"eps": (hidden - 1, twin - 1, twin), "max_new_tokens": 6}
    loose = wb.attack(planted_parts.model(), icons, one, steps=0, kl_budget=None, **how)
    found = value(loose, attacked="one", scored_by="one", measure="evasion")
    assert found.to_dict() == {hidden - 1: 0, twin - 1: 0, twin: 1}
    # The head that is detected by is the head that refuses: what hides from one frees the other.
    complied = value(loose, attacked="one", measure="complied")
    assert complied.to_dict() == found.to_dict()
    kept = wb.attack(planted_parts.model(), icons, one, steps=0, eps=255, kl_budget=0.1, max_new_tokens=6)
    assert value(kept, attacked="one", scored_by="one", measure="evasion").to_dict() == {255: 0}
    descent = wb.attack(planted_parts.model(), icons, one, steps=4, eps=hidden - 1, kl_budget=None, max_new_tokens=6)
    assert value(descent, attacked="one", scored_by="one", measure="evasion").to_dict() == {hidden - 1: 0}


def test_no_change_changes_nothing(icons):
    table = wb.attack(planted_parts.model(), icons, "one-head", eps=0, steps=3, max_new_tokens=6)
    assert set(table["eps"]) == {0}
    assert set(table["attacked"]) == {"nothing"}
    assert table.loc[table["measure"] == "kl", "value"].tolist() == [0.0]
    detector = OneHeadDetector(head=HAZARD_HEAD).fit(planted_parts.model(), icons)
    unsafe = icons.where(label="unsafe", split="test")
    descent = Descent(planted_parts.model(), unsafe, detector, kl_budget=float("inf"))
    before = [p.clone() for p in descent.best.pixels]
    for _, found in descent.within(0, (2,)):
        assert all((a == b).all() for a, b in zip(before, found.pixels, strict=True))
        assert (found.kl == 0).all()
    assert all(a is b for a, b in zip(unsafe, noise(unsafe, 0, 0), strict=True))


def test_on_the_null_model_nothing_pulls():
    prompts = draw_planted_prompts(n=72).where(lambda p: p.image is not None)
    one = {"one": OneHeadDetector(head=HAZARD_HEAD)}
    how = {"eps": (8, 64), "steps": 3, "kl_budget": None, "starts": "picture", "max_new_tokens": 6}
    table = wb.attack(planted_parts.model("null"), prompts, one, **how)
    assert all(test["p_corrected"] == 1 for test in table.attrs["tests"])
    assert value(table, attacked="one", measure="kl").max() < 1e-6


NAMES = ("one-head", "ships", "one-head:criterion=l2", "one-head:criterion=refusal_change:projection=value",
         "one-head:criterion=tv", "one-head-fused:k=3", "one-head-fused:k=3:fuse=max", "sahs:k=4", "hidden-detect",
         "direction", "last-layer", "first-token")  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_score_with_a_gradient_is_the_detectors_own(name):
    model, prompts = planted_parts.model(), planted_parts.prompts(96)
    kind, *options = name.split(":")
    asked = {k: int(v) if v.isdigit() else v for k, v in (o.split("=") for o in options)}
    detector = make_detector(kind, **asked).fit(model, prompts)
    some = prompts.where(split="test")[:6]
    theirs = drawn_scores(detector, model, some)[0]
    assert np.ptp(theirs) > 0
    for prompt, score in zip(some, theirs, strict=True):
        assert float(gradients.score_parts(detector, model, model.base(prompt))[0, 0]) == pytest.approx(score, rel=1e-4)


def test_a_draw_is_attacked_under_every_draw():
    model, prompts = planted_parts.model(), planted_parts.prompts(96)
    detector = FusedHeadsDetector(k=3, fuse="random").fit(model, prompts)
    prompt = prompts.where(split="test")[0]
    parts = gradients.score_parts(detector, model, model.base(prompt))[:, 0]
    drawn = set(np.round(drawn_scores(detector, model, [prompt])[:, 0], 4))
    assert len(parts) == 3
    assert drawn <= set(np.round(parts.numpy(), 4))


@pytest.mark.parametrize(("name", "said"), [("rcs-kcd", "RCSDetector"), ("one-head-fused:k=3:fuse=vote", "A vote")])
def test_what_has_no_gradient_is_refused_by_name(icons, name, said):
    with pytest.raises(DetectorError, match=said):
        wb.attack(planted_parts.model(), icons, name, eps=4, steps=1, max_new_tokens=2)


def test_what_was_made_against_one_is_tried_on_others_and_kept(icons, tmp_path):
    model, out = planted_parts.model(), tmp_path / "attack"
    how = {"scored_by": ("rcs-kcd",), "eps": 200, "steps": 1, "kl_budget": None, "max_new_tokens": 4, "out": out}
    table = wb.attack(model, icons, "one-head", **how)
    assert {"one-head", "rcs-kcd"} <= set(table.loc[table["attacked"] == "one-head", "scored_by"])
    assert not [f for f in tmp_path.rglob("*") if f.suffix in (".png", ".jpg")], "no picture unless it is asked for"
    parts = sorted((out / "parts").glob("*.json"))
    assert len(parts) == 2  # against one-head, and noise
    passes = model.work.vision_passes
    again = wb.attack(model, icons, "one-head", **how)
    pd.testing.assert_frame_equal(table, again)
    taken = model.work.vision_passes - passes
    parts[0].write_text(json.dumps({"rows": [], "evades": []}))
    parts[1].unlink()
    wb.attack(model, icons, "one-head", **how)
    assert model.work.vision_passes - passes - taken > taken, "what was kept is not made again"
    wb.attack(model, icons, "one-head", **how, save_pictures=tmp_path / "pictures")
    unsafe = len(icons.where(label="unsafe", split="test"))
    assert len(list((tmp_path / "pictures").rglob("*.png"))) == 2 * unsafe


def test_texts_keep_their_request_and_add_no_hazard():
    pocket = wb.load_prompts("pocket", n=40).where(label="unsafe")
    words = {*harmless_words("pocket"), *harmless_words("planted")}
    assert words
    assert not words & {*pocket_words.HAZARD_NOUNS, *pocket_words.HARMFUL_VERBS}
    for prompt in pocket:
        others = sentences(prompt)
        assert others
        assert prompt.text not in others
        named = {word for word in prompt.text.split() if word in pocket_words.TOPIC_OF}
        assert all(named <= {*other.split()} for other in others)


def test_a_text_search_lowers_a_score_that_counts_words_and_refuses_strangers():
    """Masking the head spreads its attention over all n tokens: the more words, the less of the hazard is left."""
    prompts = planted_parts.prompts(96)
    ships = {"ships": OneHeadDetector(head=HAZARD_HEAD, projection="query")}
    table = wb.attack(planted_parts.model(), prompts, ships, side="text", steps=(0, 1), max_new_tokens=4)
    assert set(table["side"]) == {"text"}
    areas = table[(table["measure"] == "auroc") & (table["attacked"] == "ships")].set_index("steps")["value"]
    assert areas[0] == areas[1] == 1.0  # one word does not hide a hazard
    kept = table[(table["measure"] == "kept") & (table["attacked"] == "ships")]["value"]
    assert (kept == 1).all()
    strangers = PromptSet([*(wb.Prompt(p.id, p.text, label=p.label, split=p.split) for p in prompts)])
    with pytest.raises(PromptError, match="side='picture'"):
        wb.attack(planted_parts.model(), strangers, ships, side="text", steps=1, max_new_tokens=2)
