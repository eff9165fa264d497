"""`arena`: every detector and every guard on the same prompts, in one table."""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import xarray as xr

from workbench.checking import Converted, Seed, Whole, checked
from workbench.comparison.causal_rows import CausalMeasures
from workbench.comparison.differences import difference_table
from workbench.comparison.entrants import Entrant, entrants, fit_all, score_all
from workbench.comparison.guarded import Answers, made_guard
from workbench.comparison.measures import COLUMNS, Field, detection_rows, row
from workbench.criteria.statistics import auroc
from workbench.detectors.calibration import check_labels
from workbench.detectors.cost import cost_of_each, passes
from workbench.errors import DetectorError
from workbench.models.hooked import HookedLVLM
from workbench.models.loading import SomeModel
from workbench.prompts.caveats import caveats
from workbench.prompts.prompt import Prompt, PromptSet
from workbench.prompts.splits import check_splits, split_prompts
from workbench.replies.guards import Guard
from workbench.runs.origin import check_model, prompts_of
from workbench.runs.reading import SomeRun
from workbench.sweeps.sweep import SomePrompts

DETECTORS = ("one-head", "ships", "sahs", "hidden-detect")
FRACTIONS = {"selection": 0.6, "test": 0.4}  # of prompts that declare no splits
COSTED = 8  # test prompts on which passes and times are measured
TIMED = "milliseconds"


def as_several(value: Any) -> tuple[Any, ...]:
    """One name, object or function as a tuple of one; several as a tuple; None as nobody."""
    if value is None:
        return ()
    if isinstance(value, str | Guard) or callable(value):
        return (value,)
    if not isinstance(value, Iterable):
        raise ValueError("must be a name, an object, or several of them")
    return tuple(value)


