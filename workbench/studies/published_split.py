"""`published-split`: what it is worth to choose and threshold on rows of the test set."""

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from workbench.comparison.differences import tested
from workbench.comparison.measures import pick
from workbench.criteria import get_criterion, statistics
from workbench.criteria.detection import decision_values
from workbench.criteria.ranking import best_cells, rule_values
from workbench.prompts.ties import tied
from workbench.runs.pairs import tie_names
from workbench.runs.reading import prompt_coord
from workbench.studies.material import Material
from workbench.studies.measuring import crossing, is_unsafe, separations
from workbench.studies.record import Beside, Findings, StudyRecord
from workbench.views.figures import studies as figures

DRAWS, ROWS = 200, 50  # redraws of the selection rows; rows of each label, as in the release
INSIDE, APART = "rows inside the test set", "disjoint rows"
SHOWN = {"auroc": "AUROC", "detection_rate": "unsafe flagged", "false_positive_rate": "safe flagged"}


def find(material: Material) -> Findings:
    """Head and threshold from 50 + 50 rows; tested on all rows, those included, and on the rest without their kin."""
    run = material.run
    values = decision_values(run, get_criterion("deflection")).sel(projection=["query"])
    unsafe, rng = is_unsafe(run), np.random.default_rng(material.seed)
    n = min(ROWS, int(unsafe.sum()) // 3, int((~unsafe).sum()) // 3)
    contents = prompt_coord(run, "content")
    kin = {i: members for members in tied(tie_names(run), contents) for i in members}
    measured: dict[tuple[str, str], list[float]] = {}
    for _ in material.track(range(DRAWS), "redraws", total=DRAWS):
        rows = np.concatenate([rng.choice(np.flatnonzero(side), n, replace=False) for side in (unsafe, ~unsafe)])
        taken = np.zeros(len(unsafe), dtype=bool)
        taken[rows] = True
        inside = np.zeros(len(unsafe), dtype=bool)
        inside[[j for i in rows for j in kin[i]]] = True
        head = best_cells(rule_values(values.values[taken], unsafe[taken], "selectivity")[0], 1)
        if not head:
            continue
        of = values.values[:, 0, head[0][0], head[0][1]]
        threshold = crossing(of, run, taken)
        for where, among in ((INSIDE, np.ones(len(unsafe), dtype=bool)), (APART, ~inside)):
            if np.isfinite(threshold) and 0 < unsafe[among].sum() < among.sum():
                for measure, value in _measures(of[among], unsafe[among], threshold).items():
                    measured.setdefault((where, measure), []).append(value)
    table = _table(measured, run)
    half = _honest(material)
    return Findings(
        table, _says(table, n), tested([{"test": "disjoint splits", "p_value": half}]), _beside(table, material, n)
    )


def _measures(values: np.ndarray, unsafe: np.ndarray, threshold: float) -> dict[str, float]:
    flagged = values > threshold
    rates = {"detection_rate": flagged[unsafe].mean(), "false_positive_rate": flagged[~unsafe].mean()}
    balanced = (1 + rates["detection_rate"] - rates["false_positive_rate"]) / 2
    return {"auroc": statistics.auroc(values[:, None], unsafe)[0], **rates, "balanced_accuracy": balanced}


def _table(measured: dict[tuple[str, str], list[float]], run: xr.Dataset) -> pd.DataFrame:
    rows = []
    for (where, measure), draws in measured.items():
        low, high = np.quantile(draws, [0.025, 0.975])
        about = {"tested_on": where, "measure": measure}
        rows.append(about | {"value": np.mean(draws), "ci_low": low, "ci_high": high, "n": len(draws)})
    for measure in dict.fromkeys(measure for _, measure in measured):
        inside, apart = (np.array(measured.get((where, measure), [])) for where in (INSIDE, APART))
        if len(inside) == len(apart):
            low, high = np.quantile(inside - apart, [0.025, 0.975])
            about = {"tested_on": "difference", "measure": measure}
            rows.append(about | {"value": np.mean(inside - apart), "ci_low": low, "ci_high": high, "n": len(inside)})
    for label in ("unsafe", "safe"):
        of = prompt_coord(run, "label") == label
        distinct = len(set(prompt_coord(run, "content")[of]))
        about = {"tested_on": f"{label} prompts", "measure": "distinct_requests"}
        rows.append(about | {"value": distinct, "ci_low": np.nan, "ci_high": np.nan, "n": int(of.sum())})
    return pd.DataFrame(rows)


def _honest(material: Material) -> float:
    """p-value of the head of the selection split on the test split."""
    chosen = material.chosen()
    return float(separations(chosen.value[:, None], material.run, seed=material.seed)["p_value"].iloc[0])


def _cell(table: pd.DataFrame, where: str, measure: str) -> Any:
    of = pick(table, tested_on=where, measure=measure)
    return of.iloc[0] if len(of) else None


def _says(table: pd.DataFrame, n: int) -> str:
    more, inside, apart = (_cell(table, where, "balanced_accuracy") for where in ("difference", INSIDE, APART))
    if more is None or inside is None or apart is None:
        return "No draw gave a head and a threshold, so the two protocols could not be compared."
    distinct = [_cell(table, f"{label} prompts", "distinct_requests") for label in ("unsafe", "safe")]
    return (
        f"Chosen and thresholded on {n} + {n} rows, the head's balanced accuracy is {inside['value']:.3f} on a test "
        f"set that holds those rows and {apart['value']:.3f} on the rest without their pairs and repetitions: "
        f"{more['value']:+.3f} ({more['ci_low']:+.3f} to {more['ci_high']:+.3f} over {int(more['n'])} draws). "
        f"{int(distinct[0]['value'])} of {int(distinct[0]['n'])} unsafe and {int(distinct[1]['value'])} of "
        f"{int(distinct[1]['n'])} safe prompts are distinct requests."
    )


def _beside(table: pd.DataFrame, material: Material, n: int) -> tuple[Beside, ...]:
    more = _cell(table, "difference", "balanced_accuracy")
    ours = "not known" if more is None else f"{n} + {n} rows of {len(material.prompts)}; it adds {more['value']:+.3f}"
    return (
        Beside(
            "selection rows inside the test set",
            "50 + 50 rows that lie inside the 1,110 and 500 that are scored (release)",
            ours,
            f"model ({material.model.name}), prompts; that the published tables use those rows is our inference",
            "cirteo/Oh-Defense, released data",
        ),
    )


def draw(findings: Findings) -> Any:
    table = findings.table[findings.table["tested_on"].isin([INSIDE, APART])]
    table = table[table["measure"].isin(list(SHOWN))]
    table = table.assign(measure=table["measure"].map(SHOWN))
    return figures.dots(
        table, rows="measure", series="tested_on", x="share, middle 95 % of draws", limits=(-0.02, 1.02)
    )


STUDY = StudyRecord(
    "published-split",
    asks="How much better does a head look when its selection rows lie inside the test set?",
    source="this project, on the released selection files of 'One Head to Rule Them All'",
    runs="the sweep; 200 draws of the selection rows",
    fails="With one clear head every draw chooses it and the two agree; optimism grows with heads, and shrinks with "
    "rows.",
    find=find,
    draw=draw,
)
