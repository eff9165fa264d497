"""`DirectionDetector`: how far the residual stream of one layer points the way unsafe prompts differ from safe ones."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
import xarray as xr

from workbench.checking import Whole, checked
from workbench.criteria.statistics import auroc
from workbench.detectors.detector import Detector
from workbench.detectors.looks import Wants, residuals
from workbench.detectors.record import DetectorRecord
from workbench.detectors.stored import finite_number, finite_vector
from workbench.errors import DetectorError
from workbench.models.hooked import HookedLVLM

FOLDS = 4


class DirectionDetector(Detector):
    """Detects unsafe prompts by the projection of a layer's residual stream on one direction; no heads, one pass.

    The direction is the mean over unsafe prompts less the mean over safe ones, at the last prompt position, as a unit
    vector. The layer is the one whose direction tells held-out prompts apart best.

    Args:
        layer: 0-based; its output is read. None chooses it by the AUROC of held-out projections (4 folds), the first
            of equals.
        threshold: `"kde"`, or a number in the unit of the residual stream.
        seed: Of a split that has to be made.

    Attributes:
        at: The layer in use.
        direction: Unit vector, [d_model].

    Source:
        The difference of means is the usual refusal or harm direction; ReD-LLM's code scores heads by their writes
        along one. Projecting the state itself, and how the layer is chosen, are ours: no detector of theirs was found.
    """

    name: ClassVar[str] = "direction"
    learned: ClassVar[Mapping[str, Callable[[Any], Any]]] = {"at": finite_number, "direction": finite_vector}

    @checked
    def __init__(
        self,
        *,
        layer: Annotated[int, Whole(0, 10**6)] | None = None,
        threshold: str | float = "kde",
        seed: int = 0,
    ) -> None:
        super().__init__(threshold, seed)
        self.layer = layer
        self.at, self.direction = -1.0, np.empty(0)

    def __repr__(self) -> str:
        return f"DirectionDetector(layer {self.at:.0f}, threshold {self.threshold:.4g})"

    def wants(self, model: HookedLVLM, *, choosing: bool) -> Wants:
        if self.layer is not None and self.layer >= model.n_layers:
            raise DetectorError(f"There is no layer {self.layer}; {model.name!r} has 0..{model.n_layers - 1}.")
        return Wants(reads={"residual": residuals})

    def choose(self, seen: xr.Dataset, unsafe: np.ndarray) -> None:
        states = seen["residual"].values
        self.at = float(best_layer(states, unsafe) if self.layer is None else self.layer)
        self.direction = mean_difference(states[:, int(self.at)], unsafe)

    def _chosen(self) -> set[Any]:
        return {int(self.at)}

    def values(self, seen: xr.Dataset) -> np.ndarray:
        return seen["residual"].values[:, int(self.at)].astype(np.float64) @ self.direction

    def _fits(self, model: HookedLVLM) -> bool:
        return 0 <= self.at < model.n_layers and len(self.direction) == model.d_model


def mean_difference(states: np.ndarray, unsafe: np.ndarray) -> np.ndarray:
    """Unit vector from the mean of safe to that of unsafe states [prompt, d]; zeros where the means are equal."""
    difference = states[unsafe].mean(axis=0, dtype=np.float64) - states[~unsafe].mean(axis=0, dtype=np.float64)
    length = np.linalg.norm(difference)
    return difference / length if length else difference


def best_layer(states: np.ndarray, unsafe: np.ndarray) -> int:
    """The layer, of states [prompt, layer, d], whose mean difference tells held-out prompts apart best."""
    fold = np.empty(len(unsafe), dtype=int)
    for side in (unsafe, ~unsafe):
        fold[side] = np.arange(side.sum()) % FOLDS
    held_out = np.empty(states.shape[:2])
    for number in range(FOLDS):
        out = fold == number
        for layer in range(states.shape[1]):
            direction = mean_difference(states[~out, layer], unsafe[~out])
            # Of each fold only differences within it count, since folds have directions of their own.
            projected = states[out, layer] @ direction
            held_out[out, layer] = projected - projected.mean()
    return int(np.argmax(auroc(held_out, unsafe)))


DETECTORS = (
    DetectorRecord(
        "direction",
        DirectionDetector,
        needs="labelled prompts, unsafe and safe",
        says="projection of a layer's residual stream on the way from safe to unsafe means, in its own unit",
        source="the usual difference of means, after ReD-LLM; this project",
    ),
)
