"""`Material`: what the studies of one call share: the model, the prompts, and every sweep, made once and kept."""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import xarray as xr
from rich.console import Console
from rich.progress import track

from workbench.comparison.arena import arena
from workbench.comparison.measures import check_names
from workbench.criteria import score
from workbench.detectors import list_detectors
from workbench.models.fingerprint import fingerprint
from workbench.models.hooked import HookedLVLM
from workbench.prompts.caveats import caveats
from workbench.prompts.prompt import PromptSet
from workbench.prompts.splits import sample_prompts, split_prompts
from workbench.runs.reading import prompt_coord
from workbench.runs.splits import with_splits
from workbench.studies.measuring import BOOTSTRAP, PERMUTATIONS, Chosen, Sources, families
from workbench.sweeps.sweep import sweep

T = TypeVar("T")


class Material:
    """What the studies of one call share.

    Args:
        model: The model that is studied.
        prompts: With both labels. Without declared splits they are dealt, seeded, and keep what is dealt.
        others: Other models, and other prompt sets.
        runs: A folder where sweeps are kept, so that a later call shares them and a stopped one goes on; None keeps
            them in memory.
        seed: Of every draw.
        progress: Show bars with the time left.
    """

    def __init__(
        self,
        model: HookedLVLM,
        prompts: PromptSet,
        others: Sequence[HookedLVLM | PromptSet] = (),
        *,
        runs: Path | None = None,
        seed: int = 0,
        progress: bool = True,
    ) -> None:
        self.model, self.seed, self.runs, self.progress = model, seed, runs, progress
        self.models = tuple(other for other in others if isinstance(other, HookedLVLM))
        self.sets = tuple(_split(other, seed) for other in others if isinstance(other, PromptSet))
        self.prompts = _split(prompts, seed)
        self._made: dict[str, xr.Dataset] = {}

    @property
    def about(self) -> str:
        """The model and the prompts in a sentence, and what is to be known of these prompts."""
        unsafe = sum(p.label == "unsafe" for p in self.prompts)
        said = f"{unsafe} unsafe and {len(self.prompts) - unsafe} safe prompts put to {self.model.name}"
        others = [m.name for m in self.models] + [f"{s.name} ({len(s)} prompts)" for s in self.sets]
        said += f"; beside it {', '.join(others)}." if others else "."
        return said + "".join(f" Mind: {sentence}." for sentence in caveats(self.prompts))

    @property
    def key(self) -> str:
        """Equal for the same weights, prompts, others and seed, and the same code of this package."""
        parts = [_code(), *(fingerprint(m) for m in (self.model, *self.models))]
        parts += [_prompts_key(s) for s in (self.prompts, *self.sets)]
        return _digest(parts, self.seed)

    @property
    def judge(self) -> str:
        """The judge of replies: exact where every prompt has the reply that complies with it, else by phrases."""
        return "exact" if all(p.expected for p in self.prompts) else "phrases"

    def sweep(self, model: HookedLVLM | None = None, prompts: PromptSet | None = None, **options: Any) -> xr.Dataset:
        """A sweep, made once; `options` are those of `wb.sweep`."""
        model, prompts = model or self.model, prompts or self.prompts
        key = _digest([fingerprint(model), _prompts_key(prompts)], sorted(options.items()))
        if key not in self._made:
            name = re.sub(r"\W+", "-", model.name.rpartition("/")[2]) or "model"
            out = None if self.runs is None else self.runs / f"{name}-{key}.zarr"
            self._made[key] = sweep(model, prompts, out=out, seed=self.seed, progress=self.progress, **options).load()
        return self._made[key]

    def folder(self, name: str) -> Path | None:
        """A folder of the runs for what stores its own sweeps there, of this material; None without one."""
        return None if self.runs is None else self.runs / f"{name}-{self.key}"

    @cached_property
    def run(self) -> xr.Dataset:
        """Both projections of every head masked on every prompt."""
        return with_splits(self.sweep(), seed=self.seed)[0]

    @cached_property
    def sources(self) -> Sources:
        """The run with those of the other prompt sets beside it, and the kinds of unsafe prompts that are swapped.

        The kinds are the sets, where others were given; else the sources of this one; else its families.
        """
        if not self.sets:
            by = "source" if len(families(self.run, by="source")) > 1 else "family"
            return Sources(self.run, prompt_coord(self.run, by), by)
        names = [s.name or "prompts" for s in (self.prompts, *self.sets)]
        names = [name if names.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(names)]
        runs = [self.run, *(with_splits(self.sweep(prompts=s), seed=self.seed)[0] for s in self.sets)]
        apart = [_under(name, run) for name, run in zip(names, runs, strict=True)]
        options: dict[str, Any] = {"data_vars": "minimal", "coords": "minimal", "compat": "override"}
        whole = xr.concat(apart, dim="prompt", join="inner", combine_attrs="override", **options)
        kinds = np.repeat(np.array(names, dtype=object), [run.sizes["prompt"] for run in runs])
        return Sources(whole, kinds, "set")

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Every criterion the run allows, on the selection prompts."""
        return score(self.run, "all", bootstrap=BOOTSTRAP, permutations=PERMUTATIONS, seed=self.seed)

    @cached_property
    def arena(self) -> pd.DataFrame:
        """Every detector of the registry in the arena, without guards."""
        return arena(
            self.model,
            self.prompts,
            [record.name for record in list_detectors()],
            run=self.run,
            out=self.folder("arena"),
            progress=self.progress,
            seed=self.seed,
        )

    def chosen(self, run: xr.Dataset | None = None, **how: Any) -> Chosen:
        """Heads that a rule chooses on the run's selection prompts, with their values on all of them."""
        return Chosen.of(self.run if run is None else run, seed=self.seed, **how)

    def test_prompts(self) -> PromptSet:
        """The prompts of the test split."""
        return self.prompts.where(split="test")

    def sample(self, prompts: PromptSet, n: int) -> PromptSet:
        """At most `n` of some prompts, as even over the labels as there are prompts; order kept."""
        return prompts if len(prompts) <= n else sample_prompts(prompts, n, seed=self.seed)

    def track(self, steps: Iterable[T], words: str, *, total: int | None = None) -> Iterable[T]:
        """The steps, with a bar that shows the time left."""
        return track(
            steps,
            words,
            total=total,
            console=Console(stderr=True),
            disable=not self.progress,
            transient=True,
        )


