"""`python -m workbench.bench [--quick] [--json FILE]`: the workbench beside its peers, in one run on one machine."""

import json
import platform
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from workbench.sweeps.process import settle_process

settle_process()  # before anything loads torch

import numpy as np  # noqa: E402
import torch  # noqa: E402
import typer  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from workbench.bench import jobs, peers  # noqa: E402
from workbench.bench.large import Large  # noqa: E402
from workbench.bench.real import Real  # noqa: E402
from workbench.bench.steps import Ledger, run_steps  # noqa: E402
from workbench.bench.synthetic import POCKET, SHAPES, build, questions, split_heads  # noqa: E402
from workbench.bench.timing import Row  # noqa: E402
from workbench.bench.weights import smollm2  # noqa: E402
from workbench.models.loading import DTYPES, load_model  # noqa: E402
from workbench.prompts import load_prompts  # noqa: E402
from workbench.views.figures.bench import save_growth  # noqa: E402

console = Console()
JOBS = ("exact_map", "shared_image", "find_top5", "probes", "growth")


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer prompts and repeats: under three minutes.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows here.")] = None,
    model: Annotated[
        str, typer.Option(help="pocket, or real: SmolLM2's exact map, heads found, and peers.")
    ] = "pocket",
    shape: Annotated[
        str, typer.Option(help="pocket, or 7b-like: a large random model, step by step within --minutes.")
    ] = "pocket",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    minutes: Annotated[
        float, typer.Option(help="Of a large shape: all the time it may take, this program's start included.")
    ] = 8,
    figures: Annotated[Path, typer.Option(help="Folder for the plot of how cost grows.")] = Path("figures"),
    only: Annotated[str, typer.Option(help="Jobs, comma-separated.")] = ",".join(JOBS),
) -> None:
    """Measure the jobs, print medians and ratios, and write what was asked for."""
    began = time.perf_counter()
    chosen = only.split(",")
    if unknown := sorted(set(chosen) - set(JOBS)):
        raise typer.BadParameter(f"--only names jobs of {', '.join(JOBS)}; got {', '.join(map(repr, unknown))}.")
    if shape != "pocket":
        large(shape, device, dtype, minutes, json_file)
        return
    if model not in ("pocket", "real"):
        raise typer.BadParameter(f"--model is pocket or real; got {model!r}.")
    if "nnsight" not in peers.available():
        console.print("nnsight is not installed here (pip install 'lvlm-workbench[peers]'), so its rows are left out.")
    found = small(chosen, quick=quick) if model == "pocket" else real(chosen, quick=quick)
    show(row for row in found if row.job != "growth")
    if growing := [row for row in found if row.job == "growth"]:
        show_growth(growing)
        files = save_growth([row.json() for row in growing], figures)
        console.print(f"How cost grows: {', '.join(map(str, files))}", highlight=False)
    console.print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}; "
        f"{time.perf_counter() - began:.0f} s in all. Ratios are medians of processor time on a CPU, of wall time "
        "on a GPU.",
        highlight=False,
    )
    if json_file is not None:
        json_file.write_text(json.dumps({"rows": [row.json() for row in found]}, indent=1))


def large(shape: str, device: str, dtype: str, minutes: float, json_file: Path | None) -> Ledger:
    """A large random model, step by step; every row is written as soon as it is known."""
    if shape not in SHAPES or dtype not in DTYPES:
        raise typer.BadParameter(f"--shape is one of {', '.join(SHAPES)}, --dtype one of {', '.join(DTYPES)}.")
    card = torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.machine()
    today = datetime.now(UTC).date().isoformat()
    about = {"card": card, "torch": torch.__version__, "date": today, "minutes": minutes, "dtype": dtype}
    about["shape"] = asdict(SHAPES[shape])
    ledger = Ledger(console, json_file, about)
    run_steps(Large(SHAPES[shape], shape, device, DTYPES[dtype]).steps(), minutes, ledger)
    return ledger


def real(chosen: list[str], *, quick: bool) -> list[Row]:
    """The jobs on SmolLM2, on raw text."""
    of, repeats, names = Real(smollm2()), 1 if quick else 3, peers.available()
    found: list[Row] = []
    if "exact_map" in chosen:
        found += jobs.exact_map(of.model, of.few, repeats=repeats, peer_names=names, part=24, naive=0)
    if "find_top5" in chosen:
        asked = jobs.alike(of.model, of.prompts, 12 if quick else 40)
        found += jobs.find_top5(of.model, asked, repeats=1, peer_names=["transformer_lens"], part=4)
    return found


