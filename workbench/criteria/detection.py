"""How well single heads detect: chosen on one split, thresholded on another, tested on a third, with intervals."""

import numpy as np
import pandas as pd
import xarray as xr

from workbench.axes import head_name
from workbench.checking import Seed, checked
from workbench.criteria.arguments import Names, Resamples, RuleNames
from workbench.criteria.ranking import top_heads
from workbench.criteria.rates import measures_on
from workbench.criteria.registry import PER_PROMPT, TRAINED, Criterion, get_criterion
from workbench.criteria.score import score
from workbench.criteria.thresholds import kde_threshold
from workbench.criteria.values import pieces_of, prompt_values, prompts_of
from workbench.errors import CriterionError, RunError
from workbench.runs.pairs import unit_names
from workbench.runs.reading import SomeRun, caveats_of, prompt_coord
from workbench.runs.splits import in_split, with_splits

HEAD_COLUMNS = ("criterion", "rule", "projection", "layer", "head")
DETECTION_COLUMNS = (*HEAD_COLUMNS, "threshold", "measure", "family", "value", "ci_low", "ci_high", "n")


@checked
def detection_table(
    run: SomeRun,
    *,
    criteria: Names = ("deflection", "ships", "probe"),
    rules: RuleNames = ("sensitivity", "selectivity", "auroc"),
    bootstrap: Resamples = 1000,
    seed: Seed = 0,
) -> pd.DataFrame:
    """What the top head of every criterion × rule × projection detects on prompts it has not seen.

    The head is chosen on the selection split, its threshold set on the threshold split (the published KDE rule), and
    everything in the table measured on the test split. What is thresholded is the criterion's own value of that head,
    as a strength; for a criterion of data sets the per-prompt deflection angle (as published: the search uses one
    quantity, detection another); for a probe the decision value of a fit on the selection split.

    Args:
        run: As `wb.sweep` returns it.
        criteria: Names of criteria.
        rules: Names of rules; pairs without a meaning are left out.
        bootstrap: Resamples behind the intervals of AUROC and TPR; 0 leaves those NaN.
        seed: Of resamples, folds, controls, and splits where the prompts declare none.

    Returns:
        One row a (criterion, rule, projection, head) × measure × family.

        | measure | family | value |
        |---|---|---|
        | `detection_rate` | an attack family, or `all` | share of its unsafe prompts over the threshold |
        | `false_positive_rate` | a benign family, or `all` | share of its safe prompts over the threshold |
        | `auroc` | an attack family, or `all` | its unsafe prompts against all safe ones (pooled) |
        | `auroc_matched` | an attack family with safe twins | its unsafe prompts against the safe ones of that family |
        | `tpr_at_fpr_1`, `tpr_at_fpr_5` | `all` | detection rate at 1 % and 5 % false positives of the test split |

        `ci_low`, `ci_high`: 95 %, exact binomial for the two rates, bootstrap for the others. `n`: prompts counted.
        Pooled AUROC flatters wherever some safe prompts are easy: read the matched one beside it. `.attrs["splits"]`
        says where the splits come from, `.attrs["left_out"]` which pairs have no row, and why.

    Raises:
        RunError: If the splits cannot be used.
        CriterionError: If no pair of criterion and rule gives a head.
    """
    run, splits = with_splits(run, seed=seed)
    scores = score(run, criteria, bootstrap=0, permutations=0, seed=seed)
    rows: list[dict] = []
    left_out: list[str] = []
    for name in criteria:
        criterion = get_criterion(name)
        values = Decisions(run, criterion)
        projections = dict.fromkeys(scores.loc[scores["criterion"] == name, "projection"])
        for rule in (rule for rule in rules if rule in criterion.rules):
            for projection in projections:
                try:
                    rows += _tested(run, scores, values, name, rule, projection, bootstrap=bootstrap, seed=seed)
                except CriterionError as error:
                    left_out.append(f"{name} × {rule} × {projection}: {error}")
    if not rows:
        raise CriterionError(f"No pair of these criteria and rules gives a head to test. {' '.join(left_out)}".strip())
    table = pd.DataFrame(rows, columns=list(DETECTION_COLUMNS))
    table.attrs = {"splits": splits, "left_out": tuple(left_out), "seed": seed, "caveats": caveats_of(run)}
    return table


