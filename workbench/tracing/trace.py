"""`trace`: how the signal flows from picture and text to the last position, pair by pair."""

import datetime
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import xarray as xr
from rich.console import Console

from workbench.axes import Head, as_heads
from workbench.checking import Converted, Place, Whole, checked
from workbench.errors import MaskError, RunError
from workbench.models.hooked import HookedLVLM
from workbench.models.loading import SomeModel
from workbench.models.masks import Mask
from workbench.prompts.prompt import PromptSet
from workbench.runs.job import Partition, check_heads
from workbench.runs.places import local_path
from workbench.runs.schema import provenance
from workbench.sweeps.execution import progress_bar
from workbench.sweeps.plan import plan
from workbench.sweeps.process import Terminated
from workbench.sweeps.sweep import MOST_ROWS, SomePrompts
from workbench.tracing.job import Job, Parts
from workbench.tracing.lens import projections
from workbench.tracing.pairs import Pair, lined_up
from workbench.tracing.records import ALL, COMPONENTS, HEADS, recipe
from workbench.tracing.stored import check_is_trace, open_trace, save_trace

EVERY = (*COMPONENTS, HEADS)
SOURCES = 5  # heads whose paths are followed when none are named
MOST_SOURCES = 4096


def _as_components(value: Any) -> tuple[str, ...]:
    given = (value,) if isinstance(value, str) else tuple(value)
    if not given or set(given) - set(EVERY):
        raise ValueError(f"must be of {', '.join(EVERY)}")
    return tuple(name for name in EVERY if name in given)


def _as_sources(value: Any) -> int | list[Head]:
    if isinstance(value, int) and not isinstance(value, bool):
        return Whole(0, MOST_SOURCES).check(value)
    try:
        return as_heads(value)
    except ValueError as error:
        raise ValueError(f"must be a number of heads, or {str(error).removeprefix('must be ')}") from error


