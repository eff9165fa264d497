"""What `workbench data` and `workbench data check` print."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from workbench.cli.printing import say
from workbench.prompts.caveats import overlaps
from workbench.prompts.readers import readers
from workbench.prompts.readers.check import check_set

SHOWN_MISSING = 5


def show_readers(console: Console) -> pd.DataFrame:
    """List the published sets that are read by name; returns them as a table, a row a part."""
    rows = []
    for reader in readers().values():
        parts = ", ".join(f"{part} ({reader.counts[part].get('prompts', '–')})" for part in reader.files)
        about = {"title": reader.title, "labels": reader.labels, "where": reader.where, "licence": reader.licence}
        rows += [{"name": reader.name, "part": part} | about for part in reader.files]
        console.print(Text(reader.name, "bold"), Text(f"{reader.title}; {reader.labels}"), sep="  ")
        say(console, f"    {parts}\n    {reader.where}; licence: {reader.licence}")
    say(console, "Read one with: workbench sweep --prompts NAME:DIR … (nothing is fetched)", "dim")
    return pd.DataFrame(rows)


def check_command(console: Console, name: str, root: str, *, part: str | None, images: Sequence[Path]) -> pd.DataFrame:
    """Print what a set's folder holds: counts, what is missing, what repeats, what differs from what was published.

    Returns:
        The counts of every part, with its name.
    """
    found = check_set(name, root, part=part, images=images)
    for part_found in found:
        columns = list(part_found.counts.columns)
        table = Table(*columns, title=Text(f"{part_found.prompts.name}: {len(part_found.prompts)} prompts"))
        for row in part_found.counts.itertuples(index=False):
            table.add_row(*(Text(str(cell)) for cell in row))
        console.print(table)
        lines = [f"content hash {part_found.prompts.content_hash()}", *part_found.sentences]
        if part_found.missing:
            more = ", …" if len(part_found.missing) > SHOWN_MISSING else ""
            lines.append(f"without a picture: {', '.join(part_found.missing[:SHOWN_MISSING])}{more}")
        for line in lines:
            say(console, f"- {line}")
    for line in overlaps({part_found.prompts.name: part_found.prompts for part_found in found}):
        say(console, f"- {line}")
    return pd.concat([part_found.counts.assign(part=part_found.prompts.name) for part_found in found])
