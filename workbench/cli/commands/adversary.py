"""What an adversary can do to detectors, and what a set of heads is good for."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from workbench.cli.app import app, console
from workbench.cli.named import with_model
from workbench.cli.options import (
    Json,
    ModelName,
    Quiet,
    Registered,
    ReplyTokens,
    Seed,
    criterion_names,
    listed,
    numbers,
    rule_names,
    shares,
)
from workbench.cli.printing import tell
from workbench.cli.prompts import with_prompts


@app.command()
@with_model
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
    max_new_tokens: ReplyTokens = 16,
    json: Json = False,
    quiet: Quiet = False,
    seed: Seed = 0,
) -> None:
    """How far a detector's score can be moved without changing what the model does: a test bench for defences.

    Pictures are changed within a box around their pixels, texts among the sentences and words of the embedded worlds.
    Only a detector's score is optimised, while the model's own next token stays. Stopped at any moment, the same
    command with the same --out goes on with the next detector.
    """
    given = dict(locals())
    from workbench.cli.adversary import attack_command

    tell(attack_command, console, **given)


@app.command(cls=Registered)
@with_model
@with_prompts
def faithfulness(
    model: ModelName = "pocket",
    prompts: Any = "pocket",
    criteria: Annotated[
        Any, listed("Criteria whose rankings are tried, comma-separated. Of {criteria}.", names=criterion_names)
    ] = "deflection,ships,probe,refusal_change",
    rules: Annotated[Any, listed("Their rules. Of {rules}.", names=rule_names)] = "selectivity,sensitivity",
    learned: Annotated[Any, listed("Learned rankings: gating, top-k, or none.")] = "gating",
    steps: Annotated[int, typer.Option(help="Steps of the learned ones.")] = 500,
    sizes: Annotated[Any, listed("Shares of the heads that are kept.", shares)] = "0,0.02,0.05,0.1,0.2,0.3,0.4,0.5",
    outside: Annotated[
        Literal["zero", "interchange"], typer.Option(help="Other heads: silent, or with what the safe twin's put out.")
    ] = "zero",
    controls: Annotated[int, typer.Option(help="Random orders beside each ranking, matched by layer.")] = 5,
    behaviour: Annotated[Any, listed("Shares at which replies are judged too, or none.", shares)] = "none",
    out: Annotated[
        Path | None, typer.Option(help="Folder for faithfulness.csv, the tests, the figure, and node files for MIB.")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    seed: Seed = 0,
) -> None:
    """How much of a model's refusal is left when only the first heads of a ranking are: CPR and CMD, as in MIB.

    Rankings come from a sweep over the selection prompts and from masks that are learned on them; curves are measured
    on the test prompts.
    """
    given = dict(locals())
    from workbench.cli.adversary import faithfulness_command

    tell(faithfulness_command, console, **given)
