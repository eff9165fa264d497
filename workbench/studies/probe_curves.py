"""`probe-curves`: how SAHs' detector hangs on its number of heads, accuracy threshold, shots and penalty."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from workbench.axes import Head
from workbench.comparison.differences import tested
from workbench.comparison.measures import pick
from workbench.criteria.logistic import fit_logistic
from workbench.criteria.probes import cross_validated, few_shot_masks, fold_numbers
from workbench.detectors.sahs import features
from workbench.runs.pairs import tie_names
from workbench.runs.reading import prompt_coord
from workbench.runs.splits import in_split
from workbench.studies.material import Material
from workbench.studies.measuring import is_unsafe, of_area, rate, separations, span
from workbench.studies.record import Beside, Findings, StudyRecord
from workbench.views.figures import studies as figures

HEADS = (1, 2, 4, 8, 16, 32)
ACCURACIES = (0.6, 0.7, 0.8, 0.9, 0.95)
SHOTS = (1, 2, 5, 10)
PENALTIES = (0.01, 0.1, 1.0, 10.0)
K = 16
SAFETY, CONTROL = "safety", "control: random labels"


class Probes:
    """Probes on the outputs of heads, trained on some prompts; a task is the labels they learn.

    Args:
        run: With splits.
        labels: [prompt], true for what is to be told from the rest.
        train: [prompt], who may be learned from.
        seed: Of folds.
    """

    def __init__(self, run: xr.Dataset, labels: np.ndarray, train: np.ndarray, seed: int) -> None:
        self.run, self.labels, self.train, self.seed = run, labels, train, seed
        z = run["head_output"].transpose("layer", "head", "prompt", "d_head").values.astype(np.float64)
        self.known = np.isfinite(z).all((2, 3))
        some = np.flatnonzero(train)
        fold = fold_numbers(labels[some], tie_names(run)[some], seed=seed)
        decisions = cross_validated(z[self.known][:, some], labels[some], fold)
        self.accuracy = ((decisions > 0) == labels[some]).mean(1)

    def heads(self, k: int = K, *, accuracy: float = 0.0) -> list[Head]:
        """The `k` heads whose probes are best, held out; with `accuracy`, all that reach it."""
        cells = np.argwhere(self.known)
        order = np.argsort(-self.accuracy, kind="stable")
        chosen = order[self.accuracy[order] >= accuracy] if accuracy else order[:k]
        return [(int(self.run["layer"][cells[i][0]]), int(cells[i][1])) for i in chosen]

    def decisions(self, heads: list[Head], *, C: float = 1.0, train: np.ndarray | None = None) -> np.ndarray:
        """Log-odds of one regression on the heads' outputs side by side, [prompt]."""
        weight = (self.train if train is None else train).astype(float)
        coef, intercept = fit_logistic(features(self.run, heads), self.labels, weight=weight, C=C)
        return features(self.run, heads) @ coef + intercept


def find(material: Material) -> Findings:
    """Accuracy and AUROC on the test prompts along each setting, and for labels that mean nothing."""
    run = material.run
    unsafe, ties = is_unsafe(run), tie_names(run)
    train, test = in_split(run, "selection") | in_split(run, "threshold"), in_split(run, "test")
    rows, tests = [], []
    for task, labels in ((SAFETY, unsafe), (CONTROL, random_labels(ties, test, seed=material.seed))):
        probes = Probes(run, labels, train, material.seed)
        for curve, setting, n_heads, decisions in _settings(probes, run, material.seed):
            about = {"curve": curve, "setting": setting, "task": task, "heads": n_heads}
            right = (decisions > 0) == labels
            rows.append(about | {"measure": "accuracy"} | rate(right[test]))
            rows.append(about | {"measure": "accuracy in training"} | rate(right[train]))
            if task == SAFETY:
                area = separations(decisions[:, None], run, seed=material.seed).iloc[0]
                rows.append(about | {"measure": "auroc"} | of_area(area))
                tests.append({"test": f"{curve} {setting:g}", "p_value": area["p_value"]})
    table = pd.DataFrame(rows)
    return Findings(table, _says(table), tested(tests), _beside(table, material))


