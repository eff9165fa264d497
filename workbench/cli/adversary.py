"""`workbench attack` and `workbench faithfulness`: what an adversary can do, and what a set of heads is good for."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from workbench.cli.options import (
    Device,
    Dtype,
    Json,
    ModelName,
    Quiet,
    Registered,
    Seed,
    Template,
    listed,
    numbers,
    rule_names,
)
from workbench.cli.prompts import chosen, with_prompts
from workbench.plain import plain

if TYPE_CHECKING:
    import pandas as pd

console = Console()


def shares(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"shares are numbers from 0 to 1, comma-separated; got {text!r}") from None


@with_prompts
def attack(
    model: ModelName = "pocket",
    prompts: Any = "pocket",
    detectors: Annotated[
        Any, listed("Attacked by someone who knows them; comma-separated, with options as in workbench arena.")
    ] = "one-head",
    scored_by: Annotated[
        Any, listed("Further detectors, tried with what was made against the others; none by default.")
    ] = "none",
    side: Annotated[Literal["picture", "text"], typer.Option(help="What of the prompts is changed.")] = "picture",
    eps: Annotated[
        Any, listed("Largest changes of a pixel value, in 255ths, comma-separated; 255 is no bound.", numbers)
    ] = "2,4,8,16",
    steps: Annotated[Any, listed("Gradient steps, or words of the text, comma-separated.", numbers)] = "20",
    kl_budget: Annotated[
        float, typer.Option(help="Nats by which the model's next token may move; a negative number for any.")
    ] = 0.1,
    save_pictures: Annotated[
        Path | None, typer.Option(help="Write the changed pictures into this folder; without it none is written.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for attack.csv, attack-tests.csv and the figure; kept to go on from.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of a reply.")] = 16,
    template: Template = "chat",
    dtype: Dtype = "float32",
    device: Device = None,
    json: Json = False,
    quiet: Quiet = False,
    seed: Seed = 0,
) -> None:
    """How far a detector's score can be moved without changing what the model does: a test bench for defences.

    Pictures are changed within a box around their pixels, texts among the sentences and words of the embedded worlds.
    Only a detector's score is optimised, while the model's own next token stays. Stopped at any moment, the same
    command with the same --out goes on with the next detector.
    """
    from workbench.attacks import attack as run_attack
    from workbench.models.loading import load_model
    from workbench.views.figures.adversary import evasion_figure, save_adversary

    table = run_attack(
        load_model(model, template=template, dtype=dtype, device=device),
        chosen(prompts, seed),
        detectors,
        scored_by=() if scored_by == ["none"] else scored_by,
        side=side,
        eps=eps,
        steps=steps,
        kl_budget=None if kl_budget < 0 else kl_budget,
        max_new_tokens=max_new_tokens,
        save_pictures=save_pictures,
        out=out,
        progress=not (quiet or json),
        seed=seed,
    )
    own = table[(table["attacked"] == table["scored_by"]) & table["measure"].isin(["evasion", "evasion_any"])]
    across = "steps" if side == "text" else "eps"
    _tell(table, own, ["attacked", across, "measure"], json, quiet)
    for name, why in table.attrs["left_out"].items():
        _say(f"Left out: {name}: {why}", quiet or json)
    if out is not None:
        files = save_adversary(table, evasion_figure(table), out, "attack")
        _say(f"Written: {', '.join(file.name for file in files)} in {out}", quiet or json)


@with_prompts
def faithfulness(
    model: ModelName = "pocket",
    prompts: Any = "pocket",
    criteria: Annotated[
        Any, listed("Criteria whose rankings are tried, comma-separated. Of {criteria}.")
    ] = "deflection,ships,probe,refusal_change",
    rules: Annotated[Any, listed("Their rules. Of {rules}.", names=rule_names)] = "selectivity,sensitivity",
    learned: Annotated[Any, listed("Learned rankings: gating, top-k, or none.")] = "gating",
    steps: Annotated[int, typer.Option(help="Steps of the learned ones.")] = 500,
    sizes: Annotated[Any, listed("Shares of the heads that are kept.", shares)] = "0,0.02,0.05,0.1,0.2,0.3,0.4,0.5",
    outside: Annotated[
        Literal["zero", "interchange"], typer.Option(help="Other heads: silent, or with what the safe twin's put out.")
    ] = "zero",
    controls: Annotated[int, typer.Option(help="Random orders beside each ranking, matched by layer.")] = 5,
    behaviour: Annotated[Any, listed("Shares at which replies are judged too, or none.")] = "none",
    out: Annotated[
        Path | None, typer.Option(help="Folder for faithfulness.csv, the tests, the figure, and node files for MIB.")
    ] = None,
    template: Template = "chat",
    dtype: Dtype = "float32",
    device: Device = None,
    json: Json = False,
    quiet: Quiet = False,
    seed: Seed = 0,
) -> None:
    """How much of a model's refusal is left when only the first heads of a ranking are: CPR and CMD, as in MIB.

    Rankings come from a sweep over the selection prompts and from masks that are learned on them; curves are measured
    on the test prompts.
    """
    from workbench.axes import head_pairs
    from workbench.comparison import faithfulness as run_faithfulness
    from workbench.comparison.arena import calibration_and_test
    from workbench.comparison.faithfulness import rankings
    from workbench.criteria import score
    from workbench.finding.gates import learn_heads
    from workbench.finding.mib import write_mib_nodes
    from workbench.models.loading import load_model
    from workbench.models.masks import Mask
    from workbench.sweeps.sweep import sweep
    from workbench.views.figures.adversary import faithfulness_figure, save_adversary

    loaded, shown = load_model(model, template=template, dtype=dtype, device=device), not (quiet or json)
    selection, test, _ = calibration_and_test(chosen(prompts, seed), seed)
    orders = {}
    if criteria != ["none"]:
        run = sweep(loaded, selection, projections=("query",), progress=shown, seed=seed)
        scored = score(run.drop_vars("split"), criteria, bootstrap=0, permutations=0, seed=seed)
        orders = {n: o for n, o in rankings(scored).items() if n.partition(", ")[2] in rules}
    for method in [] if learned == ["none"] else learned:
        found = learn_heads(loaded, selection, method=method, steps=steps, progress=shown, seed=seed)
        orders[f"learned, {method}"] = head_pairs(found)
    table = run_faithfulness(
        loaded,
        test,
        orders,
        sizes=sizes,
        mask=Mask(form="interchange" if outside == "interchange" else "limit"),
        controls=controls,
        behaviour=() if behaviour == ["none"] else shares(",".join(behaviour)),
        progress=shown,
        seed=seed,
    )
    areas = table[table["measure"].isin(["cpr", "cmd", "cmd_control"])]
    _tell(table, areas, ["ranking", "measure"], json, quiet)
    if out is not None:
        files = save_adversary(table, faithfulness_figure(table), out, "faithfulness")
        for name, order in orders.items():
            ranks = {head: float(len(order) - place) for place, head in enumerate(order)}
            files.append(write_mib_nodes(ranks, loaded, out / "mib" / f"{name.replace(', ', '-')}.json"))
        _say(f"Written: {', '.join(file.name for file in files)} in {out}", not shown)


def _tell(table: "pd.DataFrame", rows: "pd.DataFrame", names: list[str], json: bool, quiet: bool) -> None:
    """Print some rows with their intervals, or the whole table as JSON."""
    if json:
        console.out(table.to_json(orient="records", double_precision=15), highlight=False)
    if json or quiet:
        return
    shown = Table(*names, "value", "95 %", "n")
    for row in rows.to_dict("records"):
        words = [plain(row[name]) for name in names]
        shown.add_row(*words, f"{row['value']:.2f}", f"{row['ci_low']:.2f} to {row['ci_high']:.2f}", str(row["n"]))
    console.print(shown)


def _say(text: str, silent: bool) -> None:
    if not silent:
        console.print(Text(plain(text)), soft_wrap=True)


def register(app: typer.Typer) -> None:
    """Hang both commands on the application."""
    app.command()(attack)
    app.command(cls=Registered)(faithfulness)
