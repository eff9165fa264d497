"""`compare`: the arena on a stored run, for the detectors that measure × rule × projection × number of heads make.

It needs no model; with one it also says what masking the heads of each does. Heads are chosen on the selection split,
thresholds set on the threshold split, and everything else is measured on the test split.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import xarray as xr

from workbench.axes import head_names
from workbench.checking import Converted, Seed, Whole, checked
from workbench.comparison.arena import arena_table, as_several
from workbench.comparison.causal_rows import CausalMeasures
from workbench.comparison.differences import differences_of
from workbench.comparison.entrants import PROBES, Entrant, entrants, grid, noted
from workbench.comparison.measures import COLUMNS, Field
from workbench.criteria.controls import CONTROLS
from workbench.detectors.calibration import stand_ins
from workbench.detectors.masked_heads import MaskedHeadsDetector
from workbench.errors import CriterionError, DetectorError
from workbench.models.hooked import HookedLVLM
from workbench.plain import check_writable, write_table
from workbench.prompts.prompt import Prompt
from workbench.replies.judges import judge_agreement
from workbench.runs.origin import check_model, mask_of, prompts_of
from workbench.runs.reading import SomeRun, caveats_of
from workbench.runs.splits import in_split, with_splits
from workbench.sweeps.execution import progress_bar

CRITERIA = ("deflection", "ships", "probe")
RULES = ("sensitivity", "selectivity", "auroc", "layer_matched")
N_HEADS = (1, 3, 5)
KEYS = ("criterion", "rule", "projection", "n_heads")
Ingredients = tuple[str, str, str, int]


@checked
def compare(
    run: SomeRun,
    model: HookedLVLM | None = None,
    *,
    prompts: Any = None,
    criteria: Sequence[str] = CRITERIA,
    rules: Sequence[str] = RULES,
    n_heads: Sequence[int] = N_HEADS,
    controls: Annotated[int, Whole(0, 10**6)] = 3,
    judges: Annotated[Any, Converted(as_several)] = ("exact",),
    max_new_tokens: Annotated[int, Whole(1, 10**6)] = 16,
    bootstrap: Annotated[int, Whole(0, 10**6)] = 1000,
    progress: bool = False,
    seed: Seed = 0,
) -> pd.DataFrame:
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
        judges: Of the causal measures: one, or two, of which the second also judges the replies of the unmasked model.
        max_new_tokens: Of the replies they read.
        bootstrap: Resamples behind intervals.
        progress: Show a bar with the time left.
        seed: Of splits, controls, folds and resamples.

    Returns:
        The arena's table (`workbench.comparison.arena`), and of each row what its detector is made of: criterion, rule,
        projection, n_heads, heads and threshold; with a model also the rows of `workbench.comparison.causal_rows`. In
        `attrs`: `differences`, of the detectors that differ in one `ingredient` only (paired, corrected); `left_out`;
        `splits`; `agreement` of two judges; `tests` of what masking does, corrected for all sets of heads.

    Raises:
        CriterionError: If no combination gives a detector.
        DetectorError: If model or prompts are not the run's.
        RunError: For a run that cannot be used.
    """
    run, splits = with_splits(run, seed=seed)
    test = in_split(run, "test")
    tested = run.isel(prompt=np.flatnonzero(test))
    causal = None
    if model is not None:
        replies: dict[str, Any] = {"max_new_tokens": max_new_tokens, "controls": controls, "progress": progress}
        causal = _causal(tested, model, prompts, judges, seed=seed, **replies)
    left_out: dict[str, str] = {}
    fitted = []
    mask, parts = mask_of(run), dict[tuple[str, ...], xr.Dataset]()
    asked = entrants(grid(criteria, rules, tuple(map(str, run["projection"].values)), n_heads), seed=seed)
    with progress_bar(progress) as bar:
        line = bar.add_task("detectors fitted", total=len(asked))
        for entrant in asked:
            if isinstance(entrant.detector, MaskedHeadsDetector):
                entrant.detector.mask = mask
            with noted(left_out, entrant.key):
                entrant.values = entrant.detector.fit_run(run, parts=parts).stored_values(tested)
                fitted.append(entrant)
            bar.advance(line)
    if not fitted:
        reasons = {why: key for key, why in left_out.items()}  # one detector for each reason
        said = " ".join(f"{key}: {why}" for why, key in reasons.items())
        raise CriterionError(f"No combination gives a detector to compare. {said}".strip())
    field = Field(stand_ins(tested), bootstrap=bootstrap, seed=seed)
    table = arena_table(fitted, field, causal, pairs=list(_pairs(fitted)))
    made_of = {entrant.key: _about(entrant) for entrant in fitted}
    nothing = {**dict.fromkeys(KEYS, ""), "n_heads": 0, "heads": "", "threshold": np.nan}
    about = pd.DataFrame([made_of.get(key, nothing) for key in table["detector"]])
    attrs = {**table.attrs, "caveats": caveats_of(run), "left_out": left_out, "splits": splits}
    table = pd.concat([table[["detector"]], about, table[list(COLUMNS[1:])]], axis=1)
    table.attrs = attrs
    if causal is not None and len(judges) > 1:
        table.attrs["agreement"] = judge_agreement(causal.verdicts, causal.replies.verdicts(judge=judges[1]))
    return table


