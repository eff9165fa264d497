"""Where a run came from: its prompts, found again, and its mask.

A stored run is data. It never makes us open a file that it names: prompts of the embedded worlds are drawn again, by a
closed list of names and checked arguments; all others are given by whoever asks, and must be those of the run.
"""

from __future__ import annotations  # stored runs are looked at without torch, which the types below would bring

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from workbench.errors import PromptError, RunError
from workbench.prompts import WORLDS, load_prompts
from workbench.prompts.prompt import Prompt, PromptSet

if TYPE_CHECKING:
    from workbench.models.hooked import HookedLVLM
    from workbench.models.masks import Mask

_MOST_DRAWN = 10**6  # prompts; a record that asks for more is not one of ours


def prompts_of(run: xr.Dataset, prompts: Sequence[Prompt] | str | Path | None = None) -> PromptSet:
    """The prompts of a run, in its order.

    Args:
        run: A run, or some prompts of one.
        prompts: The prompts that were swept, with others among them or not; or what `load_prompts` takes. Without
            them, the prompts of an embedded world are drawn again.

    Returns:
        One prompt for each of the run's.

    Raises:
        PromptError: The prompts cannot be drawn again (saying what to give), or those given are not the run's.
    """
    ids, name = [str(i) for i in run["prompt"].values], ""
    if prompts is None:
        prompts, name = _drawn_again(run), "Drawn again, its prompts are others in this version: "
    elif isinstance(prompts, str | Path):
        prompts = load_prompts(prompts)
    by_id = {prompt.id: prompt for prompt in prompts}
    if lacking := [i for i in ids if i not in by_id]:
        raise PromptError(
            f"{name}The run has {len(ids)} prompts, and {len(lacking)} of them are not among the {len(by_id)} given "
            f"(the first is {lacking[0]!r}). Give the prompts that were swept: prompts=…, or --prompts FILE."
        )
    found = PromptSet(by_id[i] for i in ids)
    if "content_hash" in run.coords:
        recorded = [str(h) for h in run["content_hash"].values]
        differ = [p.id for p, hashed in zip(found, recorded, strict=True) if p.content_hash() != hashed]
    else:
        differ = [] if found.content_hash() == run.attrs.get("prompt_hash") else ids
    if differ:
        raise PromptError(
            f"{name}The prompts given have the ids of the run but not its contents: {len(differ)} of {len(ids)} have "
            f"another text, picture or label (the first is {differ[0]!r}). Give the prompts that were swept, in the "
            "same version: prompts=…, or --prompts FILE."
        )
    return found


def _drawn_again(run: xr.Dataset) -> PromptSet:
    """Prompts of an embedded world, from the run's record of how they were drawn."""
    try:
        record: Any = json.loads(run.attrs.get("prompt_source") or "{}")
        name, split, seed, n = (record.get(key) for key in ("name_or_path", "split", "seed", "n"))
    except (ValueError, TypeError, AttributeError):
        name = split = seed = n = None
    if name not in WORLDS or not (n is None or (isinstance(n, int) and n <= _MOST_DRAWN)):
        raise PromptError(
            "The run does not say how to draw its prompts again: only those of "
            f"{' and '.join(map(repr, WORLDS))} can be, and a file that a run names is never opened. Give the prompts "
            "that were swept: prompts=…, or --prompts FILE."
        )
    return load_prompts(name, split=split, seed=seed, n=n)


def check_model(run: xr.Dataset, model: HookedLVLM) -> None:
    """Refuse a model that is not the run's: other weights, or the same with other tables, words or picture settings.

    Raises:
        RunError: Saying what differs.
    """
    from workbench.models.fingerprint import fingerprint

    recorded = str(run.attrs.get("weight_hash", ""))
    if recorded and recorded != model.weight_hash:
        raise RunError(
            f"The run was made with weights {recorded} of {run.attrs.get('model', '')!r}; the model given has weights "
            f"{model.weight_hash} ({model.name!r}). Load the model of the run, or sweep this one."
        )
    recorded = str(run.attrs.get("fingerprint", ""))
    if recorded and recorded != (now := fingerprint(model)):
        raise RunError(
            f"The model given has the weights of the run, but reads prompts otherwise (fingerprint {now}, the run's is "
            f"{recorded}): its chat template, tokenizer, picture settings, configuration or rotary tables are others. "
            "Load it as it was swept, or sweep it as it is."
        )


def mask_of(run: xr.Dataset) -> Mask:
    """The mask a run was made with, from its attributes; it takes z from the run's own prompts where the run did.

    Raises:
        RunError: The run does not record its mask, or records none that exists, or one that took z from prompts which
            it does not hold.
    """
    from workbench.models.masks import Mask
    from workbench.models.sources import OF_THE_CALL, Vectors

    names = Mask().describe()
    if missing := [name for name in names if name not in run.attrs]:
        raise RunError(
            f"The run does not record {', '.join(missing)}, so the model cannot be masked as it was. "
            "Use stored values only (no model=), or sweep again with this version."
        )
    found = {name: run.attrs[name] for name in names}
    found |= {name: run.attrs[name] for name in ("mask_phase", "mask_bias", "mask_seed") if name in run.attrs}
    key: Any = run.attrs.get("mask_source")
    if "mask_vectors" in run:
        found["mask_source"] = Vectors(run["mask_vectors"].values, str(key))
    elif run.attrs["mask_form"] == "redirect":
        found["mask_source"] = tuple(json.loads(key)) if str(key).startswith("[") else key
    elif key is not None and not str(key).startswith(OF_THE_CALL):
        raise RunError(
            f"The run's mask took z from other prompts than its own (their hash is {key}), and a run does not hold "
            "those. Use stored values only (no model=)."
        )
    return Mask(**{name.removeprefix("mask_"): value for name, value in found.items()})
