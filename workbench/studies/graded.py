"""`graded` and `categories`: how far the chosen head's angle goes, by attack, by risk grade and by policy."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from workbench.axes import head_name
from workbench.comparison.differences import tested
from workbench.runs.pairs import tie_names
from workbench.runs.reading import prompt_coord
from workbench.runs.splits import in_split
from workbench.studies import needs
from workbench.studies.grades import risk_grades, trend
from workbench.studies.material import Material
from workbench.studies.measuring import families, is_unsafe, listed, mean_of, of_area, rate, separations
from workbench.studies.record import Beside, Findings, StudyRecord
from workbench.views.figures import studies as figures

ANGLE, FLAGGED, AREA = "angle (degrees)", "flagged", "AUROC against all safe"
GRADE, TREND = "by risk grade", "rank correlation with the grade"


def find(material: Material, *, by: str) -> Findings:
    """The head's angle, what is flagged and AUROC for every group of unsafe test prompts; angles of safe ones too."""
    run, chosen = material.run, material.chosen()
    unsafe, test, group = is_unsafe(run), in_split(run, "test"), prompt_coord(run, by)
    ties, value, threshold = tie_names(run), chosen.value, chosen.threshold()
    rows, tests = [], []
    for label, side in (("unsafe", unsafe), ("safe", ~unsafe)):
        for name in families(run, by=by, label=label):
            of = test & side & (group == name)
            if not of.any():
                continue
            about = {by: name, "label": label}
            rows.append(about | {"measure": ANGLE, **mean_of(value[of], ties[of], seed=material.seed)})
            if np.isfinite(threshold):
                rows.append(about | {"measure": FLAGGED, **rate(value[of] > threshold)})
            if label == "unsafe":
                area = separations(value[:, None], run, of | (test & ~unsafe), seed=material.seed).iloc[0]
                rows.append(about | {"measure": AREA, **of_area(area)})
                tests.append({"test": name, "p_value": area["p_value"]})
    if by == "family":
        more, trend = _graded(run, value, threshold, seed=material.seed)
        rows += more
        tests.append(trend)
    table, checked = pd.DataFrame(rows), tested(tests)
    angles = table[(table["measure"] == ANGLE) & (table["label"] == "unsafe")].sort_values("value")
    table = table.sort_values(["label", "measure"], ascending=[False, True], kind="stable").reset_index(drop=True)
    return Findings(
        table, _says(table, angles, checked, by, head_name(*chosen.heads[0])), checked, _beside(angles, by, material)
    )


def _graded(run: xr.Dataset, value: np.ndarray, threshold: float, *, seed: int) -> tuple[list[dict], dict]:
    """Rows by risk grade of the test prompts, lowest first, and the test that the angle grows with it."""
    grades, names = risk_grades(run)
    test, ties = in_split(run, "test") & ~np.isnan(grades), tie_names(run)
    rows = []
    for grade, name in names.items():
        of = test & (grades == grade)
        about = {"family": name, "label": GRADE}
        rows.append(about | {"measure": ANGLE, **mean_of(value[of], ties[of], seed=seed)})
        if np.isfinite(threshold) and of.any():
            rows.append(about | {"measure": FLAGGED, **rate(value[of] > threshold)})
    alike, p = trend(value[test], grades[test], ties[test], seed=seed)
    row = {"value": alike, "ci_low": np.nan, "ci_high": np.nan, "n": int(test.sum())}
    rows.append({"family": "all", "label": GRADE, "measure": TREND, **row})
    return rows, {"test": "the angle grows with the risk grade", "p_value": p}


def _says(table: pd.DataFrame, angles: pd.DataFrame, tests: pd.DataFrame, by: str, head: str) -> str:
    most, least = angles.iloc[-1], angles.iloc[0]
    groups = tests[tests["test"].isin(set(angles[by]))]
    seen = int((groups["p_corrected"] < 0.05).sum())
    told = (
        f"Masking {head} turns the state most on {most[by]} ({most['value']:.1f}°, {most['ci_low']:.1f} to "
        f"{most['ci_high']:.1f}) and least on {least[by]} ({least['value']:.1f}°, {least['ci_low']:.1f} to "
        f"{least['ci_high']:.1f}). {seen} of {len(groups)} groups are told from safe prompts (one-sided permutation, "
        "Holm's correction)."
    )
    if by != "family":
        return told
    steps = table[(table["label"] == GRADE) & (table["measure"] == ANGLE)]
    alike, p = table[table["measure"] == TREND].iloc[0]["value"], tests.iloc[-1]["p_value"]
    said = listed([f"{row['value']:.1f}° ({row[by]})" for _, row in steps.iterrows()])
    grows = f"rank correlation {alike:.2f}, p = {p:.2g}" if np.isfinite(p) else "nothing varies"
    return f"{told} By risk grade, lowest first: {said}; {grows}."


def _beside(angles: pd.DataFrame, by: str, material: Material) -> tuple[Beside, ...]:
    if by != "family":
        return ()
    ours = f"{angles['value'].min():.1f}° to {angles['value'].max():.1f}° over {len(angles)} families"
    return (
        Beside(
            "mean angle by attack",
            "9.82° VisualAdv, 9.15° BAP, 3.25° to 6.91° other attacks (LLaVA-1.5-7B)",
            ours,
            f"model ({material.model.name}), attacks; no adversarial pictures among these families",
            "'One Head to Rule Them All' (NeurIPS 2025), Table 6",
        ),
    )


def draw(findings: Findings, *, by: str) -> Any:
    table = findings.table
    graded = table[table["label"] == GRADE][by] if by == "family" else table[by][:0]
    table = table.assign(**{by: table[by].where(~table.index.isin(graded.index), "grade: " + table[by])})
    order = table[(table["measure"] == ANGLE)].sort_values("value", ascending=False)[by].drop_duplicates()
    rank = {name: i for i, name in enumerate(order)}
    table = table[table["measure"].isin([ANGLE, FLAGGED])]
    table = table.assign(_rank=table[by].map(rank)).sort_values(["measure", "_rank", "label"], kind="stable")
    return figures.dots(table, rows=by, series="label", panels="measure", x="mean or share, 95 % interval")


def _study(name: str, by: str, asks: str, source: str, wanted: Sequence[Any]) -> StudyRecord:
    return StudyRecord(
        name,
        asks=asks,
        source=source,
        runs="the sweep; one head by selectivity, its values on the test prompts",
        fails="Groups are small: read the intervals. A group's angle also moves with the length of its prompts.",
        find=partial(find, by=by),
        draw=partial(draw, by=by),
        needs=wanted,
    )


STUDIES = (
    _study(
        "graded",
        "family",
        "Does the angle grow with the attack and with the risk: which families and grades turn the state further?",
        "'One Head to Rule Them All' (NeurIPS 2025), Table 6; reviews (graded risk)",
        (needs.FAMILIES,),
    ),
    _study(
        "categories",
        "category",
        "Which policies does the head see, and which does it miss?",
        "rebuttal of 'One Head to Rule Them All' (JailBreakV-28K's 16 policies)",
        (needs.CATEGORIES,),
    ),
)
