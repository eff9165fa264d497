"""`OneHeadDetector`: mask one head; if the model's final state turns by more than a threshold, the prompt is unsafe."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any, ClassVar, Self

import numpy as np
import xarray as xr

from workbench.axes import PROJECTIONS, Head, as_head, as_heads, head_name
from workbench.checking import Converted, OneOf, Seed, Whole, checked, plainly
from workbench.criteria import get_criterion, list_criteria, prompt_values, score, top_heads
from workbench.criteria.registry import PER_PROMPT
from workbench.detectors.calibration import run_parts
from workbench.detectors.detector import Detector, DetectorRecord, has_heads, head_pairs
from workbench.errors import DetectorError
from workbench.models.hooked import HookedLVLM
from workbench.models.masks import Mask, as_mask
from workbench.prompts.prompt import Prompt
from workbench.runs.reading import RunLike, as_run
from workbench.sweeps.sweep import sweep


def _as_mask(value: Any) -> Mask:
    return Mask(**value) if isinstance(value, Mapping) else Mask() if value is None else as_mask(value)


class OneHeadDetector(Detector):
    """Detects unsafe prompts by the effect of masking a single head.

    With the defaults this is Oh Defense: the deflection angle, the head chosen by selectivity, the threshold at the
    crossing of two kernel densities. `criterion="ships", rule="sensitivity"` puts Ships' head under the same detector.

    Args:
        projection: Which projection of the head is masked, `"query"` or `"value"`.
        criterion: A per-prompt criterion; it chooses the head and is the score.
        rule: How the criterion chooses; see `workbench.criteria.rules`.
        k: How many candidate heads the rule keeps. One of them is used: the only one for k = 1; one drawn with `seed`
            for more, as published (their script: k = 10).
        head: (layer, head) to use without choosing.
        mask: How the head is masked: a `Mask`, or its fields by name; `Mask()` by default.
        threshold: `"kde"` (published; `workbench.criteria.thresholds.kde_threshold`), or a number in the criterion's
            unit.
        seed: Of the draw among the candidates, of a split that has to be made, and of the rules that draw.

    Attributes:
        head: (layer, head) in use; None before `fit`.
        candidates: The heads the rule kept, best first.
        threshold: In the criterion's unit, turned where the criterion says that smaller is stronger.

    Cost:
        One unmasked pass, and one from the masked layer on; two full passes as published.

    Source:
        "One Head to Rule Them All" (NeurIPS 2025), cirteo/Oh-Defense. Theirs draws the head at random from the kept set
        and takes a prompt for safe when its forward pass fails; here that is an error.
    """

    name: ClassVar[str] = "one-head"
    learned: ClassVar[Mapping[str, Callable[[Any], Any]]] = {"head": as_head, "candidates": as_heads}

    @checked
    def __init__(
        self,
        *,
        projection: Annotated[str, OneOf(PROJECTIONS)] = "query",
        criterion: str = "deflection",
        rule: str = "selectivity",
        k: Annotated[int, Whole(1, 10**6)] = 1,
        head: Annotated[Head, Converted(as_head)] | None = None,
        mask: Annotated[Mask | Mapping[str, Any] | None, Converted(_as_mask)] = None,
        threshold: str | float = "kde",
        seed: Seed = 0,
    ) -> None:
        super().__init__(threshold, seed)
        record = get_criterion(criterion)
        if record.kind != PER_PROMPT:
            usable = ", ".join(c.name for c in list_criteria() if c.kind == PER_PROMPT)
            raise DetectorError(
                f"Criterion {plainly(criterion)} is {record.kind} and gives no score to a single prompt, so nothing "
                f"can be detected by it. Those that do: {usable}. For probes there is SAHsDetector."
            )
        if rule not in record.rules:
            raise DetectorError(
                f"Rule {plainly(rule)} has no meaning for {criterion}; those that have: {', '.join(record.rules)}."
            )
        self.projection, self.criterion, self.rule, self.k = projection, criterion, rule, k
        self.mask = _as_mask(mask)
        self._given_head = head
        self.head: Head | None = self._given_head
        self.candidates: list[Head] = [] if self._given_head is None else [self._given_head]

    def __repr__(self) -> str:
        where = head_name(*self.head) if self.head else "no head yet"
        return f"OneHeadDetector({self.criterion}, {self.rule}, {self.projection}, {where}, {self.threshold:.4g})"

    def fit_run(self, run: RunLike) -> Self:
        """`fit` from a stored run of the same projection and mask, without the model."""
        run = as_run(run)
        selection, rest, parts = run_parts(run, seed=self.seed)
        if not run.attrs.get("weight_hash"):
            raise DetectorError(
                "This run does not say which weights it was measured on (no attribute 'weight_hash'), so a detector "
                "fitted on it could not be kept to them. Use a run that wb.sweep made."
            )
        if self.projection not in run["projection"].values:
            raise DetectorError(
                f"This run holds the projections {', '.join(run['projection'].values)}, not {self.projection!r}."
            )
        mask = {name: run.attrs.get(name) for name in self.mask.describe()}
        if mask != self.mask.describe():
            raise DetectorError(
                f"This run was made with the mask {mask} and the detector masks with {self.mask.describe()}. "
                "Give the detector the run's mask."
            )
        values, stability = self._learn(selection, parts) if self._chooses() else (None, None)
        self._calibrate(self.values(rest) if values is None else values, parts, stability)
        self.model_name, self.weight_hash = str(run.attrs["model"]), str(run.attrs["weight_hash"])
        self.fingerprint = str(run.attrs.get("fingerprint", ""))
        return self

    def stored_scores(self, run: RunLike) -> np.ndarray:
        """`decision_function` on the prompts of a run of the same model and mask, without the model."""
        self._check_fitted()
        run = as_run(run)
        if run.attrs.get("weight_hash") != self.weight_hash:
            raise DetectorError(
                f"This detector was fitted on {self.model_name!r} (weights {self.weight_hash}); the run is of "
                f"{run.attrs.get('model')!r} (weights {run.attrs.get('weight_hash')})."
            )
        return self.values(run)

    def _chooses(self) -> bool:
        return self._given_head is None

    def observe(self, model: HookedLVLM, prompts: Sequence[Prompt], *, choosing: bool, progress: bool) -> xr.Dataset:
        options: dict[str, Any] = {"projections": (self.projection,), "mask": self.mask, "progress": progress}
        if not choosing:
            options |= {"heads": [self.head], "keep_states": False}
        return sweep(model, prompts, **options)

    def choose(self, seen: xr.Dataset, unsafe: np.ndarray) -> None:
        scores = score(seen.drop_vars("split"), (self.criterion,), bootstrap=0, permutations=0, seed=self.seed)
        projection = self.projection if self.projection in set(scores["projection"]) else None
        kept = top_heads(
            scores, criterion=self.criterion, rule=self.rule, projection=projection, k=self.k, seed=self.seed
        )
        self.candidates = head_pairs(kept)
        self.head = self.candidates[int(np.random.default_rng(self.seed).integers(len(self.candidates)))]

    def _chosen(self) -> set[Any]:
        return set(self.candidates)

    def values(self, seen: xr.Dataset) -> np.ndarray:
        """The criterion at the head, turned so that larger is stronger."""
        assert self.head is not None
        criterion, (layer, head) = get_criterion(self.criterion), self.head
        values = prompt_values(seen, criterion, head=self.head)
        if lacking := seen.sizes["prompt"] - values.sizes["prompt"]:
            raise DetectorError(
                f"Criterion {criterion.name!r} has no meaning for {lacking} of {seen.sizes['prompt']} prompts (it "
                "needs an image), so they could not be judged. Leave them out."
            )
        if not values.size:
            raise DetectorError(
                f"There is no head {head_name(layer, head)} here: layers are 0..{int(seen['layer'].max())}, heads "
                f"0..{int(seen['head'].max())}."
            )
        at = "none" if "none" in values["projection"].values else self.projection
        column = values.sel(projection=at, layer=layer, head=head).values
        if np.isnan(column).any():
            raise DetectorError(f"Head {head_name(layer, head)} was not swept with projection {at!r} in this run.")
        return criterion.strength(column)

    def _fits(self, model: HookedLVLM) -> bool:
        return self.head is not None and has_heads(model, [self.head])

    def _options(self) -> dict[str, Any]:
        return {**super()._options(), "head": self._given_head, "mask": asdict(self.mask)}


_NEEDS = "labelled prompts, unsafe and safe; one sweep over all heads to choose one"
_SOURCE = "'One Head to Rule Them All' (NeurIPS 2025), cirteo/Oh-Defense"
DETECTORS = (
    DetectorRecord(
        "one-head",
        OneHeadDetector,
        needs=_NEEDS,
        says="how far masking the most selective head turns the final state, in degrees",
        source=_SOURCE,
    ),
    DetectorRecord(
        "ships",
        OneHeadDetector,
        options={"criterion": "ships", "rule": "sensitivity"},
        needs=_NEEDS,
        says="what masking Ships' head does to the next token's distribution, in nats",
        source=f"Ships' head (arXiv 2410.13708) under the detector of {_SOURCE}",
    ),
)
