"""`workbench demo`: the whole path on the embedded model, from masking every head to figures for a paper."""

import shutil
import time
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from workbench.axes import PROJECTIONS, head_name
from workbench.criteria import score
from workbench.criteria.detection import detection_table
from workbench.models.loading import load_model
from workbench.models.masks import Mask
from workbench.prompts import load_prompts
from workbench.sweeps.sweep import sweep
from workbench.views import tables
from workbench.views.charts import rule_heads
from workbench.views.figures import captions
from workbench.views.figures.save import save_figures

CRITERIA = ("deflection", "ships", "probe")
RULES = ("sensitivity", "selectivity", "auroc")
RUN_NAME = "demo-run.zarr"


def demo(console: Console, out: Path, *, model_name: str, n: int, seed: int, mask: Mask) -> pd.DataFrame:
    """Load, sweep, score, print, draw; returns what the first head of each ranking detects (see `detection_table`).

    Args:
        console: Where to print.
        out: Folder of the figures; made if it is not there.
        model_name: An embedded model: pocket, pocket-base, planted, planted-pair.
        n: Prompts, over the selection, threshold and test splits together.
        seed: Of the prompts; another seed gives slightly other numbers.
        mask: How heads are masked.
    """
    began = time.perf_counter()
    model = load_model(model_name)
    prompts = load_prompts("planted" if model_name.startswith("planted") else "pocket", seed=seed, n=n)
    unsafe = sum(p.label == "unsafe" for p in prompts)
    both = xr.Dataset(coords={"projection": list(PROJECTIONS)}, attrs=mask.describe())
    masked = captions.mask_words(both).replace("; ", ", ")
    console.print(
        f"[bold]{tables.escape(model.name)}[/bold] ({model.family.name}): {model.n_layers} layers x {model.n_heads} "
        f"query heads, and {len(prompts)} prompts ({unsafe} unsafe, {len(prompts) - unsafe} safe; seed {seed}).\n"
        f"On every prompt, {masked}.",
        highlight=False,
    )
    out.mkdir(parents=True, exist_ok=True)
    stored = out / RUN_NAME
    # The demo always begins anew: another seed or mask is another run, and this one takes a minute or two.
    shutil.rmtree(stored, ignore_errors=True)
    run = sweep(model, prompts, mask=mask, out=stored, progress=not console.quiet)
    scores = score(run, CRITERIA)
    detected = detection_table(run, criteria=CRITERIA, rules=RULES, seed=seed)
    console.print(
        "\n[bold]The heads that each rule puts first, and what the first of them detects alone[/bold]\n"
        "% of unseen prompts flagged, ± half the 95 % interval: by attack family, and of benign prompts.\n"
        f"AUROC against the matched benign prompts, mean over families. Splits: {escape(detected.attrs['splits'])}.",
        highlight=False,
    )
    console.print(heads_table(scores, detected, runners_up=console.width >= 90))
    for why in detected.attrs["left_out"]:
        console.print(f"[dim]Left out: {escape(why)}[/dim]", highlight=False)
    written = save_figures(run, out, scores=scores)
    _farewell(console, stored, written, time.perf_counter() - began)
    return detected


def heads_table(scores: pd.DataFrame, detected: pd.DataFrame, *, runners_up: bool) -> Table:
    """A line a criterion x projection x rule: its best head and the next two, and what the best alone detects.

    Args:
        scores: From `wb.score`.
        detected: From `detection_table`: the head chosen, thresholded and tested on three different splits.
        runners_up: Show the next two heads too, where the terminal is wide enough.
    """
    families = [f for f in dict.fromkeys(detected.loc[detected.measure == "detection_rate", "family"]) if f != "all"]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("rule", "head", *(["then"] if runners_up else [])):
        table.add_column(name, no_wrap=True)
    for name in (*families, "benign"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("AUROC", justify="right", no_wrap=True)
    for (criterion, projection), parts in detected.groupby(["criterion", "projection"], sort=False):
        words = projection if projection != "none" else "no mask"
        table.add_row(f"[bold]{criterion}[/bold], {words}")
        for rule, part in parts.groupby("rule", sort=False):
            first = part.iloc[0]
            head = head_name(int(first["layer"]), int(first["head"]))
            kept, _ = rule_heads(scores, criterion=criterion, rule=rule, projection=projection, k=3)
            named = [head_name(*cell) for cell in kept]
            rates = {(row.measure, row.family): row for row in part.itertuples()}
            matched = [row.value for row in part.itertuples() if row.measure == "auroc_matched"]
            table.add_row(
                f"  {rule}",
                f"[bold]{head}[/bold]",
                *([" ".join(name for name in named if name != head)] if runners_up else []),
                *(_percent(rates.get(("detection_rate", family))) for family in families),
                _percent(rates.get(("false_positive_rate", "all"))),
                f"{sum(matched) / len(matched):.2f}" if matched else "–",
            )
        table.add_section()
    return table


def _percent(row: Any) -> str:
    return "–" if row is None else f"{100 * row.value:.0f}±{50 * (row.ci_high - row.ci_low):.0f}"


def _farewell(console: Console, stored: Path, written: list[Path], seconds: float) -> None:
    figures = [path for path in written if path.suffix == ".pdf"]
    names = ", ".join(path.stem for path in figures)
    console.print(
        f"\nDone in {seconds:.0f} s. {len(figures)} figures in [bold]{stored.parent}[/bold] (PDF, SVG, PNG): {names}.",
        highlight=False,
    )
    console.print(
        "\nNext:\n"
        "  make lab                          click on heads in JupyterLab\n"
        f"  workbench compare {stored}    every criterion, rule and number of heads\n"
        f"  workbench detect {stored}     one head as a detector, family by family\n"
        "  workbench sweep --model DIR --prompts FILE.jsonl --out RUN.zarr    your own model and prompts",
        highlight=False,
        soft_wrap=True,
    )
