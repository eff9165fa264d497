"""Prompts: what a model is asked. Begin with `load_prompts`."""

import difflib
from collections.abc import Callable
from numbers import Integral
from pathlib import Path

from workbench.axes import SPLITS
from workbench.errors import PromptError
from workbench.prompts.files import READERS, read_prompts
from workbench.prompts.prompt import Prompt, PromptSet
from workbench.prompts.splits import check_splits, sample_prompts, split_prompts

__all__ = ["Prompt", "PromptSet", "check_splits", "load_prompts", "read_prompts", "split_prompts"]

WORLDS = ("pocket", "planted")


def load_prompts(
    name_or_path: str | Path, *, split: str | None = None, seed: int = 0, n: int | None = None
) -> PromptSet:
    """Prompts drawn from an embedded model's world, or read from a file.

    Args:
        name_or_path: `"pocket"` or `"planted"`, whose prompts are drawn; or the path of a `.jsonl`, `.csv` or
            `.parquet` file (its columns: `workbench.prompts.files.read_prompts`).
        split: `"selection"`, `"threshold"` or `"test"`; of a file, the prompts that declare it. None: all of them.
        seed: The same seed gives the same prompts. It does not matter to a file that is read whole.
        n: How many prompts. Of a file, a sample without replacement, as even over the two labels as the file allows,
            in the order of the file. None: the world's own default, or the whole file.

    Raises:
        PromptError: For an unknown name, a file or row that cannot be used, or a selection that leaves nothing.

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
    """
    if split is not None and split not in SPLITS:
        raise PromptError(f"split must be one of {', '.join(SPLITS)}, or None for all; got {split!r}.")
    if isinstance(seed, bool) or not isinstance(seed, Integral) or seed < 0:
        raise PromptError(f"seed must be a whole number from 0; got {seed!r}.")
    if n is not None and (isinstance(n, bool) or not isinstance(n, Integral) or n < 1):
        raise PromptError(f"n, the number of prompts, must be a whole number from 1, or None for all; got {n!r}.")

    if name_or_path in WORLDS:
        draw = _world(str(name_or_path))
        size = {} if n is None else {"n": int(n)}
        drawn = draw(split=split, seed=int(seed), **size)
        recipe = {"name_or_path": str(name_or_path), "split": split, "seed": int(seed), "n": n}
        return PromptSet(drawn, name=str(name_or_path), recipe=recipe)

    if not isinstance(name_or_path, (str, Path)):
        raise PromptError(f"The name or path of prompts was wanted; got a {type(name_or_path).__name__}.")
    if Path(name_or_path).suffix.lower() not in READERS:
        raise PromptError(_unknown(str(name_or_path)))
    prompts = read_prompts(name_or_path)
    if split is not None:
        declared = sorted({p.split for p in prompts if p.split})
        prompts = prompts.where(split=split)
        if not len(prompts):
            there = f"the splits it declares are {', '.join(declared)}" if declared else "it declares no splits"
            raise PromptError(
                f"{name_or_path} has no prompts in the split {split!r}: {there}. Leave split out to use all."
            )
    return prompts if n is None else sample_prompts(prompts, int(n), seed=int(seed))


def _world(name: str) -> Callable[..., PromptSet]:
    if name == "pocket":
        from workbench.prompts.worlds.pocket import draw_prompts

        return draw_prompts
    from workbench.prompts.worlds.planted import draw_planted_prompts

    return draw_planted_prompts


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name.lower(), WORLDS, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return (
        f"No prompts are called {name!r}.{hint} There are {' and '.join(map(repr, WORLDS))}, "
        f"and files whose names end in {', '.join(READERS)}."
    )
