"""`sweep`: mask every head on every prompt, and return the labelled run."""

import datetime
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import xarray as xr
from rich.console import Console

from workbench.axes import Head, as_heads
from workbench.checking import Converted, OneOf, Place, Seed, Whole, checked
from workbench.errors import MaskError, PromptError, RunError
from workbench.models.bound import with_source
from workbench.models.hooked import HookedLVLM
from workbench.models.loading import SomeModel
from workbench.models.masks import Mask, SomeMask
from workbench.prompts import load_prompts
from workbench.prompts.prompt import Prompt, PromptSet, as_prompts
from workbench.runs.job import (
    MEASURES,
    Job,
    Partition,
    blocks,
    cells_of_heads,
    check_groups,
    check_measures,
    check_projections,
    check_readout,
)
from workbench.runs.memory import BASE, Memory, Sink, unit_of
from workbench.runs.opening import NOT_ASKED, open_store, prompt_ids, skipped
from workbench.runs.schema import layout, provenance, recipe, skeleton
from workbench.runs.zarr_store import Store
from workbench.sweeps import positions
from workbench.sweeps.engines.registry import engines
from workbench.sweeps.execution import progress_bar, run_sweep, work_line
from workbench.sweeps.operations import foreseen
from workbench.sweeps.plan import plan
from workbench.sweeps.tasks import Encoder, Sweep, note_left_out

# Masked final states are kept by default when all of them together are at most this large.
STATE_BUDGET = 512 * 2**20
MOST_ROWS = 2**20


def _as_cluster(value: Any) -> str:
    kind, colon, count = value.partition(":") if isinstance(value, str) else ("", "", "")
    if not kind or (kind == "local" and colon and not (count.isascii() and count.isdecimal() and int(count) > 0)):
        raise ValueError("must be 'local', 'local:N' with N workers, 'auto', or the address of a Ray cluster")
    plain: str = value
    return plain


def as_prompt_set(value: Any) -> PromptSet:
    """The prompts that are meant: any sequence of them, one, or what `load_prompts` takes."""
    return as_prompts(load_prompts(value) if isinstance(value, str | Path) else value)


SomePrompts = Annotated[Sequence[Prompt] | Prompt | str | Path, Converted(as_prompt_set)]


