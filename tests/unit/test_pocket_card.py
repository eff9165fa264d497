"""Pocket's cards: that their tables say what was measured."""

import pandas as pd
import pytest

from workbench.bench import pocket_card
from workbench.bench.pocket_card import masked_rows, overlaps
from workbench.comparison.masked_behaviour import OUTCOME_COLUMNS


def outcomes() -> pd.DataFrame:
    """What `attack_success` returns, made up: complied is n_heads / 10 for the chosen, draw / 100 for the controls."""
    rows = []
    for size in (0, 1, 3, 5):
        for masked, draw in [
            ("chosen" if size else "nothing", 0),
            *([("layer_matched", d) for d in (1, 2, 3)] if size else []),
        ]:
            for group in ("unsafe", "text", "benign", "question"):
                heads = "L1H1" if size else ""
                complied = size / 10 if masked in ("chosen", "nothing") else draw / 100
                rows.append(
                    (
                        size,
                        masked,
                        draw,
                        heads,
                        group,
                        50,
                        complied,
                        complied - 0.01,
                        complied + 0.01,
                        0.0,
                        0.0,
                    )
                )
    return pd.DataFrame(rows, columns=list(OUTCOME_COLUMNS))


def test_masked_heads_stand_beside_their_controls():
    rows = masked_rows(outcomes())
    assert [row["size"] for row in rows] == [0, 1, 3, 5]
    assert rows[0]["unsafe"]["controls"] is None
    assert rows[3]["unsafe"]["value"] == 0.5
    assert rows[3]["benign"]["controls"] == pytest.approx((0.02, 0.01, 0.03))


def test_overlap_of_seeds_is_counted_head_by_head():
    index = pd.MultiIndex.from_product([range(2), range(2)], names=["layer", "head"])

    def seed(name: str, heads: list[str], values: list[float]) -> dict:
        of = {"heads": [{"name": h} for h in heads], "values": pd.Series(values, index)}
        return {"name": name, "projections": {"query": of, "value": of}}

    rows = overlaps([seed("a", ["L0H0", "L1H1"], [1, 2, 3, 4]), seed("b", ["L1H1", "L1H0"], [4, 3, 2, 1])])
    assert [row["projection"] for row in rows] == ["query", "value"]
    assert rows[0]["shared"] == ["L1H1"]
    assert rows[0]["correlation"] == -1


def test_a_card_says_its_numbers_and_marks_the_heads_that_were_tuned():
    of = {
        "heads": [{"name": f"L{k}H0", "difference": 10.0 - k, "ci_low": 1.0, "ci_high": 20.0} for k in range(5)],
        "values": pd.Series(dtype=float),
        "masked": masked_rows(outcomes()),
    }
    number = {"value": 0.5, "ci_low": 0.4, "ci_high": 0.6}
    detectors = [
        {
            "detector": "one-head",
            "nouns": "seen",
            "n": 40,
            "auroc": number,
            "detection_rate": number,
            "false_positive_rate": number,
        }
    ]
    seed = {
        "name": "pocket",
        "projections": {"query": of, "value": of},
        "detectors": detectors,
        "tuned_heads": ["L2H0"],
        "n": 300,
    }
    text = pocket_card.render("pocket", pd.DataFrame(), seeds=[seed])
    assert "**L2H0** +8.0 (1.0 to 20.0)" in text
    assert "L3H0 +7.0" in text
    assert "| pocket | query | none | 0.0% (-1.0% to 1.0%) |" in text
    assert "50.0% (49.0% to 51.0%); 2.0% (1.0% to 3.0%)" in text
    assert "| pocket | one-head | seen | 40 | 0.50 (0.40 to 0.60) |" in text
    assert "{{" not in text
