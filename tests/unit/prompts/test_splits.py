"""Splits: even over labels and families, pairs and pictures kept together, overlaps refused."""

from collections import Counter
from dataclasses import replace

import pytest
from PIL import Image

from workbench.errors import PromptError
from workbench.prompts import check_splits, load_prompts, split_prompts
from workbench.prompts.prompt import Prompt


def picture(seed: int) -> Image.Image:
    image = Image.new("RGB", (4, 4), "white")
    image.putpixel((0, 0), (seed % 256, seed // 256, 7))
    return image


def make(count: int, **same) -> list[Prompt]:
    kinds = [(label, family) for label in ("safe", "unsafe") for family in ("text", "icon")]
    return [
        Prompt(id=str(k), text="t", label=kinds[k % 4][0], family=kinds[k % 4][1], image=picture(k), **same)
        for k in range(count)
    ]


def test_shares_are_even_within_each_label_and_family():
    parts = split_prompts(make(80), fractions={"selection": 0.5, "threshold": 0.25, "test": 0.25}, seed=1)
    for name, each in (("selection", 10), ("threshold", 5), ("test", 5)):
        assert set(Counter((p.label, p.family) for p in parts[name]).values()) == {each}
        assert {p.split for p in parts[name]} == {name}
    assert sorted(p.id for part in parts.values() for p in part) == sorted(str(k) for k in range(80))
    check_splits([p for part in parts.values() for p in part])


def test_small_strata_do_not_all_round_the_same_way():
    prompts = [replace(p, family=p.id) for p in make(40)]  # forty strata of one prompt
    parts = split_prompts(prompts, fractions={"selection": 0.5, "test": 0.5})
    assert len(parts["selection"]) == len(parts["test"]) == 20


def test_the_seed_decides():
    ids = [[p.id for p in split_prompts(make(40), seed=s)["test"]] for s in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]


def test_pairs_and_pictures_stay_together():
    prompts = make(60)
    # 0-1-2 hang together: a pair, then a picture. Each of the others is paired with one neighbour.
    prompts = [replace(p, pair_id=f"pair{int(p.id) // 2}") for p in prompts]
    prompts[2] = replace(prompts[2], image=prompts[1].image)
    for seed in range(5):
        parts = split_prompts(prompts, seed=seed)
        where = {p.id: name for name, part in parts.items() for p in part}
        assert len({where[k] for k in "0123"}) == 1
        assert all(where[str(k)] == where[str(k + 1)] for k in range(0, 60, 2))


def test_blank_pictures_tie_nothing_together():
    blank = Image.new("RGB", (4, 4), "white")
    prompts = [replace(p, image=blank, text=f"question {p.id}") for p in make(8)]
    parts = split_prompts(prompts, fractions={"selection": 0.5, "test": 0.5})
    assert len(parts["test"]) == 4
    check_splits([p for part in parts.values() for p in part])


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ({"id": "x"}, {"id": "x"}, "id 'x'"),
        ({"pair_id": "p"}, {"pair_id": "p"}, "pair 'p'"),
        ({"image": picture(3)}, {"image": picture(3)}, "picture"),
    ],
)
def test_overlap_is_refused(first, second, said):
    a, b = make(2)
    prompts = [replace(a, split="selection", **first), replace(b, split="test", **second)]
    with pytest.raises(PromptError, match=said) as caught:
        check_splits(prompts)
    assert "selection (prompt" in str(caught.value)
    assert "test (prompt" in str(caught.value)
    check_splits([replace(p, split="test") for p in prompts])  # within one split all of it is fine
    check_splits([prompts[0], replace(prompts[1], split="")])  # and nothing is asked of those that declare none


def test_what_cannot_be_split_is_said():
    with pytest.raises(PromptError, match="nothing is left for"):
        split_prompts(make(2))
    with pytest.raises(PromptError, match="tied by pairs"):
        split_prompts(make(40, pair_id="all"))


@pytest.mark.parametrize("fractions", [{}, {"train": 1.0}, {"test": 0.5}, {"selection": 1.5, "test": -0.5}])
def test_fractions_must_be_shares(fractions):
    with pytest.raises(PromptError, match=r"fractions must each|splits are"):
        split_prompts(make(8), fractions=fractions)


@pytest.mark.slow
@pytest.mark.parametrize("world", ["pocket", "planted"])
def test_the_embedded_worlds_have_disjoint_splits(world):
    prompts = load_prompts(world, n=600)
    assert {p.split for p in prompts} == {"selection", "threshold", "test"}
    check_splits(prompts)


def test_what_asks_the_same_stays_together_and_is_no_overlap_within_a_split():
    again = [replace(p, id=f"{p.id} again", text=f"  {p.text.upper()}?!") for p in make(12)]
    alone = [replace(p, image=None, text=f"question {p.id}") for p in make(12)]
    blank = Image.new("RGB", (4, 4), "white")
    for prompts in (
        [*make(12), *again],
        [*alone, *(replace(p, id=f"{p.id} again") for p in alone)],
        [replace(p, id=f"{p.id}{k}", image=blank) for p in alone for k in ("", " again")],
    ):
        parts = split_prompts(prompts, fractions={"selection": 0.5, "test": 0.5})
        where = {p.id: name for name, part in parts.items() for p in part}
        assert all(where[str(k)] == where[f"{k} again"] for k in range(12))
    with pytest.raises(PromptError, match=r"content '\w+' is in selection .prompt '0'., test .prompt '0 again'"):
        check_splits([replace(alone[0], split="selection"), replace(alone[0], id="0 again", split="test")])


def test_a_picture_beside_many_texts_is_a_backdrop_and_said(caplog):
    noise = picture(3)
    few = [replace(p, image=noise, text=f"question {p.id}") for p in make(10)]
    with pytest.raises(PromptError, match="tied by pairs and pictures"):
        split_prompts(few)
    many = [replace(p, image=noise, text=f"question {int(p.id) // 2}") for p in make(40)]
    parts = split_prompts(many)
    where = {p.id: name for name, part in parts.items() for p in part}
    assert all(where[str(k)] == where[str(k + 1)] for k in range(0, 40, 2)), "a question asked twice stays together"
    assert "stands beside 20 different texts in 40 prompts; it does not tie them together" in caplog.text
    check_splits([p for part in parts.values() for p in part])
    assert len(split_prompts(few, ties=("text",))["test"]) >= 2, "who says so ties by text only"
    with pytest.raises(PromptError, match="Prompts are tied by id, pair, picture, content, text; got 'words'"):
        split_prompts(few, ties=("words",))


def test_many_pictures_are_hashed_and_none_decoded(tmp_path, monkeypatch):
    for k in range(20):
        picture(k).save(tmp_path / f"{k}.png")
    rows = [{"text": "what", "label": ("safe", "unsafe")[k % 2], "image": f"{k}.png"} for k in range(20)]
    prompts = load_prompts(rows, images=tmp_path)
    monkeypatch.setattr("workbench.prompts.pictures.Picture._pixels", lambda self: pytest.fail("decoded"))
    assert sum(map(len, split_prompts(prompts).values())) == 20
