"""`head-count`: how many heads detect together, and what a random draw among them costs."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from workbench.axes import head_names
from workbench.comparison.differences import tested
from workbench.comparison.measures import pick
from workbench.runs.reading import prompt_coord
from workbench.runs.splits import in_split
from workbench.studies.material import Material
from workbench.studies.measuring import SHOWN, Chosen, families, flagged, is_unsafe, of_area, separations, span
from workbench.studies.record import Beside, Findings, StudyRecord
from workbench.views.figures import studies as figures

SIZES = (1, 2, 3, 5, 8, 10, 16)
DRAWS = 200


def find(material: Material) -> Findings:
    """The first k heads, fused by mean, maximum and vote, and one of them drawn anew for every prompt."""
    run = material.run
    chosen = material.chosen(k=max(SIZES))
    unsafe, test = is_unsafe(run), in_split(run, "test")
    groups = {"all": test & unsafe} | {f: test & unsafe & (prompt_coord(run, "family") == f) for f in families(run)}
    rows, tests = [], []
    for k in [size for size in SIZES if size <= len(chosen.heads)]:
        for way, values, threshold in _fused(chosen, k):
            about = {"heads": k, "way": way, "which": head_names(chosen.heads[:k])}
            area = separations(values[:, None], run, seed=material.seed).iloc[0]
            rows.append(about | {"measure": "auroc", "family": "all", **of_area(area)})
            tests.append({"test": f"{k} heads, {way}", "p_value": area["p_value"]})
            rows += [about | row for row in flagged(values, threshold, run, by_family=True)]
        rows += _drawn(chosen, k, groups | {"safe": test & ~unsafe}, material.seed)
    table = pd.DataFrame(rows)
    return Findings(table, _says(table), tested(tests), _beside(table, material))


def _fused(chosen: Chosen, k: int) -> Iterator[tuple[str, np.ndarray, float]]:
    """What k heads say together: mean and maximum of their angles, and the share of them over their own thresholds."""
    of = chosen.values[:, :k]
    for way, values in (("mean", of.mean(1)), ("maximum", of.max(1))):
        yield way, values, chosen.threshold(values)
    own = np.array([chosen.threshold(of[:, i]) for i in range(k)])
    if np.isfinite(own).all():
        yield "vote", (of > own).mean(1), 0.5  # more than half of the heads


def _drawn(chosen: Chosen, k: int, groups: dict[str, np.ndarray], seed: int) -> list[dict]:
    """One of k heads drawn for every prompt: mean over draws; the interval is the middle 95 % of the draws."""
    own = np.array([chosen.threshold(chosen.values[:, i]) for i in range(k)])
    if not np.isfinite(own).all():
        return []
    flags = chosen.values[:, :k] > own
    rng, n = np.random.default_rng([seed, k]), len(flags)
    drawn = np.stack([flags[np.arange(n), rng.integers(k, size=n)] for _ in range(DRAWS)])
    rows = []
    for family, of in groups.items():
        shares = drawn[:, of].mean(1)
        low, high = np.quantile(shares, [0.025, 0.975])
        measure = "false_positive_rate" if family == "safe" else "detection_rate"
        about = {"heads": k, "way": "one drawn for each prompt", "which": head_names(chosen.heads[:k])}
        about |= {"measure": measure, "family": "all" if family == "safe" else family}
        rows.append(about | {"value": shares.mean(), "ci_low": low, "ci_high": high, "n": int(of.sum())})
    return rows


def _says(table: pd.DataFrame) -> str:
    mean = pick(table, way="mean", measure="auroc", family="all")
    best = mean.loc[mean["value"].idxmax()]
    one, most = mean.iloc[0], mean.iloc[-1]
    told = (
        f"One head has an AUROC of {span(one)} on unseen prompts; the mean of {most['heads']} has {span(most)}; best, "
        f"picked on the same prompts, is {best['heads']} with {best['value']:.2f}."
    )
    drop = _largest_drop(table)
    if drop is not None:
        family, size, points = drop
        told += (
            f" The largest loss of detection against one head is {points:.0f} points, on {family} with {size} heads."
            if points > 0
            else " No family is detected worse by several heads than by one."
        )
    spread = pick(table, way="one drawn for each prompt", measure="detection_rate", family="all")
    if len(spread):
        row = spread.iloc[-1]
        told += (
            f" Drawing one of {row['heads']} heads for each prompt flags {100 * row['value']:.0f} % of unsafe prompts, "
            f"{100 * row['ci_low']:.0f} to {100 * row['ci_high']:.0f} % over draws."
        )
    return told


def _largest_drop(table: pd.DataFrame) -> tuple[str, int, float] | None:
    """The family and number of heads with the largest loss of detection rate by their mean, in points."""
    rates = pick(table, way="mean", measure="detection_rate")
    wide = rates.pivot_table(index="family", columns="heads", values="value")
    if 1 not in wide or wide.shape[1] < 2:
        return None
    loss = -wide.drop(columns=1).sub(wide[1], axis=0)
    family, size = loss.stack().idxmax()
    return str(family), int(size), 100 * float(loss.loc[family, size])


def _beside(table: pd.DataFrame, material: Material) -> tuple[Beside, ...]:
    drop = _largest_drop(table)
    ours = "not known" if drop is None else "none"
    if drop is not None and drop[2] > 0:
        ours = f"{drop[2]:.0f} points, on {drop[0]} with {drop[1]} heads"
    return (
        Beside(
            "largest loss of detection with more heads",
            "over 20 points (Qwen2-VL-7B, query-relevant); also FigStep for Phi-3.5-Vision",
            ours,
            f"model ({material.model.name}), attack families, and how heads are fused, which was not found",
            "'One Head to Rule Them All' (NeurIPS 2025), Tables 3 and 12",
        ),
    )


def draw(findings: Findings) -> Any:
    table = findings.table[(findings.table["family"] == "all") & findings.table["measure"].isin(list(SHOWN))]
    table = table.assign(measure=table["measure"].map(SHOWN))
    words: dict[str, Any] = {"x_words": "number of heads", "y_words": "share"}
    return figures.lines(table, x="heads", series="way", panels="measure", limits=(-0.03, 1.03), **words)


STUDY = StudyRecord(
    "head-count",
    asks="Is one head enough, do more help or hurt, and how much hangs on which of them is drawn?",
    source="'One Head to Rule Them All' (NeurIPS 2025), Tables 3 and 12; reviews",
    runs="the sweep; heads by selectivity on the selection prompts, thresholds on the threshold prompts",
    fails="With few prompts the order of the heads beyond the first is chance; see the stability of wb.top_heads.",
    find=find,
    draw=draw,
)
