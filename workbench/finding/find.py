"""`find_heads`: the first k heads under a rule, with how sure that is, from as little work as that takes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import xarray as xr

from workbench.axes import MASKABLE
from workbench.checking import Converted, Finite, OneOf, Place, Seed, Whole, checked
from workbench.criteria.redraws import REDRAWS, share_among_first
from workbench.criteria.registry import get_criterion, get_rule
from workbench.criteria.rules import SAFE_PERCENTILE, percentile_ranks
from workbench.criteria.statistics import bootstrap_weights
from workbench.finding.bounds import Fit
from workbench.finding.engine import MOST, RULES, searchable
from workbench.finding.prices import directions_for
from workbench.finding.search import STATUSES, strong_ranks, taken_for_sure
from workbench.models.hooked import HookedLVLM
from workbench.models.loading import SomeModel
from workbench.models.masks import Mask, SomeMask
from workbench.prompts.prompt import PromptSet
from workbench.runs.pairs import tie_names
from workbench.runs.reading import caveats_of, prompt_coord, selection_part
from workbench.sweeps.sweep import SomePrompts, sweep
from workbench.sweeps.tasks import selection_of

COLUMNS = (
    "criterion", "rule", "projection", "layer", "head", "value", "ci_low", "ci_high", "status", "stability",
)  # fmt: skip
CERTAINLY_APART = 1.96  # standard errors


def _as_projections(value: Any) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else tuple(value)
    if not names or set(names) - set(MASKABLE) or len(set(names)) < len(names):
        raise ValueError(f"must be one of {', '.join(MASKABLE)}, or several of them, each once")
    return names


@checked
def find_heads(
    model: SomeModel,
    prompts: SomePrompts,
    k: Annotated[int, Whole(1, MOST)] = 5,
    criterion: Annotated[str, OneOf(searchable)] = "deflection",
    rule: Annotated[str, OneOf(RULES)] = "selectivity",
    projection: Annotated[str | Sequence[str], Converted(_as_projections)] | None = None,
    level: Annotated[float, Finite(0.5, 1 - 1e-9)] = 0.95,
    budget: Annotated[float, Finite(1e-6, 2.0)] = 0.5,
    *,
    mask: SomeMask = None,
    out: Annotated[str | Path, Place()] | None = None,
    progress: bool = True,
    seed: Seed = 0,
) -> pd.DataFrame:
    """Find the k heads that come first under a rule, and say of every head whether that is certain.

    All heads are estimated from a few backward passes. Exact cells on a random part of prompts and heads correct the
    estimates; heads that cannot be among the first k are dropped, and exact work goes on where it decides.

    Args:
        model: From `load_model`, or a name or path that it takes.
        prompts: As `wb.sweep` takes them. Heads are chosen on the split `selection` where prompts declare one.
        k: How many heads.
        criterion: One of a value a prompt whose derivative is known: deflection, ships, l2, refusal_change.
        rule: "selectivity", or "sensitivity", which reads unsafe prompts only.
        projection: Of "query", "key" and "value", one or several; by default the first that the mask's form masks,
            which for most is the query.
        level: Chance that all statuses are right.
        budget: Most work, as a share of the exact map's on the same prompts; heads that it leaves undecided are
            possible. The least that can be done, all heads on a few prompts of each class, is done in any case.
        mask: How heads are masked; `Mask()` by default.
        out: Store the run here; the same call later goes on where it stopped.
        progress: Show a progress bar with the time left.
        seed: Of the order of prompts and of the directions of estimates.

    Returns:
        Every head a row, best first: `criterion, rule, projection, layer, head`, then

        | column | meaning |
        |---|---|
        | `value` | the rule's value on *these prompts*, in the criterion's unit, larger = stronger; exact where the interval is a point. NaN for heads that the rule leaves out |
        | `ci_low`, `ci_high` | interval at `level` for the exact value on these prompts |
        | `status` | `certain`: among the first k on these prompts; `excluded`: not; `possible`: the budget ran out first. Together they aim at being right with probability `level`; see the guide for how often they were |
        | `stability` | another question: in what share of redraws of the prompts (pairs and repeats kept whole) the head is among the first k |

        `.attrs`: `work`, the share of the exact map's operations that were spent; `run`, the Dataset, whose measures
        hold exact cells only (NaN elsewhere); `says`, what more prompts would tell; `n_unsafe`, `n_safe`.

    Raises:
        PromptError: Without prompts that the rule reads.
        ArgumentError: For a criterion without a known derivative, or a rule that is no mean.

    Source:
        This project: prediction-powered estimates (arXiv 2301.09633, 2311.01453), small-area shrinkage and successive
        elimination, as `workbench.finding` says file by file.

    Examples:
        >>> import workbench as wb
        >>> prompts = wb.load_prompts("planted", n=240)
        >>> found = wb.find_heads(wb.load_model("planted"), prompts, k=1, rule="sensitivity", progress=False)
        >>> print(*found.iloc[0][["layer", "head", "status"]])
        0 2 certain
        >>> found.attrs["work"] < 1
        True
    """  # noqa: E501
    assert isinstance(model, HookedLVLM) and isinstance(prompts, PromptSet)  # noqa: PT018 - converted
    chosen = PromptSet((p for p, read in zip(prompts, selection_of(prompts), strict=True) if read), name=prompts.name)
    mask = mask or Mask()
    projection = projection or mask.projections[:1]
    n_rows = len(mask.row_heads(model.n_heads, model.n_kv_heads))
    asked = np.zeros((len(projection), model.n_layers, n_rows), dtype=bool)
    asked[:, list(model.masked_layers)] = True
    each = sum(p.label == "unsafe" for p in chosen) if rule == "sensitivity" else len(chosen) / 2
    options = {
        "k": k, "criterion": criterion, "rule": rule, "level": level, "budget": budget,
        "directions": directions_for(model.n_layers, asked, each) if criterion != "refusal_change" else 1,
    }  # fmt: skip
    run = sweep(
        model, chosen, projections=projection, mask=mask, engine="find", engine_options=options, keep_states=False,
        measures=get_criterion(criterion).needs, out=out, progress=progress, seed=seed,
    )  # fmt: skip
    return found_table(run, criterion=criterion, rule=rule, k=k, seed=seed)


def found_table(run: xr.Dataset, *, criterion: str, rule: str, k: int, seed: int = 0) -> pd.DataFrame:
    """The table of `find_heads`, from the run of the engine `find`."""
    shares, says = redrawn_shares(run, criterion, rule, k, seed)
    tables = []
    for number, projection in enumerate(run["projection"].values):
        part = run.isel(projection=number)
        heads = np.argwhere(part["find_status"].notnull().values)
        at = tuple(heads.T)
        codes = part["find_status"].values[at].astype(int)
        table = pd.DataFrame(
            {
                "criterion": criterion,
                "rule": rule,
                "projection": str(projection),
                "layer": heads[:, 0],
                "head": heads[:, 1],
                **{
                    name: part[variable].values[at].astype(float)
                    for name, variable in (("value", "rule_value"), ("ci_low", "rule_low"), ("ci_high", "rule_high"))
                },
                "status": np.array(STATUSES, dtype=object)[codes],
                "stability": shares[number][at],
            }
        )
        order = np.lexsort((table["head"], table["layer"], -table["value"].fillna(-np.inf), -codes))
        tables.append(table.iloc[order])
    found = pd.concat(tables, ignore_index=True)[list(COLUMNS)]
    unsafe = prompt_coord(run, "label") == "unsafe"
    found.attrs = {
        "work": float(run.attrs["layer_tokens"] / run.attrs["exact_map_layer_tokens"]),
        "run": run,
        "says": says,
        "n_unsafe": int(unsafe.sum()),
        "n_safe": int((~unsafe).sum()),
        "model": str(run.attrs.get("model", "")),
        "caveats": caveats_of(run),
    }
    return found


def redrawn_shares(run: xr.Dataset, criterion: str, rule: str, k: int, seed: int) -> tuple[list[np.ndarray], str]:
    """In what share of redraws of the prompts each head is among the first k, `[layer, head]` a projection; a sentence.

    Cells that were not computed are filled in by their estimates, and scatter about them as the exact ones do.
    """
    record, how = get_criterion(criterion), get_rule(rule)
    name = record.needs[0]
    part, _ = selection_part(run)
    unsafe = prompt_coord(part, "label") == "unsafe"
    exact, estimate = (record.strength(part[n].values.astype(float)) for n in (name, f"{name}_estimate"))
    weights = bootstrap_weights(unsafe, tie_names(part), resamples=REDRAWS, seed=seed)
    random = np.random.default_rng(seed)
    means = {}
    for side, mine in (("unsafe", unsafe), ("safe", ~unsafe))[: 1 if rule == "sensitivity" else 2]:
        known = np.nan_to_num(estimate[mine])
        every = [np.ones(len(known), dtype=bool)]
        sure = taken_for_sure(exact[mine], strong_ranks(known, every), every)
        filled, scatter = Fit.of(exact[mine], known, sure).completed()
        of = weights[:, mine] / mine.sum()
        noise = np.sqrt(np.tensordot(of**2, scatter**2, 1)) * random.standard_normal((len(of), *scatter.shape[1:]))
        means[side] = np.tensordot(of, filled, 1) + noise
    shares, sentences = [], []
    for number, projection in enumerate(part["projection"].values):
        statistics = {side: values[:, number].reshape(len(values), -1) for side, values in means.items()}
        if "safe" in statistics:
            statistics["safe_rank"] = np.stack([percentile_ranks(safe) for safe in statistics["safe"]])
        share = share_among_first(statistics, how, k, SAFE_PERCENTILE)
        shares.append(share.reshape(exact.shape[2:]))
        values = np.where(how.keeps(statistics, SAFE_PERCENTILE), how.value(statistics), np.nan)
        sentences.append(f"{projection}: {_prompts_wanted(values, share, k, len(unsafe))}")
    return shares, " ".join(sentences)


def _prompts_wanted(values: np.ndarray, share: np.ndarray, k: int, n: int) -> str:
    """About how many more prompts would tell the k-th head from the next one."""
    if values.shape[1] <= k:
        return "no other heads to tell them from."
    first = np.argsort(-share, kind="stable")
    gap = values[:, first[k - 1]] - values[:, first[k]]
    gap = gap[np.isfinite(gap)]
    if not len(gap):
        return f"no redraw has a value of both head {k} and the next, so how many more would tell them is not known."
    apart, scatter = abs(gap.mean()), gap.std()
    if scatter <= 0:
        return "these prompts tell the first heads from the others."
    needed = n * (CERTAINLY_APART * scatter / max(apart, 1e-12)) ** 2
    if needed <= n:
        return "these prompts tell the first heads from the others."
    more = needed - n
    many = f"about {float(f'{more:.2g}'):,.0f}" if more < 1e6 else "more than a million"
    return f"{many} more prompts would tell head {k} from the next, if they are like these."
