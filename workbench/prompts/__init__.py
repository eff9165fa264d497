"""Prompts: what a model is asked. Begin with `load_prompts`."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from workbench.axes import SPLITS
from workbench.checking import OneOf, Seed, Whole, checked, plainly
from workbench.errors import PromptError
from workbench.prompts.files import prompts_of_table, read_prompts
from workbench.prompts.mixing import mix
from workbench.prompts.places import Pictures
from workbench.prompts.prompt import Prompt, PromptSet
from workbench.prompts.readers import read_set, readers
from workbench.prompts.splits import check_splits, sample_prompts, split_prompts
from workbench.prompts.tables import READERS, table_of

__all__ = ["Prompt", "PromptSet", "check_splits", "load_prompts", "mix", "read_prompts", "split_prompts"]

WORLDS = ("pocket", "pocket-pooled", "planted")
MOST_PROMPTS = 1_000_000  # a mistyped n of a world would be drawn for days


@checked
def load_prompts(
    name_or_path: Any,
    *,
    root: str | Path | None = None,
    part: str | None = None,
    columns: Mapping[str, str | None] | None = None,
    images: str | Path | Sequence[str | Path] | None = None,
    missing: Literal["raise", "drop"] = "raise",
    split: Annotated[str, OneOf(SPLITS)] | None = None,
    seed: Seed = 0,
    n: Annotated[int, Whole(1, MOST_PROMPTS)] | None = None,
) -> PromptSet:
    """Prompts drawn from an embedded model's world, read from a file, or taken from what is held already.

    Args:
        name_or_path: `"pocket"` or `"planted"`, whose prompts are drawn; `"pocket-pooled"`, whose splits share nouns
            and sentences and differ in pictures only, as Pocket's did at first; the path of a `.jsonl`, `.csv` or
            `.parquet` file (its columns: `workbench.prompts.files.read_prompts`); a DataFrame, a list of dicts or a
            `datasets.Dataset` with the same columns, pictures in its cells or under `images`; or a published set by
            name (`workbench data` lists them), with `root=` or as `"NAME:DIR"`.
        root: The folder of a published set.
        part: Which part of a published set; the main one that is there by default, as the log says.
        columns: Which column of a table holds what, where names differ: `{"image": "image_path", "text": "query"}`; of
            a published set with several texts, which one is asked.
        images: Folders or archives (`.zip`, `.tar`) with pictures that do not lie beside the file.
        missing: `"raise"`, or `"drop"` for leaving out prompts whose picture is not found, as a log line says.
        split: `"selection"`, `"threshold"` or `"test"`; of a table, the prompts that declare it. None: all of them.
        seed: The same seed gives the same prompts. It does not matter to a table that is read whole.
        n: How many prompts. Of a table, a sample without replacement, as even over the two labels as it allows, in its
            order. None: the world's own default, or the whole table.

    Raises:
        ArgumentError: An argument that cannot be meant.
        PromptError: An unknown name, a file or row that cannot be used, or a selection that leaves nothing.

    Examples:
        >>> import workbench as wb
        >>> wb.load_prompts("planted", split="test", n=8)
        PromptSet('planted', 8 prompts: 4 safe, 4 unsafe)

        A file has one row a prompt:

        >>> from pathlib import Path
        >>> row = '{"text": "what is in the picture?", "label": "safe"}'
        >>> _ = Path("mine.jsonl").write_text(row)
        >>> wb.load_prompts("mine.jsonl")[0].id
        'row-1'

        So has what is held already:

        >>> wb.load_prompts([{"text": "what is this?", "label": "safe"}])
        PromptSet('list', 1 prompts: 1 safe, 0 unsafe)
    """
    if isinstance(name_or_path, str) and name_or_path in WORLDS:
        draw = _world(name_or_path)
        size = {} if n is None else {"n": n}
        drawn = draw(split=split, seed=seed, **size)
        recipe = {"name_or_path": name_or_path, "split": split, "seed": seed, "n": n}
        return PromptSet(drawn, name=name_or_path, recipe=recipe)

    beside = [images] if isinstance(images, str | Path) else list(images or ())
    name, published = published_set(name_or_path, root)
    if published is not None:
        prompts = read_set(name, published, part=part, images=beside, missing=missing, columns=columns)
    elif root is not None or part is not None:
        raise PromptError(f"root and part are for published sets: {', '.join(readers())}; got {plainly(name_or_path)}.")
    else:
        prompts = _read(name_or_path, columns=columns, images=beside, missing=missing)
    if split is not None:
        declared = sorted({p.split for p in prompts if p.split})
        prompts = prompts.where(split=split)
        if not len(prompts):
            there = f"the splits it declares are {', '.join(declared)}" if declared else "it declares no splits"
            raise PromptError(
                f"{prompts.name} has no prompts in the split {split!r}: {there}. Leave split out to use all."
            )
    return prompts if n is None else sample_prompts(prompts, n, seed=seed)


def published_set(name: Any, root: str | Path | None = None) -> tuple[str, str | Path | None]:
    """The name and the folder of a published set, from `name` and `root` or from `"NAME:DIR"`; no folder for others."""
    if not isinstance(name, str):
        return "", None
    before, colon, folder = name.partition(":")
    if root is None and colon and before in readers():
        return before, folder
    if root is not None and (name in readers() or not Path(name).suffix):
        return readers().named(name).name, root
    if name in readers():
        raise PromptError(f"{name} is a published set: say where it lies, with root=DIR or as '{name}:DIR'.")
    return name, None


def _read(source: Any, *, images: Sequence[str | Path], **how: Any) -> PromptSet:
    if isinstance(source, str | Path):
        if Path(source).suffix.lower() not in READERS:
            raise PromptError(_unknown(str(source)))
        return read_prompts(source, images=images, **how)
    if (table := table_of(source)) is None:
        raise PromptError(
            "The name or path of prompts was wanted, a DataFrame, a list of dicts or a datasets.Dataset; got "
            f"{plainly(source)}."
        )
    kind = type(source).__name__
    return prompts_of_table(table, f"this {kind}", Pictures(images), name=kind, **how)


def _world(name: str) -> Callable[..., PromptSet]:
    if name.startswith("pocket"):
        from workbench.prompts.worlds.pocket import draw_pooled_prompts, draw_prompts

        return draw_prompts if name == "pocket" else draw_pooled_prompts
    from workbench.prompts.worlds.planted import draw_planted_prompts

    return draw_planted_prompts


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name.partition(":")[0].lower(), (*WORLDS, *readers()), n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return (
        f"No prompts are called {plainly(name)}.{hint} There are {', '.join(map(repr, WORLDS))}, "
        f"files whose names end in {', '.join(READERS)}, and published sets as NAME:DIR: {', '.join(readers())}."
    )
