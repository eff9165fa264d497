"""`swap`: which heads swapping and masking point at, and what sets of them do to refusals, attacks and answers."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from workbench.axes import Head, head_name, head_names
from workbench.comparison.causal_rows import more_than_each
from workbench.comparison.differences import tested
from workbench.comparison.masked_behaviour import QUESTION_FAMILY, MaskedReplies, draw_controls
from workbench.detectors.calibration import unsafe_array
from workbench.errors import DetectorError, PromptError
from workbench.models.lengths import Lengths
from workbench.models.masks import Mask
from workbench.prompts.prompt import Prompt, PromptSet
from workbench.prompts.twins import Twins
from workbench.runs.pairs import tie_names
from workbench.runs.reading import FEWEST_PROMPTS
from workbench.runs.splits import in_split
from workbench.studies import needs
from workbench.studies.material import Material
from workbench.studies.measuring import is_unsafe, mean_of, rate, span
from workbench.studies.record import Beside, Findings, Need, StudyRecord
from workbench.views.figures import studies as figures

SIZES, CONTROLS, TOKENS = (1, 3), 3, 16
SWAP, REMOVE = "swapped", "removed"
MASKS = {SWAP: Mask(form="interchange"), REMOVE: Mask()}
# What each choice ranks heads by: the prompts that are read, and what is done to the head on them.
CHOICES = {
    "necessary by swaps": ("unsafe", SWAP),
    "sufficient by swaps": ("safe", SWAP),
    "by masks": ("unsafe", REMOVE),
}
RANDOM, NOTHING = "random heads", "nothing"
SHOWN = {"gap": "share of the gap", "freed": "refusals undone", "refused_now": "answers refused"}


def paired(material: Material) -> PromptSet:
    """The prompts with a twin in their own split that has as many tokens, twins included."""
    count, twins = Lengths(material.model), Twins(material.prompts)

    def kept(prompt: Prompt) -> bool:
        try:
            twin = twins.of(prompt)
        except PromptError:
            return False
        return twin.split == prompt.split and count(twin) == count(prompt)

    return material.prompts.where(kept)


def _too_few(material: Material) -> str:
    known = paired(material)
    fewest = min((len(known.where(split=split, label="unsafe")) for split in ("selection", "test")), default=0)
    return "" if fewest >= FEWEST_PROMPTS else f"one of the splits selection and test has {fewest}"


PAIRS = Need("pairs of an unsafe prompt and a safe twin of as many tokens, three in each split", _too_few)


def find(material: Material) -> Findings:
    """Heads ranked on the selection pairs by swaps and by masks; sets of them swapped and removed on the test pairs."""
    prompts = paired(material)
    runs = {way: material.sweep(prompts=prompts, mask=mask, projections=("value",)) for way, mask in MASKS.items()}
    maps, selection = {way: _moved(run) for way, run in runs.items()}, in_split(runs[SWAP], "selection")
    ranked = {
        choice: _ranking(maps[way].isel(prompt=selection & (maps[way]["label"].values == label)))
        for choice, (label, way) in CHOICES.items()
    }
    sets = list(_sets(material, ranked))
    asked = prompts.where(split="test")
    groups = [list(heads) for heads in dict.fromkeys(heads for *_, heads in sets)]
    rows, tests = [], []
    for way, mask in MASKS.items():
        run = material.sweep(prompts=asked, mask=mask, projections=("value",), groups=groups)
        change = {tuple(group): run["refusal_change"].values[:, 0, k] for k, group in enumerate(groups)}
        replies = MaskedReplies(material.model, asked, mask=mask, judge=material.judge, max_new_tokens=TOKENS)
        told = _Told(asked, replies, change, _gaps(material, asked), tie_names(run), material.seed)
        rows += told.rows(way, NOTHING, 0, ())
        for choice, size, draw, heads in material.track(sets, f"sets of heads {way}", total=len(sets)):
            rows += told.rows(way, choice if draw is None else f"{RANDOM}, {choice}", size, heads, draw or 0)
        for choice in CHOICES:
            for size in SIZES:
                mine = [heads for c, s, draw, heads in sets if (c, s) == (choice, size)]
                if mine:
                    tests += told.tests(way, choice, size, mine[0], mine[1:])
    table = pd.concat([pd.DataFrame(rows), _agreement(maps, selection)], ignore_index=True)
    checked = tested(tests)
    return Findings(table, _says(table, checked, len(asked)), checked, _beside(table, material))


def _moved(run: xr.Dataset) -> xr.DataArray:
    """Log-odds of refusing that masking a head moves: away from it on unsafe prompts, towards it on safe ones."""
    towards = xr.DataArray(np.where(is_unsafe(run), -1.0, 1.0), dims="prompt")
    return (run["refusal_change"].isel(projection=0) * towards).transpose("prompt", "layer", "head")


def _ranking(moved: xr.DataArray) -> list[Head]:
    mean = moved.mean("prompt").values
    order = np.argsort(-np.where(np.isnan(mean), -np.inf, mean), axis=None, kind="stable")
    return [divmod(int(at), mean.shape[1]) for at in order[: max(SIZES)]]


def _sets(material: Material, ranked: dict[str, list[Head]]) -> Iterator[tuple[str, int, int | None, tuple[Head, ...]]]:
    """(choice, size, draw of random heads or None, heads), the chosen before the random ones of the same layers."""
    for choice, heads in ranked.items():
        for size in SIZES:
            yield choice, size, None, tuple(sorted(heads[:size]))
            for draw in range(CONTROLS):
                try:
                    _, others = draw_controls(material.model, heads, size, seed=material.seed + draw)
                except DetectorError:
                    break  # a model with hardly more heads than are chosen has no controls
                yield choice, size, draw, tuple(sorted(others))


def _gaps(material: Material, asked: PromptSet) -> np.ndarray:
    """Refusal log-odds by which each prompt's twin differs from it, as a sweep of twins records them, [prompt]."""
    run = material.sweep(prompts=paired(material), mask=MASKS[SWAP], projections=("value",))
    return run["twin_gap"].sel(prompt=[p.id for p in asked]).values.astype(np.float64)