@checked
def trace(
    model: SomeModel,
    prompts: SomePrompts,
    *,
    components: Annotated[Sequence[str] | str, Converted(_as_components)] = EVERY,
    heads: Annotated[Sequence[Head], Converted(as_heads)] | None = None,
    sources: Annotated[Any, Converted(_as_sources)] = SOURCES,
    window: Annotated[int, Whole(0)] | None = None,
    out: Annotated[str | Path, Place()] | None = None,
    rows: Annotated[int, Whole(1, MOST_ROWS)] | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    progress: bool = True,
) -> xr.Dataset:
    """Follow what tells an unsafe prompt from its safe twin through the layers to the last position.

    For every pair, in both directions (`noise`: the unsafe prompt's pass with the safe one's numbers in it, `denoise`:
    the reverse): the residual stream after each layer, what attention and MLP give, and z of single heads are put from
    one pass into the other at one group of tokens, and what lies above is computed anew. Then attention is cut, flow by
    flow, in windows of layers; the residual stream is read after every layer; and the change of some heads is followed
    to later heads, straight and through what lies between.

    The groups are found from the encoded prompts: `picture` (its tokens), `hazard` (tokens of the text in which the
    twins differ), `template` (the chat template's own, a system prompt, earlier turns), `words` (all others), `last`
    (the last position), and `all`. A group that a pair lacks is NaN there; without pictures, so is `picture`.

    Args:
        model: From `load_model`, or a name or path that it takes.
        prompts: Pairs: prompts of both labels that share `pair_id`, or two prompts, unsafe and safe; or a name or path
            that `load_prompts` takes.
        components: Of "residual", "attention", "mlp" and "heads".
        heads: The (layer, head) whose z is patched one by one; all by default.
        sources: The heads whose paths to later heads are followed: (layer, head), or how many of those that brought
            the final state nearest to the twin's (with z patched at all tokens, over all pairs and both directions).
            0 follows none.
        window: How many layers attention is cut in at once; an eighth of them by default, at least one. 0 cuts none.
        out: Store the trace here, as a Zarr group. After an interrupt the pairs that were finished are there, and the
            same call goes on with the others.
        rows: Most rows (a prompt under one patch) in one batch; by default from the memory that is free.
        on_error: What happens to prompts without a twin, and to twins that do not line up: "raise" stops at the first,
            naming it; "skip" leaves them out and lists them in the attribute `skipped`.
        progress: Show a bar with the time left, and at the end the work done.

    Returns:
        The trace. Dimensions pair, direction, component, layer, head, token_group; side, flow, window; effect, source.
        Units and meanings are in the variables' attributes, counts of the work done in the trace's. What did not change
        a number is exactly 0.

    Raises:
        PromptError: No pairs, or twins that do not line up, saying what differs.
        MaskError: Heads that the model does not have, or a window longer than it.
        RunError: States from which nothing can be measured; another trace in the place of `out`.

    Examples:
        >>> import workbench as wb
        >>> trace = wb.trace("planted", wb.load_prompts("planted", split="test", n=4), progress=False)
        >>> of_heads = trace["head_recovered"].sel(token_group="all").mean(["pair", "direction"])
        >>> best = of_heads.argmax(["layer", "head"])
        >>> int(best["layer"]), int(best["head"])
        (3, 1)
    """
    assert isinstance(model, HookedLVLM) and isinstance(prompts, PromptSet)  # noqa: PT018 - converted
    chosen = None if heads is None else check_heads(model, heads, Mask())
    if not isinstance(sources, int):
        sources = check_heads(model, sources, Mask())
    elif HEADS not in components:
        sources = 0
    width = max(1, math.ceil(len(model.masked_layers) / 8)) if window is None else window
    if width > len(model.masked_layers):
        raise MaskError(
            f"A window of {width} layers was wanted, and {model.name!r} has {len(model.masked_layers)} whose attention "
            "can be cut. Give a smaller one."
        )
    what = recipe(model, prompts, components, chosen, sources, width)
    known = _known(out, what)
    if known is not None and known.attrs["complete"]:
        return known
    job = Job(model, tuple(components), chosen, width)
    job.count_on({} if known is None else known.attrs)
    with progress_bar(progress) as shown, model.lock, torch.no_grad():
        line = shown.add_task("lining up twins, pairs", total=len(prompts) // 2)
        pairs, left = lined_up(model, prompts, skip=on_error == "skip", advance=lambda: shown.advance(line))
        line = shown.add_task("trace, pairs x layers", total=len(pairs) * job.steps)
        attrs = {**what, **_origin(model, prompts, rows), "skipped": json.dumps(left), "complete": False}
        parts = Parts(out, attrs, {} if known is None else {str(n): known.sel(pair=[n]) for n in known["pair"].values})
        try:
            for pair in pairs:
                if (name := pair.args[1]) in parts.of:
                    shown.advance(line, job.steps)
                else:
                    twins = pair()
                    job.most_tokens = _most_tokens(model, twins, rows)
                    parts.add(job.traced(twins, lambda: shown.advance(line)), name, job.counts())
            found = parts.joined([pair.args[1] for pair in pairs])
            followed = first_heads(found, sources) if isinstance(sources, int) else sources
            line = shown.add_task("paths, pairs x sources", total=len(pairs) * len(followed))
            if followed:
                found = found.merge(job.paths(pairs, followed, lambda n: shown.advance(line, n)))
        except (KeyboardInterrupt, Terminated) as stopped:
            message = parts.stopped(job.counts())
            if isinstance(stopped, Terminated):
                Console(stderr=True).print(message, highlight=False, markup=False)
                raise
            raise KeyboardInterrupt(message) from None
    found["lens_projection"].values[:] = projections(found["residual"].values)
    found.attrs = {**attrs, **job.counts(), "complete": True}
    if out is not None:
        save_trace(found, out)
    if progress:
        Console(stderr=True).print(work_line(found.attrs), highlight=False, markup=False)
    return found


def _most_tokens(model: HookedLVLM, twins: Pair, rows: int | None) -> int:
    longest = twins.encoded[0].n_tokens
    return plan(model, longest, rows=rows).rows * longest


def first_heads(found: xr.Dataset, k: int) -> list[Head]:
    """The heads whose z at all tokens brought the final state nearest to the twin's, on the mean; ties in order."""
    if not k:
        return []
    near = found["head_recovered"].sel(token_group=ALL).fillna(0.0).mean(["pair", "direction"])
    done = found["head_deflection"].sel(token_group=ALL).notnull().any(["pair", "direction"]).values
    ranked = np.argsort(np.where(done, -near.values, np.inf).ravel(), kind="stable")[: min(k, int(done.sum()))]
    return [divmod(int(place), found.sizes["head"]) for place in ranked]


def _origin(model: HookedLVLM, prompts: PromptSet, rows: int | None) -> dict[str, Any]:
    began = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    made = provenance(model, prompts, Partition(1, rows or 0))
    del made["partition"]
    return {**made, "rows": rows or 0, "started": began}


def _known(out: str | Path | None, what: Mapping[str, Any]) -> xr.Dataset | None:
    """The stored trace that is to be gone on with; None where there is none.

    Raises:
        RunError: Another one.
    """
    place = None if out is None else local_path(out)
    if out is not None and place is None:
        raise RunError(f"A trace is written to a local folder; {out!r} is an address. Copy it there afterwards.")
    if place is None or not place.exists() or not any(place.iterdir()):
        return None
    check_is_trace(place)
    known = open_trace(place)
    if wrong := [name for name, value in what.items() if known.attrs.get(name) != value]:
        listed = "; ".join(f"{n} is {known.attrs.get(n)!r} there and {what[n]!r} here" for n in wrong[:3])
        raise RunError(f"{place} holds another trace: {listed}. Nothing was overwritten; store this one elsewhere.")
    return known


def work_line(attrs: Mapping[str, Any]) -> str:
    """One line on the work a trace took, against one full forward a patch."""
    done, naive = attrs["layer_tokens"], attrs["naive_layer_tokens"]
    share = f" ({done / naive:.1%} of one full forward a patch, {naive:,})" if naive else ""
    return f"{attrs['patches']:,} patched passes: {done:,} layer-tokens{share} in {attrs['wall_s']:.1f} s."