def small(chosen: list[str], *, quick: bool) -> list[Row]:
    """The jobs on Pocket and shapes like it."""
    repeats, names = 1 if quick else 3, peers.available()
    found: list[Row] = []
    if "exact_map" in chosen:
        model, prompts = load_model("pocket", device="cpu"), load_prompts("pocket", n=104)
        if quick:
            prompts = jobs.alike(model, prompts, 8)
        found += jobs.exact_map(model, prompts, repeats=repeats, peer_names=names, part=None, naive=1 if quick else 4)
    if "shared_image" in chosen:
        wide = replace(POCKET, side=96)
        pictures = 1 if quick else 4
        asked = questions(8 * pictures, words=4, side=wide.side, pictures=pictures, lengths=2)
        found += jobs.shared_image(build(wide, name="pocket shape, 144 image tokens"), asked, repeats=repeats)
    if "find_top5" in chosen:
        model = split_heads(load_model("pocket", device="cpu"), 8)
        asked, part = load_prompts("pocket", split="selection", n=48), 12 if quick else 48
        if quick:
            asked = jobs.alike(model, asked, 6)
        # Each takes seconds, and less than the truth they are held against: more repeats cost little.
        found += jobs.find_top5(model, asked, repeats=3, peer_names=["transformer_lens"], part=part)
    if "probes" in chosen:
        model, prompts = load_model("pocket", device="cpu"), load_prompts("pocket", n=120 if quick else 300)
        last = [(model.n_layers - 1, 0)]  # next to nothing to mask: the outputs of all heads are what is wanted
        run = jobs.swept(model, prompts, "exact", heads=last, projections=("value",))
        features = run.head_output.stack(cell=("layer", "head")).transpose("cell", "prompt", "d_head").values
        unsafe = run.label.values.astype(str) == "unsafe"
        found += jobs.probes(features.astype(np.float64), unsafe, repeats=repeats, part=16 if quick else 64)
        found += jobs.probes(*jobs.wide_features(len(unsafe)), repeats=repeats, part=4 if quick else 16)
    if "growth" in chosen:
        found += jobs.growth(repeats=repeats, prompts=2 if quick else 8)
    return found


def show(found: Iterable[Row]) -> None:
    """A table a job, and under it what the job found out besides."""
    by_job: dict[tuple[str, str], list[Row]] = {}
    for row in found:
        by_job.setdefault((row.job, row.model), []).append(row)
    for (job, model), alike in by_job.items():
        table = Table(
            "engine", "seconds", "cpu s", f"x {alike[-1].against}", "agreement", "peak GiB", title=f"{job}: {model}"
        )
        for row in alike:
            name = row.engine if row.scaled == 1 else f"{row.engine} (a part, x {row.scaled:.3g})"
            agreement = "" if row.agreement is None else f"{row.agreement:.2g} {row.agreement_unit}"
            ratio = f"{row.ratio:.2f}" if row.against == alike[-1].against else ""
            table.add_row(
                name, f"{row.seconds:.2f}", f"{row.cpu_seconds:.2f}", ratio, agreement, f"{row.peak_bytes / 2**30:.1f}"
            )
        console.print(table)
        for row in alike:
            for name, value in row.more.items():
                console.print(f"  {row.engine}: {name} = {value}", highlight=False)


def show_growth(found: Iterable[Row]) -> None:
    """A table of sizes and times, and how much more estimates of the most heads cost than of the fewest."""
    seconds: dict[tuple[str, int], dict[str, float]] = {}
    for row in found:
        seconds.setdefault((row.more["axis"], row.more["size"]), {})[row.engine] = row.cpu_seconds
    table = Table("axis", "size", "estimates, cpu s", "exact, cpu s", title="growth: random models, one size at a time")
    for (axis, size), of in seconds.items():
        table.add_row(axis, str(size), f"{of['estimates']:.2f}", f"{of['exact']:.2f}" if "exact" in of else "")
    console.print(table)
    costs = {size: of["estimates"] for (axis, size), of in seconds.items() if axis == "heads"}
    if costs:
        fewest, most = min(costs), max(costs)
        ratio = costs[most] / costs[fewest]
        console.print(f"  estimates: {fewest} to {most} heads = {ratio:.2f} times the cost", highlight=False)


if __name__ == "__main__":
    typer.run(main)