class _Told:
    """What sets of heads do to the test pairs, as rows and as tests."""

    def __init__(
        self,
        asked: Sequence[Prompt],
        replies: MaskedReplies,
        change: dict[tuple[Head, ...], np.ndarray],
        gaps: np.ndarray,
        ties: np.ndarray,
        seed: int,
    ) -> None:
        self.replies, self.change, self.gaps, self.ties, self.seed = replies, change, gaps, ties, seed
        self.unsafe = unsafe_array(asked)
        self.before = replies.verdicts()
        question = np.array([p.family == QUESTION_FAMILY for p in asked], dtype=bool)
        self.groups = {"unsafe": self.unsafe, "benign": ~self.unsafe & ~question}
        self.undone = self.unsafe & (self.before == "refused"), ~self.unsafe & (self.before == "complied")

    def rows(self, way: str, choice: str, size: int, heads: Sequence[Head], draw: int = 0) -> list[dict]:
        """State measures beside behaviour: shares of the gap, replies by judge, and what became another."""
        verdicts, about = self._verdicts(heads), {"way": way, "choice": choice, "n_heads": size, "draw": draw}
        about["heads"] = head_names(heads)
        rows = []
        for group, of in self.groups.items():
            if heads and of.any():
                rows.append(about | {"group": group, "measure": "gap"} | self._share(self.change[tuple(heads)], of))
            for verdict in ("complied", "refused"):
                rows.append(about | {"group": group, "measure": verdict} | rate(verdicts[of] == verdict))
        refused, answered = self.undone
        rows.append(about | {"group": "unsafe", "measure": "freed"} | rate(verdicts[refused] == "complied"))
        rows.append(about | {"group": "benign", "measure": "refused_now"} | rate(verdicts[answered] == "refused"))
        return rows

    def tests(
        self, way: str, choice: str, size: int, heads: Sequence[Head], others: Sequence[Sequence[Head]]
    ) -> list[dict]:
        """Whether the chosen heads do more than each draw of random ones, to refusals and to answers."""
        found = []
        for of, verdict, words in zip(self.undone, ("complied", "refused"), ("frees", "makes refuse"), strict=True):
            happens = [(self._verdicts(set_)[of] == verdict) for set_ in (heads, *others)]
            p = more_than_each(happens[0], happens[1:]) if of.any() else np.nan
            found.append({"test": f"{choice}, {size} {way}: {words} more than random heads", "p_value": p})
        return found

    def _share(self, change: np.ndarray, of: np.ndarray) -> dict[str, float]:
        """The mean change over the mean gap: a mean of ratios would hang on pairs that hardly differ."""
        gap = self.gaps[of].mean()
        if gap == 0 or not np.isfinite(gap):
            return {"value": np.nan, "ci_low": np.nan, "ci_high": np.nan, "n": int(of.sum())}
        return mean_of(change[of] / gap, self.ties[of], seed=self.seed)

    def _verdicts(self, heads: Sequence[Head]) -> np.ndarray:
        return self.replies.verdicts(heads, "value") if heads else self.before


def _agreement(maps: dict[str, xr.DataArray], selection: np.ndarray) -> pd.DataFrame:
    """Rank correlation, over all heads, of what masks and swaps say on the selection pairs, and their first heads."""
    from scipy.stats import spearmanr

    means = {}
    for choice, (label, way) in CHOICES.items():
        part = maps[way].isel(prompt=selection & (maps[way]["label"].values == label))
        means[choice] = part.mean("prompt").values.ravel()
    rows = []
    for other in ("necessary by swaps", "sufficient by swaps"):
        one, two = means["by masks"], means[other]
        known = np.isfinite(one) & np.isfinite(two)
        varied = known.sum() > 2 and np.ptp(one[known]) > 0 and np.ptp(two[known]) > 0
        rank = float(spearmanr(one[known], two[known]).statistic) if varied else np.nan
        width = maps[SWAP].sizes["head"]
        firsts = [head_name(*divmod(int(np.nanargmax(m)), width)) for m in (one, two)] if varied else []
        about = {"way": "both", "choice": f"by masks against {other}", "n_heads": int(known.sum()), "draw": 0}
        about |= {"heads": " ".join(firsts), "group": "all", "ci_low": np.nan, "ci_high": np.nan}
        rows.append(about | {"measure": "rank_correlation", "value": rank, "n": int(known.sum())})
        same = float(firsts[0] == firsts[1]) if varied else np.nan
        rows.append(about | {"measure": "same_first", "value": same, "n": 1})
    return pd.DataFrame(rows)


