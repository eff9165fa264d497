"""What lies in a folder that should hold a published set: counts, what repeats, what differs from the published."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from workbench.errors import PromptError
from workbench.prompts.caveats import few_texts, text_hash
from workbench.prompts.pictures import image_hash
from workbench.prompts.places import NoPictureError
from workbench.prompts.prompt import Prompt, PromptSet
from workbench.prompts.readers import pictures_of, readers, rows_of
from workbench.prompts.readers.layout import Layout

SHOWN = 5


@dataclass(frozen=True)
class Findings:
    """What a part of a set holds.

    Attributes:
        part: Of the set.
        prompts: Those whose pictures are there.
        counts: How many prompts a label, family, category and split hold.
        missing: Names of rows whose picture is not there.
        sentences: What repeats, and what differs from what was published; no text is in them.
    """

    part: str
    prompts: PromptSet
    counts: pd.DataFrame
    missing: tuple[str, ...]
    sentences: tuple[str, ...]


def check_set(
    name: str, root: str | Path, *, part: str | None = None, images: Sequence[str | Path] = ()
) -> list[Findings]:
    """What the parts of a set that are there hold, each part by itself.

    Raises:
        PromptError: No part is there, or a file is not as published.
    """
    reader = readers().named(name)
    layout = Layout(reader, root)
    parts = [part] if part else layout.parts() or [next(iter(reader.files))]
    found = []
    for name_of_part in parts:
        pictures = pictures_of(reader, layout, images)
        prompts, rows, missing, broken = [], [], [], []
        for row in rows_of(reader, layout, name_of_part).rows:
            cells = dict(row.cells)
            try:
                image = pictures.open(cells.pop("image", None))
            except NoPictureError:
                missing.append(row.place)
                image = None
            except PromptError as error:
                broken.append(f"{row.place}: {error}")
                image = None
            if image is None and not cells["text"].strip():
                continue
            prompts.append(Prompt(**cells, image=image))
            rows.append(row.place)
        whole = PromptSet(prompts, name=f"{name} {name_of_part}")
        counts = (
            whole.frame().groupby(["label", "family", "category", "split"], sort=False).size().reset_index(name="n")
        )
        told = [
            *_differences(reader.counts.get(name_of_part, {}), whole, len(missing)),
            *broken,
            *_repeats(whole, rows),
        ]
        found.append(Findings(name_of_part, whole, counts, tuple(missing), tuple(told)))
    return found


def _differences(published: Mapping[str, int], prompts: PromptSet, missing: int) -> list[str]:
    there = {
        "prompts": len(prompts),
        "unsafe": sum(p.label == "unsafe" for p in prompts),
        "pictures": len({id(p.image) for p in prompts if p.image is not None}),
    }
    told = [
        f"{there[what]} {what}, published are {count}"
        for what, count in published.items()
        if there[what] != count and not (what == "pictures" and missing)
    ]
    return [*told, *([f"the pictures of {missing} rows are not there"] if missing else [])]


def _repeats(prompts: PromptSet, rows: Sequence[str]) -> list[str]:
    """What stands in several rows: pictures by hash, texts by row and hash."""
    told = []
    by_picture, by_text = defaultdict(list), defaultdict(list)
    for prompt, place in zip(prompts, rows, strict=True):
        if prompt.image is not None:
            by_picture[image_hash(prompt.image)].append(place)
        if prompt.text.strip():
            by_text[text_hash(prompt.text)].append(place)
    for what, groups in (("pictures", by_picture), ("texts", by_text)):
        several = {value: places for value, places in groups.items() if len(places) > 1}
        if several:
            first = "; ".join(
                f"{value}: {', '.join(places[:SHOWN])}{', …' if len(places) > SHOWN else ''}"
                for value, places in list(several.items())[:SHOWN]
            )
            told.append(f"{len(several)} {what} stand in {sum(map(len, several.values()))} rows ({first})")
    return [*told, *few_texts(prompts, "rows")]
