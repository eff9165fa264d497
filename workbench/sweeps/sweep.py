"""`sweep`: mask every head on every prompt, and return the labelled run."""

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xarray as xr
from rich.console import Console

from workbench.axes import PROJECTIONS
from workbench.errors import MaskError, PromptError, WorkbenchError
from workbench.models.hooked import HookedLVLM
from workbench.models.loading import load_model
from workbench.models.masks import Mask
from workbench.prompts import load_prompts
from workbench.prompts.prompt import Prompt, PromptSet
from workbench.runs.job import Job, Partition, blocks, cells_of_heads, check_groups, check_readout
from workbench.runs.memory import Memory, Sink
from workbench.runs.opening import open_store
from workbench.runs.schema import layout, provenance, recipe, skeleton
from workbench.sweeps import positions
from workbench.sweeps.engines.registry import get_engine
from workbench.sweeps.execution import run_sweep, work_line
from workbench.sweeps.plan import plan
from workbench.sweeps.tasks import Encoder, Sweep

# Masked final states are kept by default when all of them together are at most this large.
STATE_BUDGET = 512 * 2**20


def sweep(
    model: HookedLVLM | str | Path,
    prompts: Sequence[Prompt] | Prompt | str | Path,
    *,
    projections: Sequence[str] = PROJECTIONS,
    mask: Mask | None = None,
    engine: str = "exact",
    out: str | Path | None = None,
    heads: Sequence[tuple[int, int]] | None = None,
    groups: Sequence[Sequence[tuple[int, int]]] | None = None,
    keep_states: bool | str = "auto",
    rows: int | None = None,
    progress: bool = True,
    engine_options: Mapping[str, Any] | None = None,
    seed: int = 0,
    repair: bool = False,
    cluster: str | None = None,
    readout: Sequence[str | int] | str | int | None = None,
) -> xr.Dataset:
    """Mask the projections of every head on every prompt and measure what changes at the last prompt position.

    Args:
        model: From `load_model`, or a name or path that it takes.
        prompts: Any sequence of prompts, one prompt, or a name or path that `load_prompts` takes.
        projections: Of "query" and "value".
        mask: How heads are masked; `Mask()` by default.
        engine: "exact" (from the masked layer on); "prefix" (the same numbers, what prompts share at their beginning
            computed once); "sketch" (estimates for all heads, exact numbers for the best); "race" (which heads win
            under a rule); "naive" (one full forward a head; the reference).
        out: Store the run here as a Zarr group, block by block; the same call later goes on where it stopped.
        heads: Only these (layer, head) cells; all others are NaN.
        groups: Sets of (layer, head) masked together; the run then has a dimension `group` in place of layer, head.
        keep_states: Keep the masked final states too (needed by angles over data sets); "auto" when they are small.
        rows: Most rows in one batch; by default from the memory that is free, recorded with the run.
        progress: Show a progress bar with the time left, and at the end the work done against the naive count.
        engine_options: What the engine takes besides: `DEFAULTS` in `workbench.finding.sketch` and `….race`.
        seed: Of what an engine draws.
        repair: Recompute parts of the store at `out` that are damaged, in place of stopping at them.
        readout: Where states and logits are read: "final", and decoder layers (0-based), whose output at the last
            position goes through the final norm and the unembedding (logit lens). By default the final state alone;
            else the run has a dimension `readout`, and heads above a read-out are NaN there.
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
    mask = mask or Mask()
    if isinstance(prompts, str | Path):
        prompts = load_prompts(prompts)
    elif not isinstance(prompts, PromptSet):
        prompts = PromptSet([prompts] if isinstance(prompts, Prompt) else prompts)
    model = load_model(model) if isinstance(model, str | Path) else model
    projections = _check(model, prompts, projections, engine, heads, groups)
    options, read = get_engine(engine).options(engine_options or {}), check_readout(model, readout)
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
    )
    given, order = prompts, get_engine(engine).order
    if order is not None:
        prompts = PromptSet((given[i] for i in order(given, seed)), name=given.name, recipe=given.recipe)
    encode = Encoder(model, prompts)
    encoded = list(encode.all())
    naive = job.naive_work(model, encoded)
    get_engine(engine).check(job)
    sink = _open_sink(model, prompts, job, engine, options, seed, out, rows, max(e.n_tokens for e in encoded), repair)
    del encoded
    try:
        if not sink.attrs.get("complete"):
            bounds = tuple(blocks(len(prompts), sink.partition.block))
            planned = Sweep(model, prompts, encode, job, sink, options, seed, bounds)
            with model.lock:
                run_sweep(planned, engine, naive, progress, cluster)
        run = sink.finish().sel(prompt=[prompt.id for prompt in given])
    finally:
        sink.close()
    if progress:
        lines = (work_line(run.attrs), get_engine(engine).report(run.attrs), positions.report(run.attrs))
        Console(stderr=True).print(*filter(None, lines), sep="\n", highlight=False)
    return run


def _check(
    model: HookedLVLM,
    prompts: PromptSet,
    projections: Sequence[str],
    engine: str,
    heads: Any,
    groups: Any,
) -> tuple[str, ...]:
    if not isinstance(model, HookedLVLM):
        raise WorkbenchError(f"sweep needs a model from workbench.load_model; got a {type(model).__name__}.")
    if not len(prompts):
        raise PromptError("There are no prompts to sweep. Load some with workbench.load_prompts('pocket').")
    projections = (projections,) if isinstance(projections, str) else tuple(projections)
    if not projections or set(projections) - set(PROJECTIONS) or len(set(projections)) < len(projections):
        raise MaskError(f"projections must name each of {', '.join(PROJECTIONS)} at most once; got {projections}.")
    get_engine(engine)
    if heads is not None and groups is not None:
        raise MaskError("Give either heads (single cells) or groups (head sets masked together), not both.")
    return projections


def _keeps_states(wanted: bool | str, model: HookedLVLM, n_states: int, n_projections: int, mask: Mask) -> bool:
    if wanted not in (True, False, "auto"):
        raise WorkbenchError(f"keep_states must be True, False or 'auto'; got {wanted!r}.")
    if wanted != "auto":
        return bool(wanted)
    n_rows = len(mask.row_heads(model.n_heads, model.n_kv_heads))
    return 4 * n_states * n_projections * model.n_layers * n_rows * model.d_model <= STATE_BUDGET


def _open_sink(
    model: HookedLVLM,
    prompts: PromptSet,
    job: Job,
    engine: str,
    options: Mapping[str, Any],
    seed: int,
    out: str | Path | None,
    rows: int | None,
    longest: int,
    repair: bool,
) -> Sink:
    """A place for the run; one that was begun before keeps the partition it was begun with."""
    bare = skeleton(model, prompts, job, job.groups)
    what = recipe(model, prompts, job, engine, options, seed)
    store = None if out is None else open_store(out, what, bare, repair=repair)
    if store is not None and store.layout:
        return store
    partition = plan(model, longest, rows=rows, block=get_engine(engine).block)
    partition = Partition(min(partition.block, len(prompts)), partition.rows)
    variables = layout(
        model,
        len(prompts),
        job,
        partition.block,
        n_groups=None if job.groups is None else len(job.groups),
    )
    began = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    attrs = what | provenance(model, prompts, partition) | {"started": began, "complete": False, "wall_s": 0.0}
    if store is None:
        return Memory(bare, variables, attrs, partition)
    try:
        store.create(bare, variables, attrs, partition)
    except BaseException:
        store.close()
        raise
    return store