def _under(name: str, run: xr.Dataset) -> xr.Dataset:
    """A run whose ids and pairs are told from those of other sets."""
    pairs = [f"{name}: {pair}" if pair else "" for pair in prompt_coord(run, "pair_id")]
    ids = [f"{name}: {i}" for i in run["prompt"].values]
    return run.assign_coords(prompt=ids, pair_id=("prompt", np.array(pairs, dtype=object)))


def _split(prompts: PromptSet, seed: int) -> PromptSet:
    check_names(prompts)
    if any(p.split for p in prompts):
        return prompts
    dealt = {p.id: p for part in split_prompts(prompts, seed=seed).values() for p in part}
    return PromptSet((dealt[p.id] for p in prompts), name=prompts.name)


@cache
def _code() -> str:
    """Digest of the package's source: what an older version made is made again."""
    root = Path(__file__).parents[1]
    sources = sorted(root.rglob("*.py"))
    return _digest([hashlib.sha256(source.read_bytes()).hexdigest() for source in sources], len(sources))


def _prompts_key(prompts: PromptSet) -> str:
    labels = [(p.label, p.family, p.category, p.source, p.pair_id, p.split, p.expected) for p in prompts]
    return _digest([prompts.content_hash()], labels)


def _digest(parts: Sequence[str], more: Any) -> str:
    return hashlib.sha256(json.dumps([*parts, more], default=repr).encode()).hexdigest()[:12]
