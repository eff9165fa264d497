"""What several commands ask for in the same words."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
import typer.core

from workbench.errors import WorkbenchError

ModelName = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="pocket, pocket-1, pocket-2, their pocket-base…, planted, planted-pair; a checkpoint directory; a Hub id.",
    ),
]
Template = Annotated[
    str, typer.Option(help="chat (the model's own), raw (no template), a Jinja template, or a file with one.")
]
PromptsName = Annotated[
    str,
    typer.Option(
        "--prompts", "-p", help="pocket or planted; a .jsonl, .csv or .parquet file; NAME:DIR of a published set."
    ),
]
RunPath = Annotated[str, typer.Argument(help="A stored run, from workbench sweep or workbench demo.")]
Form = Annotated[
    Literal["limit", "as_published", "scale"], typer.Option("--form", "--mask-form", help="Form of the mask.")
]
Factor = Annotated[float, typer.Option(help="Factor of the mask; 1 with --form scale changes nothing.")]
Seed = Annotated[int, typer.Option(help="Seed of prompts and statistics.")]
Dtype = Annotated[str, typer.Option(help="float32, float64, bfloat16 or float16.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, …; the GPU if there is one.")]
Json = Annotated[bool, typer.Option("--json", help="Print the numbers as JSON, and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
Table = Annotated[Path | None, typer.Option(help="Write the whole table here: .csv, .parquet or .json.")]


def comma_separated(text: str) -> list[str]:
    return text.split(",")


def numbers(text: str) -> list[int]:
    for part in comma_separated(text):
        if not part.strip().isdecimal():
            raise WorkbenchError(f"Numbers of heads are whole numbers, comma-separated, like 1,3,5; got {part!r}.")
    return [int(part) for part in comma_separated(text)]


def listed(help: str, parser: Any = comma_separated) -> Any:
    """An option that takes several words at once, comma-separated."""
    return typer.Option(help=help, parser=parser, metavar="A,B,…")


class Registered(typer.core.TyperCommand):
    """A command whose help names the criteria and rules that there are; they are looked up when it is shown."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from workbench.criteria import list_criteria, list_rules

        names = {
            "criteria": ", ".join(c.name for c in list_criteria()),
            "rules": ", ".join(rule.name for rule in list_rules()),
        }
        for param in self.params:
            if isinstance(param, typer.core.TyperOption) and param.help:
                param.help = param.help.format(**names)
        super().format_help(ctx, formatter)
