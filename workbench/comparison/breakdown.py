"""The breakdown: measure × rule × projection × number of heads, on the same prompts of one stored run.

Fitted detectors, guards and time are the arena's (`workbench.comparison.arena`); this needs no model, and with one it
says what masking the chosen heads does. Heads are chosen on the selection split, thresholds set on the threshold split,
and everything else measured on the test split.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from workbench.comparison.candidates import KEYS, Candidate, candidates
from workbench.comparison.causal_rows import CausalMeasures
from workbench.criteria import statistics
from workbench.criteria.controls import CONTROLS
from workbench.detectors.calibration import stand_ins
from workbench.detectors.evaluation import measure_row, score_measures
from workbench.errors import CriterionError
from workbench.models.hooked import HookedLVLM
from workbench.plain import check_writable, write_table
from workbench.prompts.prompt import Prompt
from workbench.replies.judges import Judge, judge_agreement
from workbench.runs.reading import RunLike, caveats_of
from workbench.runs.splits import in_split, with_splits

COLUMNS = (*KEYS, "heads", "threshold", "measure", "family", "value", "ci_low", "ci_high", "n")
TEST_COLUMNS = (*KEYS, "heads", "test", "p_value", "sets")
CRITERIA = ("deflection", "ships", "probe")
RULES = ("sensitivity", "selectivity", "auroc", "layer_matched")
N_HEADS = (1, 3, 5)


@dataclass(frozen=True, eq=False)
class Breakdown:
    """What `compare` found.

    Attributes:
        table: One row a detector × measure × family: criterion, rule, projection, n_heads, heads, threshold, measure,
            family, value, ci_low, ci_high, n. The measures are those of `workbench.criteria.detection.detection_table`,
            with `auroc_matched` also for `all` (mean over families), and with a model those of
            `workbench.comparison.causal_rows`.
        ingredients: What each ingredient adds: one row a pair of detectors that differ in nothing else: ingredient,
            criterion, rule, projection, n_heads (of the pair; the differing one is written `a - b`), measure,
            difference of AUROC (a − b), ci_low and ci_high (95 %, paired bootstrap).
        left_out: Detectors without a row, and why.
        splits: Where the splits come from.
        agreement: With two judges, how far they agree on the replies to the test prompts, no head masked: see
            `workbench.replies.judges.judge_agreement`. None otherwise.
        tests: With a model, whether masking the heads of a detector does more than masking random heads, corrected for
            all sets of heads: criterion, rule, projection, n_heads, heads, and the columns of
            `workbench.comparison.causal_rows.CausalMeasures.tests`.
    """

    table: pd.DataFrame
    ingredients: pd.DataFrame
    left_out: tuple[str, ...]
    splits: str
    agreement: dict[str, float] | None = None
    tests: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(TEST_COLUMNS)))

    def save(self, path: str | Path) -> list[Path]:
        """Write the table to `path` (.csv, .parquet or .json), ingredients and tests beside it; returns the paths."""
        path = check_writable(path)
        beside = {"_ingredients": self.ingredients, **({"_tests": self.tests} if len(self.tests) else {})}
        others = [write_table(t, path.with_name(path.stem + name + path.suffix)) for name, t in beside.items()]
        return [write_table(self.table, path), *others]


def compare(
    run: RunLike,
    model: HookedLVLM | None = None,
    *,
    prompts: Sequence[Prompt] | str | Path | None = None,
    criteria: Sequence[str] = CRITERIA,
    rules: Sequence[str] = RULES,
    n_heads: Sequence[int] = N_HEADS,
    controls: int = 3,
    judge: str | Judge = "exact",
    second_judge: str | Judge | None = None,
    max_new_tokens: int = 16,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Breakdown:
    """Every measure × rule × projection × number of heads on one run; with the model also what masking those heads
    does.

    Args:
        run: A run or its path. Without declared splits its prompts are dealt 40:30:30, seeded.
        model: The model of the run, for the causal measures; without it there are none.
        prompts: The prompts of the run, for the causal measures; those of an embedded world are drawn again.
        criteria: Names.
        rules: Names. Pairs without a meaning are left out.
        n_heads: How many heads detect together.
        controls: Draws of random heads beside each masked set.
        judge: Of the causal measures, as in `workbench.comparison.masked_behaviour.attack_success`.
        max_new_tokens: Of the replies it reads.
        second_judge: Judges the replies of the unmasked model too; how far the two agree is part of the result.
        bootstrap: Resamples behind the intervals of AUROC, TPR and differences.
        seed: Of splits, controls, folds and resamples.

    Raises:
        CriterionError: If no combination gives a detector.
        DetectorError: If model or prompts are not the run's.
        RunError: For a run that cannot be used.
    """
    run, splits = with_splits(run, seed=seed)
    causal = None
    if model is not None:
        causal = CausalMeasures(
            run, model, prompts, controls=controls, judge=judge, max_new_tokens=max_new_tokens, seed=seed
        )
    left_out: list[str] = []
    found = list(candidates(run, criteria, rules, n_heads, bootstrap, seed, left_out))
    if not found:
        raise CriterionError(f"No combination gives a detector to compare. {' '.join(left_out)}".strip())
    test = in_split(run, "test")
    asked = stand_ins(run.isel(prompt=np.flatnonzero(test)))
    rows: list[dict] = []
    for candidate in found:
        values = candidate.values[test]
        measures = score_measures(values, asked, candidate.threshold, bootstrap=bootstrap, seed=seed).to_dict("records")
        if (matched := _area_and_interval(candidate.resampled[1])) is not None:
            measures.append(measure_row("auroc_matched", "all", *matched, len(values)))
        if causal is not None:
            measures += causal.missed(values)
            if candidate.key[1] not in CONTROLS:
                measures += causal.of(candidate.heads, candidate.key[2])
        rows.extend({**candidate.about, **measure} for measure in measures)
    agreement: dict[str, float] | None = None
    tests: list[dict] = []
    if causal is not None:
        nothing = {"criterion": "", "rule": "", "projection": "", "n_heads": 0, "heads": "", "threshold": np.nan}
        rows.extend({**nothing, **measure} for measure in causal.unmasked())
        for candidate in found:
            tests.extend({**candidate.about, **test} for test in causal.tests(candidate.heads, candidate.key[2]))
        if second_judge is not None:
            agreement = judge_agreement(causal.verdicts, causal.replies.verdicts(judge=second_judge))
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    table.attrs = {"caveats": caveats_of(run)}
    tested = pd.DataFrame(tests, columns=list(TEST_COLUMNS))
    return Breakdown(table, _ingredients(found), tuple(left_out), splits, agreement, tested)


def _area_and_interval(samples: np.ndarray) -> tuple[float, tuple] | None:
    """The first number and the 95 % interval of the resamples after it; None where one is missing."""
    return (samples[0], statistics.percentile_interval(samples[1:])) if np.isfinite(samples).all() else None


def _ingredients(found: Sequence[Candidate]) -> pd.DataFrame:
    """Paired differences of AUROC between detectors that differ in one thing only."""
    known = {c.key: c for c in found}
    criteria = list(dict.fromkeys(c.key[0] for c in found))
    rules = [rule for rule in dict.fromkeys(c.key[1] for c in found) if rule not in CONTROLS]
    sizes = sorted({c.key[3] for c in found})
    # (what is varied, its place in the key, the pairs that are compared)
    plan: list[tuple[str, int, list[tuple]]] = [
        ("measure", 0, [(criteria[0], other) for other in criteria[1:]]),
        ("contrast with safe inputs", 1, [("selectivity", "sensitivity")]),
        ("choice of heads", 1, [(rule, control) for rule in rules for control in CONTROLS]),
        ("projection", 2, [("query", "value")]),
        ("many heads", 3, [(size, sizes[0]) for size in sizes[1:]]),
    ]
    rows: list[dict] = []
    for ingredient, place, pairs in plan:
        for a, b in pairs:
            for key, candidate in known.items():
                if key[place] != a:
                    continue
                other = (*key[:place], b, *key[place + 1 :])
                if other not in known and ingredient == "measure":
                    other = (other[0], other[1], "none", other[3])  # probes have no projection
                if other not in known:
                    continue
                against = known[other]
                of = {**dict(zip(KEYS, map(str, key), strict=True)), KEYS[place]: f"{a} - {b}"}
                differences = zip(("auroc", "auroc_matched"), candidate.resampled - against.resampled, strict=True)
                for measure, samples in differences:
                    if (found_area := _area_and_interval(samples)) is not None:
                        value, (low, high) = found_area
                        shown = {"difference": float(value), "ci_low": float(low), "ci_high": float(high)}
                        rows.append({"ingredient": ingredient, **of, "measure": measure, **shown})
    return pd.DataFrame(rows, columns=["ingredient", *KEYS, "measure", "difference", "ci_low", "ci_high"])
