"""Who enters the arena, under which name, and who is refused."""

from dataclasses import replace

import pytest

import workbench as wb
from tests.unit.planted_parts import model, prompts
from workbench.comparison import grid
from workbench.comparison.entrants import entrants
from workbench.detectors import JudgeDetector, OneHeadDetector
from workbench.errors import ArgumentError, DetectorError, PromptError
from workbench.prompts.prompt import PromptSet

QUICK = {"bootstrap": 200, "costed": 0, "max_new_tokens": 8}


def told() -> JudgeDetector:
    return JudgeDetector(lambda p: float(p.label == "unsafe"), threshold=0.5)


def test_names_options_and_objects_enter():
    keys = [e.key for e in entrants(("one-head:criterion=ships:rule=auroc", "one-head-fused:k=3/5:fuse=max"), seed=1)]
    assert keys == [
        "one-head:criterion=ships:rule=auroc",
        "one-head-fused:k=3:fuse=max",
        "one-head-fused:k=5:fuse=max",
    ]
    own = entrants([OneHeadDetector(), OneHeadDetector(k=2)], seed=0)
    assert [e.key for e in own] == ["one-head", "one-head (2)"]
    assert [e.key for e in entrants({"mine": OneHeadDetector()}, seed=0)] == ["mine"]
    assert grid(("deflection", "probe", "svd_left"), ("auroc", "ratio"), ("query",), (1, 3)) == (
        "one-head:criterion=deflection:rule=auroc:projection=query",
        "one-head-fused:criterion=deflection:rule=auroc:projection=query:k=3",
        "one-head:criterion=deflection:rule=ratio:projection=query",
        "one-head-fused:criterion=deflection:rule=ratio:projection=query:k=3",
        "sahs:rule=auroc:k=1",
        "sahs:rule=auroc:k=3",
        "one-head:criterion=svd_left:rule=ratio:projection=query",
        "one-head-fused:criterion=svd_left:rule=ratio:projection=query:k=3",
    )


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"detectors": "nobody"}, "no detector 'nobody'"),
        ({"detectors": "one-head:k"}, "name=value"),
        ({"detectors": "one-head:shade=3"}, "shade"),
        ({"detectors": (3,)}, "got a int"),
        ({"detectors": ()}, "nobody in the arena"),
        ({"guards": "walls"}, "no guard 'walls'"),
        ({"guards": ("recipe",), "judges": ("exact", "phrases", "ships-2025")}, "one judge or two"),
        ({"prompts": [p for p in prompts() if p.split != "test"]}, "split test"),
        ({"bootstrap": -1}, "bootstrap must be"),
        ({"guards": 3}, "guards must be a name"),
    ],
)
def test_bad_calls_are_refused_in_words(asked, message):
    with pytest.raises((DetectorError, ArgumentError), match=message):
        wb.arena(**{"model": model(), "prompts": prompts(48), "detectors": ("direction",), **asked})


def test_who_cannot_enter_is_named_and_the_others_go_on():
    everything = [replace(p, split="") for p in prompts(48)]
    given = {
        "seen it all": JudgeDetector(told().judge, threshold=0.5).fit(model(), everything),
        "other model": told().fit(model("planted-pair"), prompts(48)),
        "direction": entrants("direction", seed=0)[0].detector,
    }
    table = wb.arena(model(), prompts(48), given, **QUICK)
    assert set(table["detector"]) == {"direction"}
    assert "calibrated on" in table.attrs["left_out"]["seen it all"]
    assert "planted-pair" in table.attrs["left_out"]["other model"]
    with pytest.raises(DetectorError, match="does not know the word 'unsafe'"):
        wb.arena(model(), prompts(48), "judge")


@pytest.mark.parametrize("field", ["source", "family"])
def test_a_source_or_family_called_all_is_refused(field):
    named = PromptSet(replace(p, **{field: "all"}) for p in prompts(48))
    with pytest.raises(PromptError, match=rf"prompts have the {field} 'all'"):
        wb.arena(model(), named, "direction", **QUICK)


def test_prompts_that_declare_nothing_are_dealt():
    bare = PromptSet(replace(p, split="") for p in prompts())
    table = wb.arena(model(), bare, "direction", **QUICK)
    assert table.attrs["splits"].startswith("dealt 60%")
    assert 0.3 * len(bare) < table.attrs["prompts"] < 0.5 * len(bare)
    assert table.attrs["stability"]["direction"] > 0.5
