"""What `workbench models` and `workbench check` do: plain functions that print and return what they found."""

import pandas as pd
import torch
from rich.console import Console

from workbench.models.conformance.report import conformance
from workbench.models.families import FAMILIES
from workbench.models.hooked import HookedLVLM
from workbench.views.tables import frame_table


def show_models(console: Console) -> pd.DataFrame:
    """Print the families, what each supports, and its limits; returns the same as a table."""
    from workbench.models.families.adapters import OURS, has_adapter

    rows = []
    for name, family in sorted(FAMILIES.items()):
        bridge = "our adapter" if family.architecture in OURS else "yes" if has_adapter(family.architecture) else "no"
        facts = {"images": family.has_images, "query norm": family.query_norm, "windows": family.sliding}
        said = {fact: "yes" if true else "-" for fact, true in facts.items()}
        rows.append({"family": name} | said | {"TransformerLens": bridge, "limits": family.limits})
    found = pd.DataFrame(rows)
    table = frame_table(found.drop(columns="limits"), title="Model families, by transformers' model type")
    console.print(table)
    console.print("Known limits:")
    for row in found[found["limits"] != ""].itertuples():
        console.print(f"  [bold]{row.family}[/bold]: {row.limits}", highlight=False)
    console.print(
        "\nEvery family takes query and value masks in all forms. A query norm makes the published mask (W_q x 1e-5) a "
        "different intervention from the limit; windows mean that a head sees only part of the prompt in some layers."
    )
    return found


def check_model(
    console: Console,
    name: str,
    *,
    tiny: bool = False,
    dtype: str = "",
    device: str | None = None,
    template: str = "chat",
) -> pd.DataFrame:
    """Print the conformance report of a model; returns its checks: check, verdict ("ok", "failed", "n/a"), detail.

    Args:
        console: Where to print.
        name: A directory, an embedded name or a Hub id; with `tiny`, a family name.
        tiny: Check a random model from a small configuration of the family, in float64, offline.
        dtype: As for `load_model`; float64 for tiny models and float32 for others when left out.
        device: Likewise.
        template: Likewise; not for tiny models.
    """
    report = conformance(_model(name, tiny, dtype, device, template))
    console.print(report.table())
    console.print(report.verdict, style="green" if report.ok else "bold red", markup=False)
    return pd.DataFrame(report.findings)


def _model(name: str, tiny: bool, dtype: str, device: str | None, template: str) -> HookedLVLM:
    from workbench.models.loading import DTYPES, load_model

    if not tiny:
        # Without the check at load, which stops at the first failure: the report shows them all.
        return load_model(name, dtype=dtype or "float32", device=device, template=template, check=False)
    from workbench.models.tiny import build_tiny

    return build_tiny(name, dtype=DTYPES.get(dtype, torch.float64), device=device or "cpu")
