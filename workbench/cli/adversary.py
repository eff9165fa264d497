"""What `workbench attack` and `faithfulness` do: what an adversary can do, and what a set of heads is good for."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from workbench.attacks import attack
from workbench.axes import head_pairs
from workbench.cli.named import Named, loaded
from workbench.cli.printing import say, say_written
from workbench.cli.prompts import Asked, chosen
from workbench.comparison import faithfulness, rankings
from workbench.comparison.arena import calibration_and_test
from workbench.criteria import score
from workbench.finding.gates import learn_heads
from workbench.finding.mib import write_mib_nodes
from workbench.models.masks import Mask
from workbench.sweeps.sweep import sweep
from workbench.views.figures.adversary import evasion_figure, faithfulness_figure, save_adversary
from workbench.views.tables import frame_table


def attack_command(
    console: Console,
    *,
    model: str | Named,
    prompts: str | Asked,
    scored_by: Sequence[str],
    side: str,
    kl_budget: float,
    out: Path | None,
    seed: int,
    **given: Any,
) -> pd.DataFrame:
    """Print how often attacks evade the detectors they were made against; `given` is for `attack`."""
    table = attack(
        loaded(model),
        chosen(prompts, seed),
        scored_by=() if scored_by == ["none"] else scored_by,
        side=side,
        kl_budget=None if kl_budget < 0 else kl_budget,
        out=out,
        progress=not console.quiet,
        seed=seed,
        **given,
    )
    own = table[(table["attacked"] == table["scored_by"]) & table["measure"].isin(["evasion", "evasion_any"])]
    console.print(_with_intervals(own, ["attacked", "steps" if side == "text" else "eps", "measure"]))
    for name, why in table.attrs["left_out"].items():
        say(console, f"Left out: {name}: {why}")
    if out is not None:
        say_written(console, save_adversary(table, evasion_figure(table), out, "attack"), out)
    return table


def faithfulness_command(
    console: Console,
    *,
    model: str | Named,
    prompts: str | Asked,
    criteria: Sequence[str],
    rules: Sequence[str],
    learned: Sequence[str],
    steps: int,
    outside: str,
    out: Path | None,
    seed: int,
    **given: Any,
) -> pd.DataFrame:
    """Rank heads on the selection prompts, print what the rankings keep of refusal on the test prompts.

    `given` is for `faithfulness`.
    """
    asked, shown = loaded(model), not console.quiet
    selection, test, _ = calibration_and_test(chosen(prompts, seed), seed)
    orders = {}
    if criteria != ["none"]:
        run = sweep(asked, selection, projections=("query",), progress=shown, seed=seed)
        scored = score(run.drop_vars("split"), criteria, bootstrap=0, permutations=0, seed=seed)
        orders = {n: o for n, o in rankings(scored).items() if n.partition(", ")[2] in rules}
    for method in [] if learned == ["none"] else learned:
        found = learn_heads(asked, selection, method=method, steps=steps, progress=shown, seed=seed)
        orders[f"learned, {method}"] = head_pairs(found)
    table = faithfulness(
        asked,
        test,
        orders,
        mask=Mask(form="interchange" if outside == "interchange" else "limit"),
        progress=shown,
        seed=seed,
        **given,
    )
    areas = table[table["measure"].isin(["cpr", "cmd", "cmd_control"])]
    console.print(_with_intervals(areas, ["ranking", "measure"]))
    if out is not None:
        files = save_adversary(table, faithfulness_figure(table), out, "faithfulness")
        for name, order in orders.items():
            ranks = {head: float(len(order) - place) for place, head in enumerate(order)}
            files.append(write_mib_nodes(ranks, asked, out / "mib" / f"{name.replace(', ', '-')}.json"))
        say_written(console, files, out)
    return table


def _with_intervals(rows: pd.DataFrame, names: list[str]) -> Table:
    """Some columns of some rows, and their values with intervals."""
    interval = [f"{low:.2f} to {high:.2f}" for low, high in zip(rows["ci_low"], rows["ci_high"], strict=True)]
    words = {"value": rows["value"].map("{:.2f}".format), "95 %": interval, "n": rows["n"].astype(str)}
    return frame_table(rows[names].assign(**words))
