"""`flow`: how what tells unsafe prompts from their safe twins gets to the last position, and what hangs on it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from workbench.axes import Head, head_names
from workbench.comparison.causal_rows import more_than_each
from workbench.comparison.differences import tested
from workbench.comparison.masked_behaviour import draw_controls
from workbench.errors import DetectorError, PromptError
from workbench.models.hooked import HookedLVLM
from workbench.prompts.prompt import PromptSet
from workbench.replies.judges import judge_replies
from workbench.studies import needs
from workbench.studies.material import Material
from workbench.studies.measuring import percent, rate
from workbench.studies.record import Beside, Findings, Need, StudyRecord
from workbench.tracing.behaviour import Patch, patched_replies
from workbench.tracing.pairs import encoded_twins, line_up, pairs_of
from workbench.tracing.records import ALL, COMPONENTS, FLOWS, HEADS
from workbench.tracing.trace import first_heads, trace
from workbench.views import traces
from workbench.views.figures import studies as figures

MOST_PAIRS, TOKENS, CONTROLS = 24, 16, 3
SIZES = (1, 3)
SMALLEST = 0.05  # of the refusal log-odds between twins: less than this a cut does not count as taking away
ROUNDING = 1e-3  # log-odds
CARRIED = 0.5  # share of the difference between twins that counts as there
NOISE, DENOISE = "unsafe, patched from safe", "safe, patched from unsafe"
NOTHING, RANDOM = "nothing", "random heads"


def find(material: Material) -> Findings:
    """Heads and windows chosen on the selection pairs; everything told is of the test pairs."""
    chosen, found = _traces(material)
    heads = first_heads(chosen, max(SIZES))
    rows = [*_patched(found), *_cuts(found)]
    replies, tests = _replies(material, heads)
    tests += _cut_tests(chosen, found)
    table, checked = pd.DataFrame([*rows, *replies]), tested(tests)
    return Findings(table, _says(table, checked, heads), checked, _beside(table, material))


def _traces(material: Material) -> tuple[xr.Dataset, xr.Dataset]:
    how: dict[str, Any] = {"on_error": "skip", "sources": 0, "progress": material.progress}
    first = trace(material.model, _pairs(material, "selection"), components=(HEADS,), **how)
    return first, trace(material.model, _pairs(material, "test"), components=COMPONENTS, **how)


def _pairs(material: Material, split: str) -> PromptSet:
    """The prompts of at most `MOST_PAIRS` pairs of a split that line up, drawn by the seed; order kept."""
    kept = _lined_up(material.model, material.prompts.where(split=split))
    drawn = np.random.default_rng(material.seed).permutation(len(kept))[:MOST_PAIRS]
    return PromptSet(p for i in sorted(drawn) for p in kept[i])


def _lined_up(model: HookedLVLM, prompts: PromptSet) -> list[tuple[Any, Any]]:
    found = []
    for name, pair in pairs_of(prompts)[0].items():
        try:
            encoded_twins(model, name, pair)
        except PromptError:
            continue
        found.append(pair)
    return found


def _patched(found: xr.Dataset) -> list[dict[str, Any]]:
    """What each component carries, layer by layer."""
    table = traces.means(found, "patch_recovered")
    table = table[table["n"] > 0].rename(columns={"token_group": "at"})
    table = table.assign(part="patched", what=table["component"], measure="recovered")
    return table.drop(columns="component").to_dict("records")


def _cuts(found: xr.Dataset) -> list[dict[str, Any]]:
    table = traces.means(found, "cut_refusal_change")
    table = table[table["n"] > 0].rename(columns={"flow": "what", "window": "layer", "side": "direction"})
    return table.assign(part="cut", at="last", measure="refusal_change").to_dict("records")


def _cut_tests(chosen: xr.Dataset, found: xr.Dataset) -> list[dict[str, Any]]:
    """Whether a cut lowers the refusal log-odds of unsafe prompts below what it does to their twins, by sign tests.

    The window of each flow is the one in which the selection pairs fall most.
    """
    from scipy.stats import binomtest

    tests = []
    odds = found["base_refusal"]
    least = np.fmax(SMALLEST * abs(odds.sel(side="unsafe") - odds.sel(side="safe")).values, ROUNDING)
    for flow in FLOWS:
        of = [t["cut_refusal_change"].sel(flow=flow) for t in (chosen, found)]
        first, falls = (o.sel(side="unsafe").values - o.sel(side="safe").values for o in of)
        there = np.isfinite(first).all(1)
        if not there.any():
            continue
        fall = falls[:, int(np.argmin(first[there].mean(0)))]
        more, less = int((fall < -least).sum()), int((fall > least).sum())
        p = float(binomtest(more, more + less, alternative="greater").pvalue) if more + less else 1.0
        tests.append({"test": f"{flow} cut: refusal falls more than on the twins", "p_value": p})
    return tests


def _replies(material: Material, heads: Sequence[Head]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Replies of both twins with z of the first heads swapped at all tokens, and of as many random heads."""
    model, sets = material.model, [(NOTHING, 0, list[Head]())]
    sizes = [k for k in SIZES if k <= len(heads)]
    for k in sizes:
        sets.append((_many(k), 0, list(heads[:k])))
        for draw in range(CONTROLS):
            try:
                sets.append((f"{RANDOM}, {k}", draw, draw_controls(model, heads, k, seed=material.seed + draw)[1]))
            except DetectorError:
                break  # a model with hardly more heads than are swapped has no controls
    verdicts = _verdicts(material, [swapped for _, _, swapped in sets])
    rows = [r for (what, draw, of), v in zip(sets, verdicts, strict=True) for r in _rows(v, what, of, draw)]
    tests = []
    for k in sizes:
        after = next(v for (what, _, _), v in zip(sets, verdicts, strict=True) if what == _many(k))
        others = [v for (what, _, _), v in zip(sets, verdicts, strict=True) if what == f"{RANDOM}, {k}"]
        for side, was, now, words in (
            (NOISE, "refused", "complied", "frees"),
            (DENOISE, "complied", "refused", "silences"),
        ):
            asked = verdicts[0][side] == was
            happens = [(v[side] == now)[asked] for v in (after, *others)]
            p = more_than_each(happens[0], happens[1:]) if asked.any() else np.nan
            tests.append({"test": f"{_many(k)}, {side}: {words} more than random heads", "p_value": p})
    return rows, tests