def _first(table: pd.DataFrame, **keys: Any) -> Any:
    for name, value in keys.items():
        table = table[table[name] == value]
    return table.iloc[0]


def _says(table: pd.DataFrame, tests: pd.DataFrame, n: int) -> str:
    parts = []
    for choice, group, measure in (
        ("necessary by swaps", "unsafe", "freed"),
        ("sufficient by swaps", "benign", "refused_now"),
        ("by masks", "unsafe", "freed"),
    ):
        way = CHOICES[choice][1]
        at = {"choice": choice, "n_heads": SIZES[0], "way": way, "group": group}
        state, reply = _first(table, **at, measure="gap"), _first(table, **at, measure=measure)
        done = "refusals undone" if measure == "freed" else "answers turned into refusals"
        parts.append(f"{state['heads']} ({choice}), {way}: share of the twins' gap {span(state)}, {done} {span(reply)}")
    agree = table[table["measure"] == "rank_correlation"]["value"]
    ranks = ", ".join(f"{value:.2f}" if np.isfinite(value) else "not known" for value in agree)
    same = _first(table, measure="same_first", choice="by masks against necessary by swaps")
    firsts = "Nothing tells heads apart by both"
    if np.isfinite(same["value"]):
        both = same["heads"].split()
        firsts = f"Masks name {both[0]} first, swaps {'the same' if same['value'] else both[1]}"
    found = tests[tests["p_corrected"] < 0.05]
    return (
        f"On {n} test prompts in pairs: {'; '.join(parts)}. {firsts}; their ranks of all heads correlate by {ranks} "
        f"(necessary, sufficient). In {len(found)} of {len(tests)} comparisons they do more than every draw of random "
        "heads (McNemar's exact test, Holm's correction)."
    )


def _beside(table: pd.DataFrame, material: Material) -> tuple[Beside, ...]:
    row = _first(table, measure="rank_correlation", choice="by masks against necessary by swaps")
    same = _first(table, measure="same_first", choice="by masks against necessary by swaps")
    differs = (
        f"model ({material.model.name}), pairs, all heads swapped and aligned here; there 10 heads swapped and "
        "20 ablated of a model at most, only the refusal direction's part, positions 0 to the shorter length"
    )
    source = "How Alignment Routes (arXiv 2604.04385); recomputed from the tables of its repository"
    ours = f"{row['value']:.2f}" if np.isfinite(row["value"]) else "not known"
    first = {1.0: "yes", 0.0: "no"}.get(float(same["value"]), "not known")
    return (
        Beside(
            "rank correlation of ablation and interchange",
            "-0.13 to 0.82, median 0.32, of 11 models",
            ours,
            differs,
            source,
        ),
        Beside("the first head is the same by both", "3 of 11 models", first, differs, source),
    )


def draw(findings: Findings) -> Any:
    table = findings.table
    table = table[table["measure"].isin(list(SHOWN)) & (table["n_heads"] == max(SIZES)) & (table["choice"] != NOTHING)]
    # Only the measure of the right group: what is undone on unsafe prompts, what is made on benign ones.
    random = table["choice"].str.startswith(RANDOM)
    drawn = table[random].groupby(["choice", "way", "group", "measure"], sort=False, as_index=False)
    spread = drawn.agg(value=("value", "mean"), ci_low=("value", "min"), ci_high=("value", "max"))
    every = pd.concat([table[~random], spread], ignore_index=True)
    every["panel"] = every["measure"].map(SHOWN) + ", " + every["group"]
    every["series"] = every["way"]
    every = every.sort_values(["panel", "way"], kind="stable")
    return figures.dots(every, rows="choice", x="share", series="series", panels="panel", line=0.0)


STUDY = StudyRecord(
    "swap",
    asks="Do the heads that matter when they are masked also carry refusal from a prompt to its twin?",
    source="'How Alignment Routes' (arXiv 2604.04385); Ships (ICLR 2025) for masks",
    runs="two sweeps over pairs, z the twin's and z set to 0; greedy replies to the test pairs with 1 and 3 "
    "heads of each choice, beside random heads (mean, and from the lowest draw to the highest)",
    fails="Pairs of unequal length are left out. The twins differ by what their author changed: what heads carry of "
    "it need not be refusal. A share of the gap over 1 or under 0 is no mistake: heads act together.",
    find=find,
    draw=draw,
    needs=(needs.REPLIES, PAIRS),
    cost=2.0,
)
