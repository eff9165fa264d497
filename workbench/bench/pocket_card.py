"""Pocket's cards, `python -m workbench.bench.pocket_card [NAME …]`: every number in them is measured here.

For each checkpoint its replies against its bars. For the tuned ones also the heads that are found, what masking them
does, and how detectors do, on nouns that safety tuning, selection and thresholds have seen and on others; for `pocket`
all seeds side by side.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
from jinja2 import Environment, StrictUndefined
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from workbench.axes import PROJECTIONS, SPLITS, Head, head_name, head_pairs
from workbench.comparison import attack_success
from workbench.criteria import score, top_heads
from workbench.detectors import Detector, HiddenDetect, OneHeadDetector
from workbench.detectors.evaluation import score_measures
from workbench.models.embedded.pocket.behaviour import base_bars, load, measure, pocket_bars
from workbench.models.hooked import HookedLVLM
from workbench.models.loading import EMBEDDED, load_model
from workbench.prompts import load_prompts
from workbench.prompts.prompt import PromptSet
from workbench.prompts.worlds.pocket import is_unseen
from workbench.prompts.worlds.pocket_words import HAZARD_NOUNS, REFUSAL, THING_NOUNS, TUNED, UNSEEN
from workbench.sweeps.sweep import sweep

TEMPLATE = Path(__file__).with_name("pocket_card.md.jinja")
HOME = Path(__file__).parents[1] / "models"
SIZES = (1, 3, 5)
MEASURES = {"auroc": "AUROC", "detection_rate": "detected"}
console = Console()


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Checkpoints; all by default.")] = None,
    n: Annotated[int, typer.Option(min=60, help="Prompts of each split, for heads and detectors.")] = 240,
    controls: Annotated[int, typer.Option(min=1, help="Draws of control heads for each number of heads.")] = 5,
) -> None:
    """Measure the shipped checkpoints and write the card of each."""
    chosen = names or list(EMBEDDED)
    if unknown := sorted(set(chosen) - set(EMBEDDED)):
        raise typer.BadParameter(f"Checkpoints are {', '.join(EMBEDDED)}; got {', '.join(unknown)}.")
    tuned = [name for name in EMBEDDED if "base" not in name]
    columns = (
        TextColumn("{task.description:<30}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=len(chosen) + 4 * len(tuned if "pocket" in chosen else ()))

        def step(what: str) -> None:
            progress.update(task, advance=1, description=what)

        seeds = [seed_tables(name, n=n, controls=controls, step=step) for name in tuned] if "pocket" in chosen else []
        for name in chosen:
            write_card(name, seeds=seeds if name == "pocket" else [])
            step(f"{name}: replies")


def write_card(name: str, *, seeds: list[dict[str, Any]]) -> pd.DataFrame:
    """Measure a checkpoint's replies and write its `README.md`; returns the table of bars."""
    directory = HOME / EMBEDDED[name]
    bars = measure(*load(directory), base_bars() if "base" in name else pocket_bars())
    (directory / "README.md").write_text(render(name, bars, seeds=seeds), encoding="utf-8")
    return bars


def render(name: str, bars: pd.DataFrame, *, seeds: list[dict[str, Any]]) -> str:
    """The card of a checkpoint, with its table of bars and, where there are any, the tables of `seed_tables`."""
    directory = HOME / EMBEDDED[name]
    model, _ = load(directory)
    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined, autoescape=False
    )  # no HTML
    environment.filters["percent"] = "{:.1%}".format
    return (
        environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
        .render(
            name=name,
            parameters=sum(p.numel() for p in model.parameters()),
            config=model.config.text_config,
            n_hazards=len(HAZARD_NOUNS),
            n_things=len(THING_NOUNS),
            refusal=REFUSAL,
            record=json.loads((directory / "training.json").read_text(encoding="utf-8")),
            tuned=TUNED,
            unseen=UNSEEN,
            bars=list(bars.itertuples()),
            marks={True: "yes", False: "**no**", None: ""},
            seeds=seeds,
            overlap=overlaps(seeds),
            measures=MEASURES,
        )
        .lstrip()
    )


