"""What several commands ask for in the same words."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
import typer.core

from workbench.errors import WorkbenchError


def completed(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """What the shell offers for the last of some comma-separated names; they are looked up when Tab is pressed."""

    def offer(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [before + comma + name for name in names() if name.startswith(last)]

    return offer


def criterion_names() -> list[str]:
    """Of the registry."""
    from workbench.criteria import list_criteria

    return [criterion.name for criterion in list_criteria()]


def rule_names() -> list[str]:
    """Of the registry."""
    from workbench.criteria import list_rules

    return [rule.name for rule in list_rules()]


def detector_names() -> list[str]:
    """Of the registry."""
    from workbench.detectors import DETECTORS

    return [*DETECTORS]


def guard_names() -> list[str]:
    """Of the registry."""
    from workbench.replies.guards import GUARDS

    return [*GUARDS]


def model_names() -> list[str]:
    """Of the embedded models."""
    from workbench.models.loading import EMBEDDED, PLANTED

    return [*EMBEDDED, *PLANTED]


ModelName = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="pocket, pocket-1, pocket-2, their pocket-base…, planted, planted-pair; a checkpoint directory; a Hub id.",
        autocompletion=completed(model_names),
    ),
]
Template = Annotated[
    str, typer.Option(help="chat (the model's own), raw (no template), a Jinja template, or a file with one.")
]
OtherModels = Annotated[
    list[str], typer.Option("--other", help="Another model, as often as needed; beside an embedded one its relatives.")
]
OtherPrompts = Annotated[list[str], typer.Option(help="Another prompt set, as often as needed.")]
RunsFolder = Annotated[
    Path | None, typer.Option(help="Folder in which sweeps are kept and shared; OUT-runs beside OUT by default.")
]
RunPath = Annotated[str, typer.Argument(help="A stored run, from workbench sweep or workbench demo.")]
ScalingForm = Annotated[
    Literal["limit", "as_published", "scale"], typer.Option("--form", "--mask-form", help="Form of the mask.")
]
Form = Annotated[
    Literal["limit", "as_published", "scale", "interchange", "mean", "resample", "direction", "redirect"],
    typer.Option(
        "--form",
        "--mask-form",
        help="limit removes, scale takes --factor; z becomes that of the matched twin (interchange), a mean over "
        "prompts (mean) or another prompt's (resample); a direction of z is removed or added; redirect adds --bias to "
        "scores of keys.",
    ),
]
Factor = Annotated[float, typer.Option(help="Factor of the mask; 1 with --form scale changes nothing, more amplifies.")]
Positions = Annotated[
    Literal["all", "after_image", "image", "last"], typer.Option(help="The prompt's positions at which masks act.")
]
MaskSource = Annotated[
    str | None,
    typer.Option(
        help="What a mask puts in: prompts as for --prompts (interchange, mean, resample; by default those swept), "
        "image, text or a box LEFT,TOP,RIGHT,BOTTOM (redirect), numbers [layer, head, d_head] in a .npy file "
        "(direction, scale)."
    ),
]
Bias = Annotated[float, typer.Option(help="What redirect adds to scores, or direction along its vector.")]
Seed = Annotated[int, typer.Option(help="Seed of prompts and statistics.")]
Dtype = Annotated[str, typer.Option(help="float32, float64, bfloat16 or float16.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, …; the GPU if there is one.")]
Heads = Annotated[
    str | None, typer.Option(help="Mask these heads: L3H1,L2H0, or a heads.json that the explorer saved.")
]
Masked = Annotated[
    Literal["query", "key", "value"] | None,
    typer.Option("--projection", help="The projection masked; by default the first that the form masks."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the numbers as JSON, and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
ReplyTokens = Annotated[int, typer.Option(help="Most tokens of a reply.")]
Measures = Annotated[
    list[str], typer.Option("--measure", help="What is measured of each cell; repeat for more; all by default.")
]
Table = Annotated[Path | None, typer.Option(help="Write the whole table here: .csv, .parquet or .json.")]


def comma_separated(text: str) -> list[str]:
    return text.split(",")


def numbers(text: str) -> list[int]:
    for part in comma_separated(text):
        if not part.strip().isdecimal():
            raise WorkbenchError(f"Numbers of heads are whole numbers, comma-separated, like 1,3,5; got {part!r}.")
    return [int(part) for part in comma_separated(text)]


def shares(text: str) -> list[float]:
    try:
        return [float(part) for part in comma_separated(text)] if text != "none" else []
    except ValueError:
        raise typer.BadParameter(f"shares are numbers from 0 to 1, comma-separated; got {text!r}") from None


def listed(help: str, parser: Any = comma_separated, names: Callable[[], Iterable[str]] | None = None) -> Any:
    """An option that takes several words at once, comma-separated; of `names`, where they are known."""
    offer = None if names is None else completed(names)
    return typer.Option(help=help, parser=parser, metavar="A,B,…", autocompletion=offer)


def grouped(
    name: str,
    options: Mapping[str, tuple[Any, Any]],
    make: Callable[[Any, dict[str, Any]], Any],
    hint: Any = None,
    default: Callable[[Any], Any] = lambda value: value,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator of commands: a parameter comes with options that say more about it, and all of them as one thing.

    Args:
        name: Of the parameter.
        options: By the name of the parameter that each would be: its annotation and its default. Those that a command
            has by itself stay its own.
        make: Gives the one thing, from what was given for the parameter and for the options.
        hint: The parameter's annotation for typer; by default the one it has.
        default: Gives typer's default from the parameter's.
    """
    kind, empty = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.empty

    def decorated(command: Callable[..., Any]) -> Callable[..., Any]:
        own = dict(inspect.signature(command).parameters)
        place, before = list(own).index(name), own.pop(name)
        added = {option: said for option, said in options.items() if option not in own}

        @wraps(command)
        def run(**given: Any) -> Any:
            more = {option: given.pop(option) for option in added}
            return command(**{name: make(given.pop(name), more)}, **given)

        start = empty if before.default is empty else default(before.default)
        every = {name: (before.annotation if hint is None else hint, start), **added}
        new = [inspect.Parameter(n, kind, default=value, annotation=of) for n, (of, value) in every.items()]
        rest = [parameter.replace(kind=kind) for parameter in own.values()]
        parameters = [*rest[:place], *new, *rest[place:]]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what typer reads
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorated


NAMES = {"criteria": criterion_names, "rules": rule_names, "detectors": detector_names, "guards": guard_names}


class Registered(typer.core.TyperCommand):
    """A command whose help names what is registered, for {rules} and the like; it is looked up when help is shown."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        for param in self.params:
            if isinstance(param, typer.core.TyperOption) and param.help:
                for name, names in NAMES.items():
                    if (meant := f"{{{name}}}") in param.help:
                        param.help = param.help.replace(meant, ", ".join(names()))
        super().format_help(ctx, formatter)
