"""What `workbench models` and `workbench check` do: plain functions that print and return an exit status."""

import torch
from rich.console import Console
from rich.table import Table

from workbench.models.conformance.report import conformance
from workbench.models.families import FAMILIES
from workbench.models.hooked import HookedLVLM


def show_models(console: Console | None = None) -> int:
    """Print the families, what each supports, and its limits. Always 0."""
    from workbench.models.families.adapters import OURS, has_adapter

    console = console or Console()
    table = Table(title="Model families, by transformers' model type")
    for name in ("family", "images", "query norm", "windows", "TransformerLens"):
        table.add_column(name, no_wrap=True)
    for name, family in sorted(FAMILIES.items()):
        bridge = "our adapter" if family.architecture in OURS else "yes" if has_adapter(family.architecture) else "no"
        table.add_row(name, _yes(family.has_images), _yes(family.query_norm), _yes(family.sliding), bridge)
    console.print(table)
    console.print("Known limits:")
    for name, family in sorted(FAMILIES.items()):
        if family.limits:
            console.print(f"  [bold]{name}[/bold]: {family.limits}", highlight=False)
    console.print(
        "\nEvery family takes query and value masks in all forms. A query norm makes the published mask (W_q x 1e-5) a "
        "different intervention from the limit; windows mean that a head sees only part of the prompt in some layers."
    )
    return 0


def _yes(fact: bool) -> str:
    return "yes" if fact else "-"


def check_model(
    name: str,
    *,
    tiny: bool = False,
    dtype: str = "",
    device: str | None = None,
    template: str = "chat",
    console: Console | None = None,
) -> int:
    """Print the conformance report of a model; 0 when it conforms, else 1.

    Args:
        name: A directory, an embedded name or a Hub id; with `tiny`, a family name.
        tiny: Check a random model from a small configuration of the family, in float64, offline.
        dtype: As for `load_model`; float64 for tiny models and float32 for others when left out.
        device: Likewise.
        template: Likewise; not for tiny models.
    """
    console = console or Console()
    report = conformance(_model(name, tiny, dtype, device, template))
    console.print(report.table())
    console.print(report.verdict, style="green" if report.ok else "bold red", markup=False)
    return 0 if report.ok else 1


def _model(name: str, tiny: bool, dtype: str, device: str | None, template: str) -> HookedLVLM:
    from workbench.models.loading import DTYPES, load_model

    if not tiny:
        # Without the check at load, which stops at the first failure: the report shows them all.
        return load_model(name, dtype=dtype or "float32", device=device, template=template, check=False)
    from workbench.models.tiny import build_tiny

    return build_tiny(name, dtype=DTYPES.get(dtype, torch.float64), device=device or "cpu")
