"""`faithfulness`: how much of a model's refusal is left when only some heads are, set by set and size by size."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any

import numpy as np
import pandas as pd

from workbench.axes import Head, as_heads, head_pairs
from workbench.checking import Converted, Seed, Whole, checked
from workbench.comparison.differences import tested
from workbench.comparison.masked_behaviour import MaskedReplies, outcome_groups
from workbench.criteria.ranking import ranked, scored_rows
from workbench.criteria.registry import get_criterion, get_rule
from workbench.criteria.statistics import bootstrap_weights, percentile_interval, rate_interval
from workbench.detectors.calibration import check_labels, unsafe_array
from workbench.errors import CriterionError, DetectorError
from workbench.finding.joint import contrast, refusal_odds
from workbench.models.bound import with_source
from workbench.models.hooked import HookedLVLM
from workbench.models.loading import SomeModel
from workbench.models.masks import Mask, SomeMask
from workbench.prompts.prompt import PromptSet
from workbench.prompts.ties import tie_names
from workbench.sweeps.execution import progress_bar
from workbench.sweeps.sweep import SomePrompts

SIZES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
RULES = ("sensitivity", "selectivity", "auroc", "effect_size", "ratio")
COLUMNS = ("ranking", "share", "n_heads", "measure", "value", "ci_low", "ci_high", "n")
AREAS = ("cpr", "cmd")
NO_DIFFERENCE = 1e-6  # log-odds between unsafe and safe prompts under which there is nothing to be faithful to

Rankings = Mapping[str, Sequence[Head]]


def rankings(scores: pd.DataFrame, *, projection: str = "query") -> dict[str, list[Head]]:
    """All heads in the order of every criterion × rule that has a meaning, by `"criterion, rule"`, best first.

    Heads that a rule does not keep stand behind those that it keeps, in the order of its value.

    Args:
        scores: From `wb.score`.
        projection: Of the criteria that mask heads.
    """
    found = {}
    for name in dict.fromkeys(scores["criterion"].astype(str)):
        record = get_criterion(name)
        of = projection if projection in set(scores.loc[scores["criterion"] == name, "projection"]) else None
        try:
            rows, _ = scored_rows(scores, record, of)
        except CriterionError:
            continue
        for rule in RULES:
            if rule in record.rules:
                kept = ranked(rows, record, rule)
                value = get_rule(rule).value(rows)
                rest = (
                    rows.assign(value=value)
                    .drop(index=kept.index)
                    .sort_values(["value", "layer", "head"], ascending=[False, True, True], kind="stable")
                )
                found[f"{name}, {rule}"] = [*head_pairs(kept), *head_pairs(rest)]
    return found


def matched(order: Sequence[Head], seed: int) -> list[Head]:
    """A random order in which every layer comes as often, and as early, as in `order`."""
    rng, pools = np.random.default_rng(seed), {}
    for layer in dict.fromkeys(layer for layer, _ in order):
        pools[layer] = list(rng.permutation([head for at, head in order if at == layer]))
    return [(layer, int(pools[layer].pop())) for layer, _ in order]


def _orders(value: Any) -> dict[str, list[Head]]:
    if not isinstance(value, Mapping) or not value:
        raise ValueError("must be heads by the name of a ranking, such as {'mine': [(3, 1), …]}")
    return {str(name): list(as_heads(heads)) for name, heads in value.items()}


def _sizes(value: Any) -> tuple[float, ...]:
    sizes = tuple(sorted({float(share) for share in value}))
    if len(sizes) < 2 or not 0 <= sizes[0] < sizes[-1] <= 1:
        raise ValueError("must be two shares of the heads or more, from 0 to 1")
    return sizes


@checked
def faithfulness(
    model: SomeModel,
    prompts: SomePrompts,
    rankings: Annotated[Any, Converted(_orders)],
    *,
    sizes: Annotated[Any, Converted(_sizes)] = SIZES,
    mask: SomeMask = None,
    controls: Annotated[int, Whole(0, 1000)] = 5,
    behaviour: Sequence[float] = (),
    judge: str = "auto",
    max_new_tokens: Annotated[int, Whole(1, 10**6)] = 16,
    bootstrap: Annotated[int, Whole(0, 10**6)] = 1000,
    progress: bool = False,
    seed: Seed = 0,
) -> pd.DataFrame:
    """How faithful the first heads of a ranking are to the whole model's refusal.

    Of a ranking the first heads are kept and all other heads write nothing (MLPs and embeddings stay). What is measured
    is the difference between unsafe and safe prompts in the mean log-odds that the reply opens with a refusal; its
    faithfulness is 0 where no head is left and 1 where all are, and may lie outside. With no head left the last
    position sees itself alone, so that the difference there is 0 but for what the prompts' ends differ in.

    Args:
        model: From `load_model`, or a name or path that it takes.
        prompts: Labelled, of both labels.
        rankings: Heads by a name, the first the most important; `workbench.comparison.rankings(scores)` gives every
            criterion × rule, `workbench.finding.gates.learn_heads` learned ones. Every head is to stand in each.
        sizes: Shares of all heads that are kept, from 0 to 1.
        mask: What is done to the outputs of the other heads; by default they are zero. `Mask(form="interchange")` gives
            those of an unsafe prompt what its safe twin's put out, as MIB does; prompts without a twin are left out.
        controls: For each ranking, this many random orders with as many heads of each layer at each size.
        behaviour: Shares at which replies are judged too; it takes a reply to every prompt for each ranking.
        judge: Of replies: as in `workbench.replies.judges`; `"auto"` takes the exact one where replies are known.
        max_new_tokens: Length of a reply at most.
        bootstrap: Resamples behind intervals; pairs are drawn together.
        progress: Show progress, with the time left.
        seed: Of controls and resamples.

    Returns:
        One row a ranking × size × measure: ranking, share, n_heads, measure, value, ci_low, ci_high (95 %), n.
        `faithfulness`, and of whole curves (share NaN) `cpr`, the area under it, and `cmd`, the area of |1 −
        faithfulness|, both over the range of sizes; for each the control under the name `…_control` (mean of the draws;
        lowest and highest). Where asked: `complied`, `refused` (unsafe prompts) and `benign_complied`. NaN where the
        whole model refuses both labels alike. `.attrs`: `difference` of the whole model in log-odds, and `tests`: has a
        ranking a smaller `cmd` than its controls' mean (bootstrap, one-sided, Holm).

    Raises:
        DetectorError: For rankings that leave out heads, or a tokenizer that knows no refusal.

    Source:
        MIB (circuit track): CPR and CMD, with heads as units. MIB replaces what is outside by the values of a
        counterfactual prompt (`interchange`), and its grid of sizes is finer at the small end.

    Examples:
        >>> import workbench as wb
        >>> prompts = wb.load_prompts("planted", split="test", n=16)
        >>> others = [(layer, head) for layer in range(4) for head in range(4) if (layer, head) != (3, 1)]
        >>> orders = {"planted first": [(3, 1), *others], "planted last": [*others, (3, 1)]}
        >>> table = wb.faithfulness("planted", prompts, orders, controls=2, bootstrap=50)
        >>> table.query("measure == 'cmd'").set_index("ranking")["value"].round(2).to_dict()
        {'planted first': 0.21, 'planted last': 1.0}
    """
    assert isinstance(model, HookedLVLM) and isinstance(prompts, PromptSet)  # noqa: PT018 - converted
    mask = mask or Mask()
    if mask.form == "interchange":
        both = {p.pair_id for p in prompts if p.label == "safe"} & {p.pair_id for p in prompts if p.label == "unsafe"}
        prompts = PromptSet((p for p in prompts if p.pair_id in both - {""}), name=prompts.name)
    check_labels(prompts, "A set of prompts (in pairs, where outputs are interchanged) to measure faithfulness on")
    every = {(layer, head) for layer in model.masked_layers for head in range(model.n_heads)}
    for name, order in rankings.items():
        if {*order} != every or len(order) != len(every):
            raise DetectorError(
                f"The ranking {name!r} names {len(set(order) & every)} of the {len(every)} heads of {model.name!r}; "
                "a curve needs each of them once."
            )
    drawn = {(name, draw): matched(order, seed + draw) for name, order in rankings.items() for draw in range(controls)}
    counts = [round(share * len(every)) for share in sizes]
    unsafe = unsafe_array(prompts)
    pairs = tie_names([p.pair_id for p in prompts], [p.content_key() for p in prompts])
    weights = bootstrap_weights(unsafe, pairs, resamples=bootstrap, seed=seed)
    orders = {(name, -1): order for name, order in rankings.items()} | drawn
    masked = partial(_odds, model, prompts, with_source(model, mask, prompts))
    whole = masked([(), sorted(every)])
    curves: dict[tuple[str, int], Curve] = {}
    with progress_bar(progress) as bar:
        line = bar.add_task("sets of heads", total=len(orders))
        for key, order in orders.items():
            odds = masked([order[count:] for count in counts])
            curves[key] = Curve(odds, whole, unsafe, weights, np.array(sizes))
            bar.advance(line)
    rows, tests = [], []
    for name in rankings:
        own, others = curves[name, -1], [curves[name, draw] for draw in range(controls)]
        rows += own.rows(name, counts, others)
        if others and np.isfinite(own.areas[1]):
            over = own.drawn_areas[:, 1] - np.mean([o.drawn_areas[:, 1] for o in others], axis=0)
            p = (1 + int((over >= 0).sum())) / (1 + len(over)) if len(over) else np.nan
        else:
            p = np.nan
        tests.append((f"{name}: closer to the model than matched random heads", p))
    if behaviour:
        judge = judge if judge != "auto" else "exact" if all(p.expected for p in prompts) else "phrases"
        replies = MaskedReplies(model, prompts, mask=mask, judge=judge, max_new_tokens=max_new_tokens)
        rows += _behaviour(replies, rankings, behaviour)
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    difference = float(contrast(np.ones((1, len(unsafe))), unsafe, whole[:, :1])[0, 0])
    table.attrs = {"difference": difference, "tests": tested(tests).to_dict("records"), "seed": seed}
    return table


class Curve:
    """How faithful the first heads of one order are, size by size.

    Args:
        odds: Refusal log-odds with the first heads alone, [prompt, size].
        whole: The same with all heads, and with none, [prompt, 2].
        unsafe: [prompt].
        weights: Of resamples, [resample, prompt].
        sizes: Shares of the heads.

    Attributes:
        values: Faithfulness, [size]; `drawn` for each resample.
        areas: CPR and CMD; `drawn_areas` for each resample.
    """

    def __init__(
        self, odds: np.ndarray, whole: np.ndarray, unsafe: np.ndarray, weights: np.ndarray, sizes: np.ndarray
    ) -> None:
        self.sizes, self.n = sizes, len(unsafe)
        every = np.concatenate([odds, whole], axis=1)
        self.values, self.drawn = (
            _faithful(contrast(of, unsafe, every)) for of in (np.ones((1, len(unsafe))), weights)
        )
        self.values = self.values[0]
        self.areas, self.drawn_areas = self._areas(self.values[None])[0], self._areas(self.drawn)

    def _areas(self, curves: np.ndarray) -> np.ndarray:
        """Of curves [curve, size]: CPR and CMD, [curve, 2]."""
        wide = self.sizes[-1] - self.sizes[0]
        return np.stack([np.trapezoid(of, self.sizes, axis=1) / wide for of in (curves, np.abs(1 - curves))], axis=1)

    def rows(self, name: str, counts: Sequence[int], others: Sequence["Curve"]) -> list[dict]:
        """The curve and its areas as rows, those of its controls beside them."""
        low, high = percentile_interval(self.drawn)
        found = []
        for place, (share, count) in enumerate(zip(self.sizes, counts, strict=True)):
            about = {"ranking": name, "share": float(share), "n_heads": int(count), "n": self.n}
            ends = {"value": self.values[place], "ci_low": low[place], "ci_high": high[place]}
            found.append(about | {"measure": "faithfulness"} | ends)
            found += _spread(about, "faithfulness_control", [o.values[place] for o in others])
        low, high = percentile_interval(self.drawn_areas)
        about = {"ranking": name, "share": np.nan, "n_heads": int(counts[-1]), "n": self.n}
        for place, area in enumerate(AREAS):
            ends = {"value": self.areas[place], "ci_low": low[place], "ci_high": high[place]}
            found.append(about | {"measure": area} | ends)
            found += _spread(about, f"{area}_control", [o.areas[place] for o in others])
        return found


def _spread(about: dict, measure: str, values: Sequence[float]) -> list[dict]:
    if not values:
        return []
    ends = {"value": np.mean(values), "ci_low": np.min(values), "ci_high": np.max(values)}
    return [about | {"measure": measure} | ends]


def _faithful(differences: np.ndarray) -> np.ndarray:
    """Faithfulness of columns but the last two, which are the whole model's difference and that without heads."""
    whole, none = differences[:, -2], differences[:, -1]
    span = np.where(np.abs(whole - none) > NO_DIFFERENCE, whole - none, np.nan)
    return (differences[:, :-2] - none[:, None]) / span[:, None]