@checked
def sweep(
    model: SomeModel,
    prompts: SomePrompts,
    *,
    projections: Sequence[str] | str | None = None,
    mask: SomeMask = None,
    engine: Annotated[str, OneOf(engines)] = "exact",
    out: Annotated[str | Path, Place()] | None = None,
    heads: Annotated[Sequence[Head], Converted(as_heads)] | None = None,
    groups: Any = None,
    keep_states: Literal["auto"] | bool = "auto",
    rows: Annotated[int, Whole(1, MOST_ROWS)] | None = None,
    progress: bool = True,
    engine_options: Mapping[str, Any] | None = None,
    seed: Seed = 0,
    repair: bool = False,
    cluster: Annotated[str, Converted(_as_cluster)] | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    readout: Sequence[str | int] | str | int | None = None,
    measures: Sequence[str] | str = MEASURES,
) -> xr.Dataset:
    """Mask the projections of every head on every prompt and measure what changes at the last prompt position.

    Args:
        model: From `load_model`, or a name or path that it takes.
        prompts: Any sequence of prompts, one prompt, or a name or path that `load_prompts` takes.
        projections: Of "query", "key" and "value"; by default those of the mask's form, query and value for most.
        mask: How heads are masked, a `Mask` or the name of its form; `Mask()` by default. A form that takes z of other
            prompts takes them from these, unless it names its own.
        engine: "exact" (from the masked layer on); "prefix" (the same numbers, what prompts share at their beginning
            computed once); "naive" (one full forward a head; the reference); "find" (estimates of all heads, exact
            numbers where they decide which come first: what `find_heads` runs).
        out: Store the run here as a Zarr group, block by block; the same call later goes on where it stopped. The run
            that is returned is then read from there when its values are asked for.
        heads: Only these (layer, head) cells; all others are NaN.
        groups: Sets of (layer, head) masked together; the run then has a dimension `group` in place of layer, head.
        keep_states: Keep the masked final states too (needed by angles over data sets); "auto" when they are small.
        rows: Most rows in one batch; by default from the memory that is free, recorded with the run.
        progress: Show a progress bar with the time left, and at the end the work done against the naive count.
        engine_options: What the engine takes besides: `DEFAULTS` in `workbench.finding.engine`.
        seed: Of what an engine draws.
        repair: Recompute parts of the store at `out` that are damaged, in place of stopping at them.
        on_error: What happens to a prompt that cannot be computed (an overflow, a picture that the processor refuses, a
            template that does not take it): "raise" ends the sweep, naming it; "skip" leaves it NaN, lists it in the
            attribute `skipped`, and criteria leave it out. In both cases what is done is kept, and the same store also
            takes a call with some of its prompts: the others stay NaN.
        readout: Where states and logits are read: "final", and decoder layers (0-based), whose output at the last
            position goes through the final norm and the unembedding (logit lens). By default the final state alone;
            else the run has a dimension `readout`, and heads above a read-out are NaN there.
        measures: Which variables of a cell are computed; all by default. Without kl, js, tv, top1_change and
            refusal_change no masked state is unembedded.
        cluster: Compute on a Ray cluster: "local", "local:N" (N workers), or an address (`workbench.sweeps.cluster`).

    Returns:
        The run. Dimensions prompt, projection, layer, head; variables with units in their attributes.

    Raises:
        PromptError: For prompts that cannot be used, or none.
        MaskError: For a mask, projection or head that the model does not have, or that could not change anything.
        RunError: For a store that is another run's, damaged, or being written to.

    Examples:
        >>> import workbench as wb
        >>> model = wb.load_model("planted")
        >>> prompts = wb.load_prompts("planted", n=24)
        >>> run = wb.sweep(model, prompts, out="run.zarr", progress=False)
        >>> run["deflection"].dims
        ('prompt', 'projection', 'layer', 'head')
        >>> unsafe = run["deflection"][run["label"] == "unsafe"]
        >>> bool(unsafe.sel(projection="query", layer=3, head=1).mean() > 20)  # degrees, the planted head
        True
    """
    assert isinstance(model, HookedLVLM) and isinstance(prompts, PromptSet)  # noqa: PT018 - converted
    mask = mask or Mask()
    projections = check_projections(mask, projections)
    if heads is not None and groups is not None:
        raise MaskError("Give either heads (single cells) or groups (head sets masked together), not both.")
    chosen = engines().named(engine)
    options, read = chosen.options(engine_options or {}), check_readout(model, readout)
    job = Job(
        projections,
        mask,
        None if heads is None else cells_of_heads(model, heads, mask, len(projections)),
        groups is None and _keeps_states(keep_states, model, len(prompts) * max(1, len(read)), len(projections), mask),
        None if groups is None else check_groups(model, groups, mask),
        tuple(options.get("estimates", ())),
        options.get("directions", 0),
        seed,
        read,
        check_measures(measures),
    )
    given = prompts
    if chosen.order is not None:
        order = chosen.order(given, seed, options)
        prompts = PromptSet((given[i] for i in order), name=given.name, recipe=given.recipe)
    chosen.check(job)
    with progress_bar(progress, transient=True) as shown:
        job = replace(job, mask=with_source(model, mask, given, partial(_shown, shown)))
    what, bare = recipe(model, prompts, job, engine, options, seed), skeleton(model, prompts, job, job.groups)
    sink: Sink | None = None if out is None else open_store(out, what, bare, repair=repair, skip=on_error == "skip")
    try:
        if sink is None or not sink.attrs.get("complete"):
            units = (BASE, *(map(unit_of, job.layers(model)) if job.groups is None else ()))
            chooses = bool(chosen.defaults)
            encode = _encoder(model, prompts, job.mask, sink, units, skip=on_error == "skip", chooses=chooses)
            lengths = _lengths(encode, progress)
            images = sum(p.image is not None for i, p in enumerate(encode.prompts) if i not in encode.left_out)
            sink = _begun(sink, model, prompts, job, engine, bare, what, rows, max(lengths))
            bounds = tuple(blocks(len(encode.prompts), sink.partition.block))
            _check_inputs(encode, sink, bounds, progress)
            note_left_out(encode, sink)
            planned = Sweep(model, encode.prompts, encode, job, sink, options, seed, bounds)
            with model.lock:
                run_sweep(planned, engine, foreseen(planned, lengths, images), progress, cluster)
        run, ids = sink.finish(), [prompt.id for prompt in given]
        if run["prompt"].values.tolist() != ids:
            run = run.sel(prompt=ids)
    finally:
        if sink is not None:
            sink.close()
    if progress:
        why = json.loads(run.attrs.get("skipped", "{}"))
        lines = (
            work_line(run.attrs),
            chosen.report(run.attrs),
            positions.report(run.attrs),
            *(f"Left out: {prompt.id}: {why[prompt.id]}" for prompt in given if prompt.id in why),
        )
        Console(stderr=True).print(*filter(None, lines), sep="\n", highlight=False, markup=False)
    return run


