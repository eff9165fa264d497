"""Rules: the published ones by hand, pairs without a meaning, rules that keep no head, and controls."""

import numpy as np
import pandas as pd
import pytest

from tests.unit.synthetic_run import synthetic_run
from workbench.criteria import SCORE_COLUMNS, list_criteria, list_rules, pairs_table, score, top_heads
from workbench.errors import ArgumentError, CriterionError


def table(unsafe: list[float], safe: list[float], *, criterion: str = "deflection", heads: int = 5) -> pd.DataFrame:
    """Scores of heads filled row by row, `heads` to a layer."""
    scores = pd.DataFrame({name: np.full(len(unsafe), np.nan) for name in SCORE_COLUMNS})
    index = np.arange(len(unsafe))
    return scores.assign(
        criterion=criterion,
        projection="query",
        layer=index // heads,
        head=index % heads,
        unsafe=unsafe,
        safe=safe,
        difference=np.subtract(unsafe, safe),
    )


def picked(top: pd.DataFrame) -> list[tuple[int, int]]:
    return list(zip(top["layer"], top["head"], strict=True))


@pytest.fixture(scope="module")
def scores() -> pd.DataFrame:
    run = synthetic_run(layers=4, heads=6)
    found = score(run, "all", bootstrap=0, permutations=0)
    # Where z is the twin's, refusing goes down on unsafe prompts and up on safe ones; under other masks down on both.
    swapped = run.assign(
        refusal_change=run["refusal_change"] * np.where(run["label"] == "unsafe", 1, -1)[:, None, None, None]
    )
    twins = score(swapped, ("interchange",), bootstrap=0, permutations=0)
    both = pd.concat([found[found["criterion"] != "interchange"], twins], ignore_index=True)
    both.attrs = found.attrs
    return both


def test_selectivity_by_hand() -> None:
    # Safe values 1-10: numpy's 80th percentile is 8.2, so 9 and 10 are out although they differ most.
    safe = [float(v) for v in range(1, 11)]
    unsafe = [1.5, 9.0, 3.5, 4.0, 5.0, 6.0, 7.0, 12.0, 90.0, 99.0]
    top = top_heads(table(unsafe, safe), criterion="deflection", rule="selectivity", k=3)
    assert picked(top) == [(0, 1), (1, 2), (0, 0)]
    assert top["value"].tolist() == [7.0, 4.0, 0.5]
    assert tuple(top.columns) == ("criterion", "rule", "projection", "layer", "head", "value", "stability")
    assert top["stability"].isna().all(), "a table without redraws"
    assert len(top_heads(table(unsafe, safe), criterion="deflection", rule="selectivity", k=8)) == 8


def test_selectivity_is_strict_at_its_bound() -> None:
    # Four in five heads share the largest safe value, which is then the 80th percentile itself.
    top = top_heads(
        table([9.0, 9.0, 9.0, 9.0, 2.0], [3.0, 3.0, 3.0, 3.0, 1.0]), criterion="deflection", rule="selectivity", k=1
    )
    assert picked(top) == [(0, 4)]


def test_selectivity_says_why_it_keeps_no_head() -> None:
    scores = table([0.0] * 9 + [5.0], [0.0] * 9 + [1.0])
    message = (
        r"keeps 0 of 10 heads, and 1 were.*80th percentile, which is 0 degrees here.*"
        r"9 of 10 heads share it \(they do nothing"
    )
    with pytest.raises(CriterionError, match=message):
        top_heads(scores, criterion="deflection", rule="selectivity", k=1)
    assert picked(top_heads(scores, criterion="deflection", rule="selectivity", percentile=99, k=1)) == [(0, 0)]


def test_sensitivity_ratio_and_their_order() -> None:
    scores = table([8.0, 6.0, 6.0, 0.0, 3.0], [8.0, 1.0, 2.0, 0.0, 0.0])
    assert picked(top_heads(scores, criterion="deflection", rule="sensitivity", k=3)) == [(0, 0), (0, 1), (0, 2)]
    ratio = top_heads(scores, criterion="deflection", rule="ratio", k=4)
    assert picked(ratio) == [(0, 4), (0, 1), (0, 2), (0, 0)]
    assert ratio["value"].tolist() == [np.inf, 6.0, 3.0, 1.0]
    with pytest.raises(
        CriterionError, match=r"keeps 4 of 5 heads, and 5 were asked for\. It needs heads that act on unsafe"
    ):
        top_heads(scores, criterion="deflection", rule="ratio", k=5)


def test_strengths_rank_not_signs() -> None:
    help_to_refuse = table([-4.0, 3.0, -1.0], [-1.0, 0.0, 0.0], criterion="refusal_change")
    top = top_heads(help_to_refuse, criterion="refusal_change", rule="sensitivity", k=3)
    assert picked(top) == [(0, 0), (0, 2), (0, 1)]
    assert top["value"].tolist() == [4.0, 1.0, -3.0]
    ratios = table([0.5, 1.3, 1.0], [1.0, 1.0, 1.0], criterion="norm_ratio")
    assert picked(top_heads(ratios, criterion="norm_ratio", rule="sensitivity", k=3)) == [(0, 0), (0, 1), (0, 2)]


def test_the_claim_of_the_literature(scores: pd.DataFrame) -> None:
    for projection in ("query", "value"):
        for criterion in ("deflection", "ships", "svd_right", "mean_vector"):
            found = top_heads(scores, criterion=criterion, rule="sensitivity", projection=projection, k=1)
            assert picked(found) == [(0, 3)], "the decoy moves every state most"
            found = top_heads(scores, criterion=criterion, rule="selectivity", projection=projection, k=1)
            assert picked(found) == [(2, 1)], "the planted head moves unsafe states only"
        for rule in ("auroc", "effect_size"):
            found = top_heads(scores, criterion="deflection", rule=rule, projection=projection, k=1)
            assert picked(found) == [(2, 1)]
    for rule in ("sensitivity", "auroc"):
        assert picked(top_heads(scores, criterion="probe", rule=rule, k=1)) == [(2, 1)]