def _odds(model: HookedLVLM, prompts: PromptSet, mask: Mask, masked: Sequence[Sequence[Head]]) -> np.ndarray:
    """Refusal log-odds with each of some sets masked, [prompt, set]; where outputs are interchanged, of unsafe prompts
    alone: safe ones are as they are.
    """
    if mask.form != "interchange":
        return refusal_odds(model, prompts, masked, mask=mask)
    unsafe = unsafe_array(prompts)
    odds = refusal_odds(model, prompts, [()]).repeat(len(masked), axis=1)
    odds[unsafe] = refusal_odds(model, [p for p in prompts if p.label == "unsafe"], masked, mask=mask)
    return odds


def _behaviour(replies: MaskedReplies, orders: Rankings, shares: Sequence[float]) -> list[dict]:
    """Attack success, refusals and benign answers with the first heads of each ranking alone."""
    rows = []
    for name, order in orders.items():
        for share in shares:
            count = round(share * len(order))
            groups = outcome_groups(replies.prompts, replies.verdicts(order[count:], "value")).set_index("group")
            about = {"ranking": name, "share": float(share), "n_heads": count}
            for measure, group, of in (
                ("complied", "unsafe", "complied"),
                ("refused", "unsafe", "refused"),
                ("benign_complied", "benign", "complied"),
            ):
                if group in groups.index:
                    n = int(groups.loc[group, "n"])
                    value = float(groups.loc[group, of])
                    low, high = rate_interval(round(value * n), n)
                    ends = {"value": value, "ci_low": float(low), "ci_high": float(high), "n": n}
                    rows.append(about | {"measure": measure} | ends)
    return rows