def seed_tables(name: str, *, n: int, controls: int, step: Callable[[str], None]) -> dict[str, Any]:
    """One tuned checkpoint's heads, what masking them does, and its detectors; `n` prompts of each split."""
    model = load_model(name, device="cpu")
    selection, threshold, test = (load_prompts("pocket", split=split, n=n) for split in SPLITS)
    scores = score(sweep(model, selection, progress=False), criteria=("deflection",))
    step(f"{name}: every head")
    record = json.loads((HOME / EMBEDDED[name] / "training.json").read_text(encoding="utf-8"))
    of_projection = {}
    for projection in PROJECTIONS:
        top = top_heads(scores, criterion="deflection", rule="selectivity", projection=projection, k=max(SIZES))
        values = scores[scores["projection"] == projection].set_index(["layer", "head"])["difference"]
        masked = attack_success(model, test, head_pairs(top), sizes=SIZES, projection=projection, controls=controls)
        of_projection[projection] = {
            "heads": [{"name": head_name(*h), **_row(scores, projection, h)} for h in head_pairs(top)],
            "values": values,
            "masked": masked_rows(masked),
        }
        step(f"{name}: heads masked, {projection}")
    # The one head is the first that the selection split gave; only its threshold is still to be set.
    first = top_heads(scores, criterion="deflection", rule="selectivity", projection="query", k=1)
    detectors = [OneHeadDetector(head=head_pairs(first)[0]), HiddenDetect()]
    rows = [row for d in detectors for row in detector_rows(d, model, PromptSet([*selection, *threshold]), test)]
    step(f"{name}: detectors")
    parts = {"projections": of_projection, "detectors": rows, "tuned_heads": record["tuned_heads"]}
    return {"name": name, "n": n, **parts}


def _row(scores: pd.DataFrame, projection: str, head: Head) -> dict[str, Any]:
    of = scores[(scores["projection"] == projection) & (scores["layer"] == head[0]) & (scores["head"] == head[1])]
    return of.iloc[0][["unsafe", "safe", "difference", "ci_low", "ci_high"]].to_dict()


def masked_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """By number of heads: attack success, benign requests and questions, with intervals, beside the controls."""
    rows = []
    for size in (0, *SIZES):
        chosen = table[(table["n_heads"] == size) & table["masked"].isin(["nothing", "chosen"])].set_index("group")
        others = table[(table["n_heads"] == size) & ~table["masked"].isin(["nothing", "chosen"])]
        row: dict[str, Any] = {"size": size, "heads": str(chosen["heads"].iloc[0])}
        for group in ("unsafe", "benign", "question"):
            of, by_draw = chosen.loc[group], others[others["group"] == group]["complied"]
            row[group] = {"value": of["complied"], "low": of["low"], "high": of["high"], "n": int(of["n"])}
            row[group]["controls"] = (by_draw.mean(), by_draw.min(), by_draw.max()) if len(by_draw) else None
        rows.append(row)
    return rows


def detector_rows(
    detector: Detector, model: HookedLVLM, calibration: PromptSet, asked: PromptSet
) -> list[dict[str, Any]]:
    """A detector fitted on some prompts, on test requests with seen and with unseen nouns and the same benign ones."""
    detector.fit(model, calibration)
    scores, rows = detector.decision_function(model, asked), []
    for nouns, unseen in (("seen", False), ("unseen", True)):
        of = [k for k, p in enumerate(asked) if p.label == "safe" or is_unseen(p) == unseen]
        table = score_measures(scores[of], [asked[k] for k in of], detector.threshold)
        row: dict[str, Any] = {
            "detector": detector.name,
            "nouns": nouns,
            "n": sum(asked[k].label == "unsafe" for k in of),
        }
        for measured in (*MEASURES, "false_positive_rate"):
            row[measured] = table[(table["measure"] == measured) & (table["family"] == "all")].iloc[0].to_dict()
        rows.append(row)
    return rows


def overlaps(seeds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each two seeds and projection: heads among the first five of both, and the rank correlation of all heads."""
    rows = []
    for k, one in enumerate(seeds):
        for two in seeds[k + 1 :]:
            for projection in PROJECTIONS:
                a, b = (s["projections"][projection] for s in (one, two))
                shared = {h["name"] for h in a["heads"]} & {h["name"] for h in b["heads"]}
                correlation = a["values"].corr(b["values"], method="spearman")
                rows.append(
                    {
                        "pair": f"{one['name']}, {two['name']}",
                        "projection": projection,
                        "shared": sorted(shared),
                        "correlation": correlation,
                    }
                )
    return rows


if __name__ == "__main__":
    typer.run(main)