@pytest.mark.slow
def test_every_pair_answers_or_lists_those_that_do(scores: pd.DataFrame) -> None:
    pairs = pairs_table()
    for criterion in list_criteria():
        for rule in (rule.name for rule in list_rules()):
            if pairs.loc[criterion.name, rule]:
                assert len(top_heads(scores, criterion=criterion.name, rule=rule, k=2)) == 2
            else:
                with pytest.raises(
                    CriterionError, match=f"Rules for {criterion.name}: {', '.join(criterion.rules)}"
                ) as caught:
                    top_heads(scores, criterion=criterion.name, rule=rule, k=2)
                assert "Criteria with" in str(caught.value)
    assert pairs.loc["probe"].to_dict() == {
        "sensitivity": True,
        "selectivity": False,
        "auroc": True,
        "effect_size": False,
        "ratio": False,
        "random": True,
        "layer_matched": True,
        "magnitude_matched": False,
    }


def test_bad_asks(scores: pd.DataFrame) -> None:
    message = r"no rule 'selective'\. Did you mean 'selectivity'\? There are sensitivity, selectivity"
    with pytest.raises(CriterionError, match=message):
        top_heads(scores, criterion="deflection", rule="selective")
    with pytest.raises(CriterionError, match="does not hold criterion 'ships'; it holds deflection"):
        top_heads(scores[scores["criterion"] == "deflection"], criterion="ships", rule="sensitivity")
    with pytest.raises(CriterionError, match="'probe' has no projection 'query' in this table; it has none"):
        top_heads(scores, criterion="probe", rule="sensitivity", projection="query")
    with pytest.raises(CriterionError, match="keeps 24 of 24 heads, and 25 were asked for"):
        top_heads(scores, criterion="deflection", rule="sensitivity", k=25)
    with pytest.raises(ArgumentError, match="k must be a whole number from 1; got 0"):
        top_heads(scores, criterion="deflection", rule="sensitivity", k=0)
    with pytest.raises(CriterionError, match="no column q_value"):
        top_heads(scores.drop(columns="q_value"), criterion="deflection", rule="sensitivity")
    nothing = scores.assign(unsafe=np.nan)
    with pytest.raises(CriterionError, match="every value is NaN"):
        top_heads(nothing, criterion="deflection", rule="sensitivity")


def test_query_is_the_projection_unless_said(scores: pd.DataFrame) -> None:
    assert set(top_heads(scores, criterion="deflection", rule="auroc")["projection"]) == {"query"}
    assert set(top_heads(scores, criterion="refusal_write", rule="auroc")["projection"]) == {"none"}


@pytest.mark.parametrize("control", ["random", "layer_matched", "magnitude_matched"])
def test_controls_leave_out_what_selectivity_picks(scores: pd.DataFrame, control: str) -> None:
    chosen = picked(top_heads(scores, criterion="deflection", rule="selectivity", k=3))
    draws = [picked(top_heads(scores, criterion="deflection", rule=control, k=3, seed=seed)) for seed in range(30)]
    for drawn in draws:
        assert len(set(drawn)) == 3
        assert not set(drawn) & set(chosen)
        if control == "layer_matched":
            assert [layer for layer, _ in drawn] == [layer for layer, _ in chosen]
    assert len({tuple(d) for d in draws}) > 10, "the seed does not decide"
    assert draws[4] == picked(top_heads(scores, criterion="deflection", rule=control, k=3, seed=4))


def test_magnitude_matched_is_close_on_safe_prompts() -> None:
    # Twenty heads whose safe values are 1 to 20; the only selective one has 10.
    safe = [float(v) for v in range(1, 21)]
    unsafe = [v + (50.0 if v == 10 else 0.0) for v in safe]
    seen = set()
    for seed in range(60):
        drawn = top_heads(table(unsafe, safe), criterion="deflection", rule="magnitude_matched", k=1, seed=seed)
        seen.add(safe[picked(drawn)[0][0] * 5 + picked(drawn)[0][1]])
    assert seen == {7.0, 8.0, 9.0, 11.0, 12.0}, "the five closest to 10, the lower ones first where two are equally far"


def test_controls_say_when_there_are_too_few_heads() -> None:
    scores = table([9.0, 8.0, 7.0, 1.0, 5.0], [1.0, 1.1, 1.2, 1.3, 5.0], heads=3)
    with pytest.raises(CriterionError, match="layer 0 has no head left beside the 3 picked ones"):
        top_heads(scores, criterion="deflection", rule="layer_matched", k=3)
    with pytest.raises(CriterionError, match="random: 2 heads are left beside the 3 picked ones, and 3 were asked for"):
        top_heads(scores, criterion="deflection", rule="random", k=3)
    silent = table([0.0] * 9 + [5.0], [0.0] * 10)
    assert len(top_heads(silent, criterion="deflection", rule="random", k=3)) == 3
    with pytest.raises(
        CriterionError, match="imitates the 1 heads that selectivity picks for deflection, and that rule keeps only 0"
    ):
        top_heads(silent, criterion="deflection", rule="magnitude_matched", k=1)


def test_ties_go_to_the_lower_head() -> None:
    shuffled = table([1.0, 2.0, 2.0, 2.0], [0.0] * 4, heads=2).iloc[[3, 1, 0, 2]]
    assert picked(top_heads(shuffled, criterion="deflection", rule="sensitivity", k=3)) == [(0, 1), (1, 0), (1, 1)]
