"""`OneHeadDetector`: mask one head; if the model's final state turns by more than a threshold, the prompt is unsafe."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
import xarray as xr

from workbench.axes import Head, as_head, as_heads, head_name
from workbench.checking import Converted, Seed, checked
from workbench.detectors.masked_heads import ManyHeads, MaskedHeadsDetector, SomeMaskFields, SomeProjection, has_heads
from workbench.detectors.record import DetectorRecord
from workbench.models.hooked import HookedLVLM


class OneHeadDetector(MaskedHeadsDetector):
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
        projection: SomeProjection = "query",
        criterion: str = "deflection",
        rule: str = "selectivity",
        k: ManyHeads = 1,
        head: Annotated[Head, Converted(as_head)] | None = None,
        mask: SomeMaskFields = None,
        threshold: str | float = "kde",
        seed: Seed = 0,
    ) -> None:
        super().__init__(
            projection=projection, criterion=criterion, rule=rule, k=k, mask=mask, threshold=threshold, seed=seed
        )
        self._given_head = head
        self.head: Head | None = self._given_head
        self.candidates: list[Head] = [] if self._given_head is None else [self._given_head]

    def __repr__(self) -> str:
        where = head_name(*self.head) if self.head else "no head yet"
        return f"OneHeadDetector({self.criterion}, {self.rule}, {self.projection}, {where}, {self.threshold:.4g})"

    def heads_in_use(self) -> tuple[Head, ...]:
        assert self.head is not None
        return (self.head,)

    def _chooses(self) -> bool:
        return self._given_head is None

    def choose(self, seen: xr.Dataset, unsafe: np.ndarray) -> None:
        self.candidates = self.best_heads(seen)
        self.head = self.candidates[int(np.random.default_rng(self.seed).integers(len(self.candidates)))]

    def _chosen(self) -> set[Any]:
        return set(self.candidates)

    def values(self, seen: xr.Dataset) -> np.ndarray:
        """The criterion at the head, turned so that larger is stronger."""
        return self.columns(seen, self.heads_in_use())[0]

    def _fits(self, model: HookedLVLM) -> bool:
        return self.head is not None and has_heads(model, [self.head])

    def _options(self) -> dict[str, Any]:
        return {**super()._options(), "head": self._given_head}


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