def _shown(bar: Any, prompts: Iterable[Prompt]) -> Iterator[Prompt]:
    """The prompts whose z a mask takes the mean of, counted on a bar."""
    known = list(prompts)
    line = bar.add_task("means of z, prompts", total=len(known))
    for prompt in known:
        yield prompt
        bar.advance(line)


def _encoder(
    model: HookedLVLM,
    prompts: PromptSet,
    mask: Mask,
    sink: Sink | None,
    units: Sequence[int],
    *,
    skip: bool,
    chooses: bool,
) -> Encoder:
    """The prompts in the order in which they are stored; others of blocks that are not finished are left out."""
    begun = sink if isinstance(sink, Store) and sink.layout else None
    stored = prompt_ids(begun) if begun else [p.id for p in prompts]
    if chooses and (skip or stored != [p.id for p in prompts]):
        raise RunError(
            "An engine that chooses heads by what the prompts before gave takes all of its prompts or none: leave "
            "on_error='skip' out, and give the prompts that the store was begun with."
        )
    by_id = {prompt.id: prompt for prompt in prompts}
    known = skipped(begun) if begun else {}
    left_out = {place: known[i] for place, i in enumerate(stored) if i in known}
    for start, stop in blocks(len(stored), begun.partition.block) if begun else ():
        assert begun is not None
        finished = all(begun.done(start, unit) for unit in units)
        for place in (p for p in range(start, stop) if stored[p] not in {**by_id, **known}):
            left_out[place] = "" if finished else NOT_ASKED
            if not finished:
                begun.blank(start, stop, place)
    # A prompt that was not given is never encoded; its place is kept for it.
    in_order = PromptSet((by_id.get(i) or Prompt(id=i, text=NOT_ASKED) for i in stored), name=prompts.name)
    return Encoder(model, in_order, left_out, skip=skip, mask=mask)


def _lengths(encode: Encoder, progress: bool) -> list[int]:
    """Tokens of the prompts that can be swept. What is wrong with a text is said here, before anything is computed."""
    with progress_bar(progress, transient=True) as shown:
        line = shown.add_task("reading prompts", total=len(encode.prompts))
        lengths = list(encode.lengths(lambda: shown.advance(line)))
    if not lengths:
        raise PromptError(f"None of the prompts can be swept. The first: {next(iter(encode.left_out.values()))}")
    return lengths


def _check_inputs(encode: Encoder, sink: Sink, bounds: Sequence[tuple[int, int]], progress: bool) -> None:
    """Refuse to go on where prompts are encoded otherwise than when their blocks were computed."""
    begun = [place for start, stop in bounds if sink.begun(start) for place in range(start, stop)]
    with progress_bar(progress and bool(begun), transient=True) as shown:
        line = shown.add_task("comparing with the store, prompts", total=len(begun))
        encode.check(begun, lambda: shown.advance(line))
    if differ := sink.expect(encode.inputs):
        raise RunError(
            f"{getattr(sink, 'path', '')} was begun with other inputs: prompt {encode.prompts[differ[0]].id!r} and "
            f"{len(differ) - 1} more give other token ids or pixels now than when their blocks were computed. Put the "
            "tokenizer and the processor back as they were, or store this run elsewhere."
        )


def _keeps_states(wanted: bool | str, model: HookedLVLM, n_states: int, n_projections: int, mask: Mask) -> bool:
    if wanted != "auto":
        return bool(wanted)
    n_rows = len(mask.row_heads(model.n_heads, model.n_kv_heads))
    return 4 * n_states * n_projections * model.n_layers * n_rows * model.d_model <= STATE_BUDGET


def _begun(
    sink: Sink | None,
    model: HookedLVLM,
    prompts: PromptSet,
    job: Job,
    engine: str,
    bare: xr.Dataset,
    what: Mapping[str, Any],
    rows: int | None,
    longest: int,
) -> Sink:
    """A place for the run; one that was begun before keeps the partition it was begun with."""
    if isinstance(sink, Store) and sink.layout:
        return sink
    partition = plan(model, longest, rows=rows, block=engines().named(engine).block)
    partition = Partition(min(partition.block, len(prompts)), partition.rows)
    n_groups = None if job.groups is None else len(job.groups)
    variables = layout(model, len(prompts), job, partition.block, n_groups=n_groups)
    began = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    attrs = {**what, **provenance(model, prompts, partition), "started": began, "complete": False, "wall_s": 0.0}
    if not isinstance(sink, Store):
        return Memory(bare, variables, attrs, partition)
    sink.create(bare, variables, attrs, partition)
    return sink
