"""`FusedHeadsDetector`: several masked heads as one detector: one of them drawn for every prompt, or all together."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
import xarray as xr

from workbench.axes import Head, as_heads, head_names
from workbench.checking import OneOf, Seed, Whole, checked
from workbench.detectors.calibration import densities_cross
from workbench.detectors.masked_heads import ManyHeads, MaskedHeadsDetector, SomeMaskFields, SomeProjection, has_heads
from workbench.detectors.record import DetectorRecord
from workbench.detectors.stored import finite_vector
from workbench.models.hooked import HookedLVLM

FUSIONS = ("mean", "max", "vote", "random")
DRAWS = 20  # draws over which the spread of a random draw is told


class FusedHeadsDetector(MaskedHeadsDetector):
    """Detects unsafe prompts by the effects of masking several heads, one at a time, put together.

    Heads act in their own sizes, so each is first put on its own scale: its value less its threshold (the published
    crossing of densities, on the prompts that chose), in standard deviations over those prompts. The score is the mean
    or the largest of these (`"mean"`, `"max"`), the share of heads over their thresholds (`"vote"`), or the value of
    one head that is drawn for each prompt (`"random"`).

    Args:
        projection: Which projection of the heads is masked, `"query"` or `"value"`.
        criterion: A per-prompt criterion; it chooses the heads and is what is put together.
        rule: How the criterion chooses.
        k: How many heads (rebuttal: sets of 5; their script keeps 10).
        fuse: `"mean"`, `"max"`, `"vote"` or `"random"`.
        draws: Over how many draws `drawn_values` tells the spread of `"random"`; `decision_function` is the first.
        mask: How heads are masked.
        threshold: `"kde"`, or a number; by default `"kde"`, and 0.5 for votes: more than half of the heads.
        seed: Of the draws for each prompt (by its id, so that neither order nor batch matters), of splits that have to
            be made, and of the rules that draw.

    Attributes:
        heads: The heads in use, best first.
        centres: Their thresholds, [head], in the criterion's unit.
        scales: Their standard deviations, [head].

    Cost:
        One unmasked pass and one for each head from its layer on; for `"random"` one head's.

    Source:
        "One Head to Rule Them All" (NeurIPS 2025): any of a kept set serves and one is drawn, by the rebuttal. Its
        tables 3 and 12 use several heads; how their angles are put together was not found: these three ways are ours.
    """

    name: ClassVar[str] = "one-head-fused"
    learned: ClassVar[Mapping[str, Callable[[Any], Any]]] = {
        "heads": as_heads,
        "centres": finite_vector,
        "scales": finite_vector,
    }

    @checked
    def __init__(
        self,
        *,
        projection: SomeProjection = "query",
        criterion: str = "deflection",
        rule: str = "selectivity",
        k: ManyHeads = 5,
        fuse: Annotated[str, OneOf(FUSIONS)] = "mean",
        draws: Annotated[int, Whole(1, 10_000)] = DRAWS,
        mask: SomeMaskFields = None,
        threshold: str | float | None = None,
        seed: Seed = 0,
    ) -> None:
        threshold = threshold if threshold is not None else 0.5 if fuse == "vote" else "kde"
        super().__init__(
            projection=projection, criterion=criterion, rule=rule, k=k, mask=mask, threshold=threshold, seed=seed
        )
        self.fuse, self.draws = fuse, draws
        self.heads: list[Head] = []
        self.centres, self.scales = np.empty(0), np.empty(0)

    def __repr__(self) -> str:
        return f"FusedHeadsDetector({self.fuse} of {head_names(self.heads) or 'no head yet'}, {self.threshold:.4g})"

    def heads_in_use(self) -> tuple[Head, ...]:
        return tuple(self.heads)

    def choose(self, seen: xr.Dataset, unsafe: np.ndarray) -> None:
        self.heads = self.best_heads(seen)
        columns = self.columns(seen, self.heads)
        self.scales = np.where(np.ptp(columns, axis=1) > 0, columns.std(axis=1), 1.0)
        self.centres = np.array([_centre(column[unsafe], column[~unsafe]) for column in columns])

    def _chosen(self) -> set[Any]:
        return set(self.heads)

    def values(self, seen: xr.Dataset) -> np.ndarray:
        scaled = self.scaled(seen)
        if self.fuse == "random":
            return self._of_draw(scaled, seen, 0)
        if self.fuse == "vote":
            return (scaled > 0).mean(axis=0)
        return scaled.mean(axis=0) if self.fuse == "mean" else scaled.max(axis=0)

    def drawn_values(self, seen: xr.Dataset) -> np.ndarray:
        if self.fuse != "random":
            return super().drawn_values(seen)
        scaled = self.scaled(seen)
        return np.array([self._of_draw(scaled, seen, draw) for draw in range(self.draws)])

    def scaled(self, seen: xr.Dataset) -> np.ndarray:
        """Values on the heads' own scales, [head, prompt]."""
        return (self.columns(seen, self.heads) - self.centres[:, None]) / self.scales[:, None]

    def _of_draw(self, scaled: np.ndarray, seen: xr.Dataset, draw: int) -> np.ndarray:
        """The values of the heads that a draw picks, one for each prompt."""
        asked = [f"{self.seed}\0{draw}\0{id_}".encode() for id_ in seen["prompt"].values]
        picked = [int.from_bytes(hashlib.sha256(text).digest()[:8], "big") % len(scaled) for text in asked]
        return scaled[picked, np.arange(len(picked))]

    def _fits(self, model: HookedLVLM) -> bool:
        sizes = {len(self.heads), len(self.centres), len(self.scales)}
        return has_heads(model, self.heads) and len(sizes) == 1 and 0 not in sizes and bool((self.scales > 0).all())


def _centre(unsafe: np.ndarray, safe: np.ndarray) -> float:
    """A head's threshold; where it gives every prompt the same value, that value."""
    return float(safe[0]) if np.ptp([*unsafe, *safe]) == 0 else densities_cross(unsafe, safe)[0]


_NEEDS = "labelled prompts, unsafe and safe; one sweep over all heads to choose some"
_SOURCE = "'One Head to Rule Them All' (NeurIPS 2025), cirteo/Oh-Defense"
DETECTORS = (
    DetectorRecord(
        "one-head-random",
        FusedHeadsDetector,
        options={"fuse": "random"},
        needs=_NEEDS,
        says="what masking one of k heads does, drawn for each prompt, in its standard deviations over its threshold",
        source=_SOURCE,
    ),
    DetectorRecord(
        "one-head-fused",
        FusedHeadsDetector,
        needs=_NEEDS,
        says="what masking k heads one by one does: mean, largest, or share of them over their thresholds",
        source=_SOURCE,
    ),
)