def save_breakdown(table: pd.DataFrame, path: str | Path) -> list[Path]:
    """Write what `compare` found to `path` (.csv, .parquet or .json), ingredients and tests beside it."""
    path = check_writable(path)
    tests = pd.DataFrame(table.attrs["tests"])
    beside = {"_ingredients": differences_of(table), **({"_tests": tests} if len(tests) else {})}
    others = [write_table(t, path.with_name(path.stem + name + path.suffix)) for name, t in beside.items()]
    return [write_table(table, path), *others]


def _causal(
    tested: Any,
    model: HookedLVLM,
    prompts: Sequence[Prompt] | str | Path | None,
    judges: Sequence[Any],
    **replies: Any,
) -> CausalMeasures:
    if not 1 <= len(judges) <= 2:
        raise DetectorError(f"One judge or two; got {len(judges)}.")
    if tested.attrs.get("weight_hash") != model.weight_hash:
        raise DetectorError(
            f"The run was made with weights {tested.attrs.get('weight_hash')} ({tested.attrs.get('model')!r}), and the "
            f"model given is {model.name!r} with weights {model.weight_hash}. Give the model of the run."
        )
    check_model(tested, model)
    return CausalMeasures(model, prompts_of(tested, prompts), mask=mask_of(tested), judge=judges[0], **replies)


def _ingredients(entrant: Entrant) -> Ingredients:
    of: Any = entrant.detector
    if isinstance(of, MaskedHeadsDetector):
        return of.criterion, of.rule, of.projection, of.k
    return PROBES[0], of.rule, "none", of.k


def _about(entrant: Entrant) -> dict[str, Any]:
    made_of = dict(zip(KEYS, _ingredients(entrant), strict=True))
    return {**made_of, "heads": head_names(entrant.detector.heads_in_use()), "threshold": entrant.detector.threshold}


def _pairs(fitted: Sequence[Entrant]) -> Iterator[tuple[str, Entrant, Entrant]]:
    """The ingredient, and two detectors that differ in it alone."""
    known = {_ingredients(entrant): entrant for entrant in fitted}
    criteria = list(dict.fromkeys(key[0] for key in known))
    rules = [rule for rule in dict.fromkeys(key[1] for key in known) if rule not in CONTROLS]
    sizes = sorted({key[3] for key in known})
    # (what is varied, its place in the key, the pairs that are compared)
    plan: list[tuple[str, int, list[tuple]]] = [
        ("measure", 0, [(criteria[0], other) for other in criteria[1:]]),
        ("contrast with safe inputs", 1, [("selectivity", "sensitivity")]),
        ("choice of heads", 1, [(rule, control) for rule in rules for control in CONTROLS]),
        ("projection", 2, [("query", "value")]),
        ("many heads", 3, [(size, sizes[0]) for size in sizes[1:]]),
    ]
    for ingredient, place, pairs in plan:
        for a, b in pairs:
            for key, entrant in known.items():
                if key[place] != a:
                    continue
                other = known.get((*key[:place], b, *key[place + 1 :]))
                if other is None and ingredient == "measure":
                    other = known.get((b, key[1], "none", key[3]))  # probes have no projection
                if other is not None:
                    yield ingredient, entrant, other