@checked
def leave_one_family_out(
    run: SomeRun,
    *,
    criterion: str,
    rule: str,
    projection: str | None = None,
    bootstrap: Resamples = 1000,
    seed: Seed = 0,
) -> pd.DataFrame:
    """What a head detects of an attack family that neither its choice nor its threshold has seen.

    For every attack family in turn, its prompts (unsafe, and its safe twins) are taken out of the selection and
    threshold splits; a head is chosen, thresholded, and tested on that family's test prompts and on all safe test
    prompts.

    Returns:
        As `detection_table`, with `held_out`, the family, as its first column. Where the unsafe prompts are of one
        family, or of none, nothing can be held out: `held_out` is empty, and the head and its threshold have seen what
        they are tested on. `.attrs["left_out"]` says so, and which families have no row, and why.

    Raises:
        RunError: As `detection_table`.
        CriterionError: As `detection_table`.
    """
    run, splits = with_splits(run, seed=seed)
    record = get_criterion(criterion)
    family, unsafe, test = prompt_coord(run, "family"), prompt_coord(run, "label") == "unsafe", in_split(run, "test")
    attacks = sorted(set(family[unsafe]) - {""}) if len(set(family[unsafe])) > 1 else []
    rows: list[dict] = []
    left_out = []
    if not attacks:
        only = f"of one attack family, {family[unsafe][0]!r}" if family[unsafe][0] else "of no named attack family"
        left_out.append(f"The unsafe prompts are {only}, so none was held out: what is tested was also chosen on.")
    for held_out in attacks or [""]:
        keep = np.where(test, ~unsafe | (family == held_out), family != held_out) if held_out else unsafe | ~unsafe
        part = run.isel(prompt=np.flatnonzero(keep))
        try:
            scores = score(part, (criterion,), bootstrap=0, permutations=0, seed=seed)
            values = Decisions(part, record)
            found = _tested(part, scores, values, criterion, rule, projection, bootstrap=bootstrap, seed=seed)
        except (CriterionError, RunError) as error:
            left_out.append(f"{held_out or 'all'}: {error}")
            continue
        rows += [{"held_out": held_out, **row} for row in found]
    if not rows:
        raise CriterionError(f"No attack family gives a head to test. {' '.join(left_out)}")
    table = pd.DataFrame(rows, columns=["held_out", *DETECTION_COLUMNS])
    table.attrs = {"splits": splits, "left_out": tuple(left_out), "seed": seed, "caveats": caveats_of(run)}
    return table


def decision_values(run: xr.Dataset, criterion: Criterion) -> xr.DataArray:
    """What a detector thresholds, larger = more unsafe: prompt, projection, layer, head.

    Args:
        run: From `with_splits` (probes are fitted on its selection prompts).
        criterion: Of any kind; see `detection_table` for what each one gives.
    """
    if criterion.kind == TRAINED:
        if criterion.decide is None:
            raise CriterionError(f"Criterion {criterion.name!r} is trained and has no `decide`, so it cannot detect.")
        return criterion.decide(run, in_split(run, "selection")).expand_dims(projection=["none"], axis=1)
    per_prompt = criterion if criterion.kind == PER_PROMPT else get_criterion("deflection")
    values = prompt_values(run, per_prompt)
    return values.copy(data=per_prompt.strength(values.values))


class Decisions:
    """What a detector thresholds, of one head after the other: only the piece of the run that holds it is read."""

    def __init__(self, run: xr.Dataset, criterion: Criterion) -> None:
        # A criterion of data sets detects by the deflection, a value a prompt.
        self.run, self.criterion = run, criterion
        self._parts = list(pieces_of(run, criterion if criterion.kind == TRAINED else get_criterion("deflection")))
        self._piece: dict[int, xr.DataArray] = {}  # the last that was read
        self._heads: dict[tuple[str, int, int], xr.DataArray] = {}

    def of(self, projection: str, layer: int, head: int) -> xr.DataArray:
        """Of one head, [prompt]."""
        if (wanted := (projection, layer, head)) not in self._heads:
            at = next(
                k for k, part in enumerate(self._parts) if layer in part["layer"].values and head in part["head"].values
            )
            if at not in self._piece:
                self._piece = {at: decision_values(self._parts[at], self.criterion)}
            self._heads[wanted] = self._piece[at].sel(projection=projection, layer=layer, head=head).copy()
        return self._heads[wanted]


def _tested(
    run: xr.Dataset,
    scores: pd.DataFrame,
    values: Decisions,
    criterion: str,
    rule: str,
    projection: str | None,
    *,
    bootstrap: int,
    seed: int,
) -> list[dict]:
    """The first head, its threshold, and its measures on the test split."""
    top = top_heads(scores, criterion=criterion, rule=rule, projection=projection, k=1, seed=seed).iloc[0]
    decided = values.of(str(top["projection"]), int(top["layer"]), int(top["head"]))
    prompts, cell = prompts_of(run, decided), decided.values
    if np.isnan(cell).all():
        where = head_name(int(top["layer"]), int(top["head"]))
        raise CriterionError(f"{where} ({top['projection']}) has no values to set a threshold on.")
    unsafe, family = prompt_coord(prompts, "label") == "unsafe", prompt_coord(prompts, "family")
    calibration, test = in_split(prompts, "threshold"), in_split(prompts, "test")
    threshold = kde_threshold(cell[calibration & unsafe], cell[calibration & ~unsafe]).value
    measures = measures_on(
        cell[test],
        unsafe[test],
        family=family[test],
        pairs=unit_names(prompts)[test],
        threshold=threshold,
        bootstrap=bootstrap,
        seed=seed,
    )
    return [{**top[list(HEAD_COLUMNS)], "threshold": threshold, **measure} for measure in measures]