def random_labels(ties: np.ndarray, test: np.ndarray, *, seed: int) -> np.ndarray:
    """A label for each tie (pair, repeated question) by chance, [prompt]: a task without meaning.

    Half of the ties are true, among those with test prompts and among the others, so that chance is a half in both.
    """
    alone = np.array([tie or f"alone {i}" for i, tie in enumerate(ties)])
    rng = np.random.default_rng(seed)
    label: dict[str, bool] = {}
    for side in (~test, test):
        names = sorted(set(alone[side]))
        label |= dict(zip(names, rng.permutation(len(names)) % 2 == 0, strict=True))
    return np.array([label[tie] for tie in alone])


def _settings(probes: Probes, run: xr.Dataset, seed: int) -> Iterator[tuple[str, float, int, np.ndarray]]:
    """(curve, setting, number of heads, log-odds of all prompts), curve by curve."""
    n_heads = int(probes.known.sum())
    for k in [k for k in HEADS if k <= n_heads]:
        yield "heads", k, k, probes.decisions(probes.heads(k))
    for accuracy in ACCURACIES:
        if heads := probes.heads(accuracy=accuracy):
            yield "accuracy threshold", accuracy, len(heads), probes.decisions(heads)
    best = probes.heads()
    category = prompt_coord(run, "category")
    category = category if set(category) != {""} else prompt_coord(run, "family")
    for shots in SHOTS:
        some = np.zeros(len(category), dtype=bool)
        inside = np.flatnonzero(probes.train)
        some[inside] = few_shot_masks(probes.labels[inside], category[inside], shots=shots, repeats=1, seed=seed)[0]
        if 0 < probes.labels[some].sum() < some.sum():
            yield "shots a category", shots, len(best), probes.decisions(best, train=some)
    for penalty in PENALTIES:
        yield "C", penalty, len(best), probes.decisions(best, C=penalty)


def _says(table: pd.DataFrame) -> str:
    along, shots = (
        pick(table, curve=curve, task=SAFETY, measure="accuracy") for curve in ("heads", "shots a category")
    )
    control = pick(table, curve="heads", task=CONTROL, measure="accuracy")
    fitted = pick(table, curve="heads", task=CONTROL, measure="accuracy in training")
    told = (
        f"Accuracy on unseen prompts goes from {span(along.iloc[0])} with one head to {span(along.iloc[-1])} with "
        f"{int(along.iloc[-1]['setting'])}"
    )
    if len(shots):
        told += f"; with {int(shots.iloc[0]['setting'])} prompt a category it is {span(shots.iloc[0])}"
    return told + (
        f". On labels dealt by chance it is {span(control.iloc[-1])}, though the same probes fit "
        f"{100 * fitted.iloc[-1]['value']:.0f} % of the labels they were trained on."
    )


def _beside(table: pd.DataFrame, material: Material) -> tuple[Beside, ...]:
    areas = pick(table, curve="heads", task=SAFETY, measure="auroc")
    best = areas.loc[areas["value"].idxmax()] if areas["value"].notna().any() else areas.iloc[0]
    return (
        Beside(
            "how many heads",
            "16 to 32 are kept (7B models)",
            f"AUROC {span(best)} at its best, with {int(best['setting'])} of "
            f"{material.model.n_layers * material.model.n_heads}",
            f"model ({material.model.name}), prompts; that the probed tensor is z before W_O is our reading",
            "SAHs, 'Spot Risks Before Speaking' (arXiv 2501.02029), as quoted in rebuttals",
        ),
    )


def draw(findings: Findings) -> Any:
    table = findings.table
    table = table[table["measure"] == "accuracy"].copy()
    table["setting"] = [f"{value:g}" for value in table["setting"]]
    words: dict[str, Any] = {"x_words": "", "y_words": "accuracy on unseen prompts"}
    return figures.lines(table, x="setting", series="task", panels="curve", line=0.5, limits=(0.2, 1.03), **words)


STUDY = StudyRecord(
    "probe-curves",
    asks="How many heads, examples and how much penalty does a probe need, and could it learn anything at all?",
    source="SAHs (arXiv 2501.02029): few-shot probes, accuracy threshold; control task after Hewitt and Liang (2019)",
    runs="the sweep's head outputs; probes on the selection and threshold prompts, tested on the test prompts",
    fails="On easy pairs accuracy saturates and all settings look alike; the choice of heads and the final regression "
    "see the same prompts, as published.",
    find=find,
    draw=draw,
)