@checked
def arena(
    model: SomeModel,
    prompts: SomePrompts,
    detectors: Any = DETECTORS,
    guards: Annotated[Any, Converted(as_several)] = (),
    *,
    judges: Annotated[Any, Converted(as_several)] = (),
    controls: Annotated[int, Whole(0, 10**6)] = 0,
    max_new_tokens: Annotated[int, Whole(1, 10**6)] = 32,
    bootstrap: Annotated[int, Whole(0, 10**6)] = 1000,
    costed: Annotated[int, Whole(0, 10**6)] = COSTED,
    run: SomeRun | None = None,
    out: str | Path | None = None,
    progress: bool = False,
    seed: Seed = 0,
) -> pd.DataFrame:
    """Every detector on the same test prompts, with intervals, and what guards do to replies.

    Detectors are fitted on the selection and threshold prompts (prompts that declare no splits are dealt 60:40 into
    those and the test), from one look at each prompt that all of them share, and measured on the test prompts.

    Args:
        model: From `load_model`, or a name or path that it takes.
        prompts: Labelled prompts, or what `load_prompts` takes.
        detectors: Names, with options where wanted (`"one-head-fused:k=3/5:fuse=max"` makes two), objects (fitted ones
            stay as they are, if they have seen none of the test prompts), or a mapping of objects by name.
            `workbench.comparison.grid` makes all of measure × rule × projection × number of heads.
        guards: Names or objects; see `workbench.replies.list_guards`. Without any, nothing is generated.
        judges: Of replies: one name or function as in `workbench.replies.judges`, or two. By default `"exact"` where
            every prompt has its expected reply, else `"phrases"`.
        controls: With draws of matched random heads, replies are also read with the heads of each detector masked, and
            with these in their place: the rows of `workbench.comparison.causal_rows`.
        max_new_tokens: Length of a reply at most.
        bootstrap: Resamples behind intervals; all detectors share them.
        costed: Test prompts on which passes and times are measured, one at a time; 0 measures none.
        run: A run of these prompts by this model, all heads masked; what it holds is not swept again.
        out: A folder in which sweeps and replies are kept, so that an interrupted arena goes on.
        progress: Show progress, with the time left.
        seed: Of splits, detectors and resamples.

    Returns:
        One row a detector × source × family × measure: detector, source, family (`all` sums them up), measure, value,
        ci_low, ci_high (95 %), n. Measures: those of `workbench.comparison.measures` and
        `workbench.comparison.guarded`, and, of the detector (a guard: beside the plain reply) on single prompts,
        `passes` (forward passes, mean) and `milliseconds` (mean; depends on the machine). In `attrs`: `differences`
        (every detector against chance and every other, `workbench.comparison.differences`, as records), `draws` (of
        those that draw), `tests` of what masking heads does, `left_out` (who could not be fitted, and why), `splits`,
        `caveats` (of the prompts, those of `workbench.prompts.caveats`), `judges`, `agreement` of two judges,
        `thresholds` and `stability` by detector, how many test `prompts`, `model`, `weight_hash` and `seed`.

    Raises:
        DetectorError: If there is no such detector or guard, or none could be fitted.
        PromptError: For prompts that cannot be used, or splits that overlap.

    Examples:
        >>> import workbench as wb
        >>> prompts = wb.load_prompts("planted", n=48)
        >>> table = wb.arena("planted", prompts, ("one-head", "ships"), bootstrap=100, costed=0)
        >>> rates = table[(table.source == "all") & (table.measure == "detection_rate_kde")]
        >>> dict(zip(rates.detector, rates.value))["one-head"]
        1.0
    """
    assert isinstance(model, HookedLVLM) and isinstance(prompts, PromptSet)  # noqa: PT018 - converted
    calibration, test, splits = calibration_and_test(prompts, seed)
    check_labels(test, "The test set of the arena")
    asked, guarding = entrants(detectors, seed=seed), [made_guard(guard) for guard in guards]
    if not asked and not guarding:
        raise DetectorError("There is nobody in the arena. Give detectors, guards, or both.")
    left_out: dict[str, str] = {}
    folder = None if out is None else Path(out)
    assert run is None or isinstance(run, xr.Dataset)  # converted
    if run is not None:
        _check_run_of(run, model, prompts)
    fitted = fit_all(model, asked, calibration, left_out, out=folder, progress=progress, run=run)
    fitted = score_all(model, fitted, test, left_out, progress=progress, run=run)
    if asked and not fitted:
        why = "; ".join(f"{key}: {reason}" for key, reason in left_out.items())
        raise DetectorError(f"None of the detectors could enter the arena. {why}")
    field = Field(test, bootstrap=bootstrap, seed=seed)
    rows: list[dict] = []
    about: dict[str, Any] = {"agreement": None, "judges": []}
    causal = None
    if guarding or controls:
        used = judges or (("exact",) if all(p.expected for p in test) else ("phrases",))
        file = None if folder is None else folder / "replies.jsonl"
        answers = Answers(model, field, judges=used, max_new_tokens=max_new_tokens, progress=progress, file=file)
        if controls:
            how: dict[str, Any] = {"judge": used[0], "max_new_tokens": max_new_tokens, "plain": answers.plain}
            causal = CausalMeasures(model, test, controls=controls, seed=seed, progress=progress, **how)
        rows += answers.rows(guarding, fitted, left_out)
        about |= {
            "agreement": answers.agreement,
            "judges": [judge if isinstance(judge, str) else _name_of(judge) for judge in used],
        }
        rows += _guard_costs(model, guarding, field, answers.plain, costed, max_new_tokens, left_out)
    rows += [found for entrant in fitted for found in _costs(model, entrant, field, costed)]
    if not (fitted or rows):
        why = "; ".join(f"{key}: {reason}" for key, reason in left_out.items())
        raise DetectorError(f"None of the guards could enter the arena. {why}")
    table = arena_table(fitted, field, causal, rows)
    table.attrs |= {
        **about,
        "left_out": left_out,
        "splits": splits,
        "caveats": caveats(prompts),
        "model": model.name,
        "weight_hash": model.weight_hash,
        "seed": seed,
    }
    return table


def arena_table(
    fitted: Sequence[Entrant],
    field: Field,
    causal: CausalMeasures | None = None,
    more: Sequence[dict] = (),
    *,
    pairs: Sequence[tuple[str, Entrant, Entrant]] | None = None,
) -> pd.DataFrame:
    """Rows of detection, of what masking heads does, and `more`; in `attrs` what is known of detectors and pairs."""
    rows = [found for entrant in fitted for found in detection_rows(entrant, field)]
    rows += [] if causal is None else causal.rows(fitted)
    table = pd.DataFrame([*rows, *more], columns=list(COLUMNS))
    table.attrs = {
        "differences": difference_table(fitted, field, pairs).to_dict("records") if fitted else [],
        "draws": [found for entrant in fitted for found in _draws(entrant, field)],
        "tests": [] if causal is None else causal.tests(fitted),
        "thresholds": {e.key: float(e.detector.threshold) for e in fitted},
        "stability": {e.key: e.detector.stability for e in fitted},
        "prompts": len(field.prompts),
    }
    return table