def _many(k: int) -> str:
    return f"{k} head{'s' * (k > 1)}"


def _verdicts(material: Material, sets: Sequence[Sequence[Head]]) -> list[dict[str, np.ndarray]]:
    """For each set of heads whose z is swapped, the judge's verdicts on both twins of every test pair."""
    patches = [[Patch(HEADS, layer, ALL, head) for layer, head in heads] for heads in sets]
    pairs = pairs_of(_pairs(material, "test"))[0]
    said = []
    for name, pair in material.track(pairs.items(), "replies with heads swapped, pairs", total=len(pairs)):
        twins = line_up(material.model, name, pair)
        said.append(patched_replies(material.model, twins, patches, max_new_tokens=TOKENS))
    return [
        {
            side: judge_replies([p[i] for p in pairs.values()], [of[place][i] for of in said], material.judge)
            for i, side in enumerate((NOISE, DENOISE))
        }
        for place in range(len(sets))
    ]


def _rows(verdicts: dict[str, np.ndarray], what: str, heads: Sequence[Head], draw: int) -> list[dict[str, Any]]:
    about = {"part": "replies", "what": what, "heads": head_names(heads), "draw": draw, "at": ALL}
    return [
        about | {"direction": side, "measure": verdict} | rate(said == verdict)
        for side, said in verdicts.items()
        for verdict in ("refused", "complied")
    ]


def _says(table: pd.DataFrame, tests: pd.DataFrame, heads: Sequence[Head]) -> str:
    stream = table[(table["part"] == "patched") & (table["what"] == "residual") & (table["direction"] == "noise")]
    there = stream[stream["value"] > CARRIED]
    told = []
    for group, layers in there[there["at"] != ALL].groupby("at", sort=False)["layer"]:
        first, last = int(layers.min()), int(layers.max())
        told.append(f"at {group} after layer{f's {first} to {last}' if last > first else f' {first}'}")
    where = "; ".join(told) or "at no single group of tokens"
    sentence = f"More than half of what tells the twins apart is in the residual stream {where}."
    replies = table[(table["part"] == "replies") & (table["direction"] == NOISE) & (table["measure"] == "refused")]
    none, some = replies[replies["what"] == NOTHING].iloc[0], replies[replies["draw"] == 0]
    last = some[~some["what"].str.startswith((NOTHING, RANDOM))]
    if len(last):
        random = replies[replies["what"].str.startswith(RANDOM)]
        ends = f"{random['value'].min():.0%} to {random['value'].max():.0%}" if len(random) else ""
        span = f", and {ends} with random heads" if ends else ""
        swapped = last.iloc[-1]
        sentence += (
            f" Of the unsafe prompts {percent(none)} are refused, {percent(swapped)} with the safe twins' z in "
            f"{swapped['heads']}{span}."
        )
    found = int((tests["p_corrected"] < 0.05).sum())
    return f"{sentence} {found} of {len(tests)} tests find something (Holm's correction)."


def _beside(table: pd.DataFrame, material: Material) -> tuple[Beside, ...]:
    cut = table[(table["part"] == "cut") & (table["direction"] == "unsafe")]
    least = cut.loc[cut["value"].idxmin()] if cut["value"].notna().any() else None
    ours = "not measured" if least is None else f"{least['what']}, layers from {int(least['layer'])} on"
    return (
        Beside(
            "which flow of attention matters most, and where",
            "the whole picture to the question in lower layers, objects in middle ones, the question to the last "
            "position in higher ones (LLaVA)",
            ours,
            f"model ({material.model.name}); refusal instead of visual question answering; twins instead of one prompt",
            "Cross-modal Information Flow in Multimodal Large Language Models (arXiv 2411.18620)",
        ),
    )


def draw(findings: Findings) -> Any:
    table = findings.table
    table = table[(table["part"] == "patched") & (table["what"] == "residual") & (table["at"] != ALL)]
    words = {"noise": NOISE, "denoise": DENOISE}
    return figures.lines(
        table.assign(panel=table["direction"].map(words)), x="layer", series="at", panels="panel", line=0.0,
        x_words="residual stream after layer", y_words="share of the way to the twin",
    )  # fmt: skip


def _lacking(material: Material) -> str:
    for split in ("selection", "test"):
        if not _lined_up(material.model, material.prompts.where(split=split)):
            return f"no unsafe prompt of the {split} split has a safe twin with as many tokens"
    return ""


STUDY = StudyRecord(
    "flow",
    asks="By which layers and tokens does what tells an unsafe prompt from its safe twin reach the last position?",
    source="this project; Cross-modal Information Flow (arXiv 2411.18620); How Alignment Routes (arXiv 2604.04385)",
    runs=f"traces of at most {MOST_PAIRS} pairs of the selection and of the test split; replies with z of the first "
    "heads swapped between twins, beside random heads",
    fails="Pair differ in more than the hazard, or only in its surface; numbers put in from another pass may be ones "
    "that the model never has together.",
    find=find,
    draw=draw,
    needs=(Need("pairs of an unsafe prompt and its safe twin, line by line", _lacking), needs.REPLIES),
    cost=1.5,
)
