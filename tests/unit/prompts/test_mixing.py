"""One set out of several: which prompts are taken, that they keep their source, and that splits share nothing."""

from collections import Counter

import pytest
from PIL import Image

from workbench.errors import ArgumentError, PromptError
from workbench.prompts import check_splits, mix
from workbench.prompts.prompt import Prompt, PromptSet, text_key


def some(source: str, n: int, *, paired: bool = False, texts: int = 10**6) -> PromptSet:
    return PromptSet(
        (
            Prompt(
                f"{k}",
                f"{source} {k % texts}",
                Image.new("RGB", (2, 2), (k % 251, len(source), 3)),
                ("safe", "unsafe")[k % 2],
                source,
                family=f"f{k % 3}",
                category=f"c{k % 5}",
                pair_id=f"{k // 2}" if paired else "",
            )
            for k in range(n)
        ),
        name=source,
    )


def test_labels_come_from_where_they_are_wanted():
    mixed = mix(some("both", 6), unsafe=[some("bad", 10)], safe=[some("good", 20)])
    assert Counter((p.source, p.label) for p in mixed) == {
        ("both", "safe"): 3,
        ("both", "unsafe"): 3,
        ("bad", "unsafe"): 5,
        ("good", "safe"): 10,
    }
    assert mixed.name == "both + bad + good"
    assert len({p.id for p in mixed}) == 21
    assert "bad/1" in {p.id for p in mixed}, "ids that two sets use get the set's name in front"


def test_caps_hold_for_every_source_family_and_category_and_keep_pairs_whole():
    sets = [some("a", 60, paired=True), some("b", 90, paired=True)]
    mixed = mix(*sets, per_source=30, per_family=12, per_category=4, seed=1)
    assert max(Counter(p.source for p in mixed).values()) <= 30
    assert max(Counter((p.source, p.family) for p in mixed).values()) <= 12
    assert max(Counter((p.source, p.family, p.category) for p in mixed).values()) <= 4
    assert set(Counter(p.pair_id for p in mixed).values()) == {2}
    assert len(mixed) > 40
    assert Counter(p.source for p in mix(*sets, per_source=30)) == {"a": 30, "b": 30}
    ids = [[p.id for p in mix(*sets, per_source=10, seed=s)] for s in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]


def test_balance_thins_the_larger_sources():
    mixed = mix(unsafe=[some("a", 20)], safe=[some("b", 60), some("c", 10)], balanced=True)
    assert Counter(p.label for p in mixed) == {"unsafe": 10, "safe": 10}
    assert Counter(p.source for p in mixed) == {"a": 10, "b": 5, "c": 5}


def test_splits_share_no_pair_picture_or_text(caplog):
    first, second = some("a", 80, texts=20), some("b", 40)
    again = PromptSet((Prompt(f"x{p.id}", p.text.upper(), label=p.label, source="c") for p in second), name="c")
    mixed = mix(first, second, again, fractions={"selection": 0.5, "test": 0.5})
    assert "b and c share 40 texts" in caplog.text
    check_splits(mixed, ties=("pair", "picture", "content", "text"))
    by_text: dict[str, set] = {}
    for p in mixed:
        by_text.setdefault(text_key(p.text), set()).add(p.split)
    assert all(len(splits) == 1 for splits in by_text.values())
    assert {p.split for p in mixed} == {"selection", "test"}


def test_mixes_that_cannot_be_made():
    for how, error, said in (
        ({}, PromptError, "nothing to mix"),
        ({"unsafe": [some("a", 1)]}, PromptError, "nothing to mix"),
        ({"unsafe": [some("a", 4), some("a", 4)]}, PromptError, "Two sets of one name hold the id 'a/1'"),
        ({"safe": [some("a", 4)], "per_source": 0}, ArgumentError, "per_source must be a whole number from 1"),
        ({"safe": some("a", 4)}, ArgumentError, "safe must be"),
        ({"safe": [some("a", 4)], "fractions": {"train": 1.0}}, PromptError, "splits are selection"),
    ):
        with pytest.raises(error) as caught:
            mix(**how)
        assert said in str(caught.value)