def _check_run_of(run: xr.Dataset, model: HookedLVLM, prompts: PromptSet) -> None:
    """Refuse a run that is not of this model and all of these prompts."""
    check_model(run, model)
    swept = {str(id_) for id_ in run["prompt"].values}
    if lacking := [p.id for p in prompts if p.id not in swept]:
        raise DetectorError(
            f"The run holds {len(swept)} prompts, and {len(lacking)} of the {len(prompts)} given are not among them "
            f"(the first: {lacking[0]!r}). Give a run of all of them, or none."
        )
    prompts_of(run.sel(prompt=[p.id for p in prompts]), prompts)


def _name_of(judge: Any) -> str:
    return str(getattr(judge, "__name__", type(judge).__name__))


def calibration_and_test(prompts: PromptSet, seed: int) -> tuple[PromptSet, PromptSet, str]:
    """Calibration and test prompts, and where the splits come from."""
    declared = {p.split for p in prompts}
    if declared == {""}:
        parts = split_prompts(prompts, fractions=FRACTIONS, seed=seed)
        return parts["selection"], parts["test"], f"dealt {FRACTIONS['selection']:.0%} to calibration, seed {seed}"
    check_splits(prompts)
    test = prompts.where(split="test")
    if not len(test) or "" in declared:
        raise DetectorError(
            f"The arena tests on prompts of the split test; these declare {', '.join(sorted(declared - {''}))}"
            f"{' and some of them nothing' if '' in declared else ''}. Declare a split for all of them, or for none."
        )
    return PromptSet(p for p in prompts if p.split != "test"), test, "declared"


def _costed(field: Field, count: int) -> list[Prompt]:
    """Test prompts spread over all of them."""
    places = np.unique(np.linspace(0, len(field.prompts) - 1, min(count, len(field.prompts))).astype(int))
    return [field.prompts[i] for i in places]


def _costs(model: HookedLVLM, entrant: Entrant, field: Field, count: int) -> list[dict]:
    some = _costed(field, count)
    if not some:
        return []
    counted, seconds = (np.array(of) for of in cost_of_each(entrant.detector, model, some))
    times, mean = 1000 * seconds, counted.mean() if len(counted) else np.nan
    return [
        row(entrant.key, field.everything, "passes", mean, field.mean_interval(counted), len(some)),
        row(entrant.key, field.everything, TIMED, times.mean(), field.mean_interval(times), len(some)),
    ]


def _guard_costs(
    model: HookedLVLM,
    guards: Sequence[Guard],
    field: Field,
    plain: Sequence[str],
    count: int,
    max_new_tokens: int,
    left_out: dict[str, str],
) -> list[dict]:
    """Of guards that need no detector: work and time beside the plain reply, one prompt at a time."""
    said = {prompt.id: reply for prompt, reply in zip(field.prompts, plain, strict=True)}
    some, rows = _costed(field, count), []
    for guard in guards:
        if guard.by_detector or guard.name in left_out or not some:
            continue
        counted, times = [], []
        for prompt in some:
            before, began = model.work.layer_tokens, time.perf_counter()
            guard.replies(model, [prompt], [said[prompt.id]], max_new_tokens=max_new_tokens)
            times.append(1000 * (time.perf_counter() - began))
            counted.append(passes(model, prompt, model.work.layer_tokens - before))
        for measure, values in (("passes", np.array(counted)), (TIMED, np.array(times))):
            rows.append(
                row(guard.name, field.everything, measure, values.mean(), field.mean_interval(values), len(some))
            )
    return rows


def _draws(entrant: Entrant, field: Field) -> list[dict]:
    """AUROC and rates of every draw of a detector that draws for each prompt."""
    if len(entrant.values) == 1:
        return []
    unsafe = field.unsafe
    areas = auroc(entrant.values.T, unsafe)
    rates = {"detection_rate_kde": unsafe, "fpr_kde": ~unsafe}
    shares = {name: entrant.flagged[:, of].mean(axis=1) for name, of in rates.items()}
    return [
        {"detector": entrant.key, "draw": draw, "measure": name, "value": float(values[draw])}
        for name, values in {"auroc": areas, **shares}.items()
        for draw in range(len(entrant.values))
    ]
