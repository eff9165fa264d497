"""`RCSDetector`: is a prompt, in a learned projection of states, nearer to malicious prompts than to benign ones?"""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from typing import Annotated, Any, ClassVar

import numpy as np
import xarray as xr

from workbench.checking import OneOf, Whole, checked
from workbench.detectors.detector import Detector
from workbench.detectors.direction import best_layer
from workbench.detectors.looks import Wants, residuals
from workbench.detectors.rcs_projection import WIDTH, Layers, project, train_projection
from workbench.detectors.record import DetectorRecord
from workbench.detectors.stored import finite_array, finite_number, finite_vector
from workbench.errors import DetectorError
from workbench.models.hooked import HookedLVLM

DISTANCES, SITES = ("kcd", "mcd"), ("layer", "head")
FEWEST = 4  # prompts of a cluster; smaller ones of a label go together
MATRIX, CUBE = partial(finite_array, dims=2), partial(finite_array, dims=3)


class RCSDetector(Detector):
    """Detects unsafe prompts by distances in a learned projection: to benign prompts minus to malicious ones.

    `"kcd"`: between unit vectors, the distance to the k-th nearest of each label. `"mcd"`: the Mahalanobis distance to
    the nearest cluster of each label, with a shrunk covariance a cluster; clusters are the data sets of a label, and
    its families where there is one set only.

    Args:
        distance: `"kcd"` or `"mcd"`.
        site: `"layer"`: the residual stream after a layer. `"head"`: z of a head (ours). At the last prompt position.
        at: Number of the layer, or of the head counted through the layers; None chooses it by the AUROC of held-out
            projections on the difference of means, which is ours: their script tries every layer.
        k: Which nearest neighbour; the last where a label has fewer (theirs: 50).
        width: Of the projection (theirs: 256); 0 leaves states as they are.
        threshold: 0.0 (nearer to which?), another number, or `"kde"` (theirs is set on their training prompts).
        seed: Of training, and of a split that has to be made.

    Attributes:
        place: The layer or head in use.
        layers: The projection.

    Cost:
        One unmasked pass. Training takes seconds and happens five times where splits are not declared.

    Source:
        RCS (arXiv 2512.12069, ACL 2026), sarendis56/Jailbreak_Detection_RCS: read in its released code, which trains
        one projection a layer; see `workbench.detectors.rcs_projection`. It refuses clusters under 50 prompts; here
        they may be small, and the shrinkage (Rao-Blackwell Ledoit-Wolf, as theirs) is then large.
    """

    name: ClassVar[str] = "rcs-kcd"
    learned: ClassVar[Mapping[str, Callable[[Any], Any]]] = {
        "place": finite_number,
        "weights": finite_vector,
        "shapes": finite_vector,
        "points": MATRIX,
        "malicious": finite_vector,
        "inverses": CUBE,
    }

    @checked
    def __init__(
        self,
        *,
        distance: Annotated[str, OneOf(DISTANCES)] = "kcd",
        site: Annotated[str, OneOf(SITES)] = "layer",
        at: Annotated[int, Whole(0, 10**6)] | None = None,
        k: Annotated[int, Whole(1, 10**6)] = 50,
        width: Annotated[int, Whole(0, 10**4)] = WIDTH,
        threshold: str | float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(threshold, seed)
        self.distance, self.site, self.at, self.k, self.width = distance, site, at, k, width
        self.place = -1.0
        self.layers: Layers = []
        # What distances are measured to: prompts (kcd) or centres of clusters (mcd), which of them are malicious, and
        # the inverse covariances of clusters.
        self.points, self.malicious, self.inverses = np.empty((0, 0)), np.empty(0), np.empty((0, 0, 0))

    def __repr__(self) -> str:
        return f"RCSDetector({self.distance}, {self.site} {self.place:.0f}, threshold {self.threshold:.4g})"

    @property
    def weights(self) -> np.ndarray:
        """The projection in one array, as it is stored; `shapes` has the widths of its layers."""
        return np.concatenate([part.ravel() for pair in self.layers for part in pair] or [np.empty(0)])

    @weights.setter
    def weights(self, stored: np.ndarray) -> None:
        self._stored_weights = stored

    @property
    def shapes(self) -> np.ndarray:
        widths = [self.layers[0][0].shape[1], *(len(bias) for _, bias in self.layers)] if self.layers else []
        return np.array(widths, dtype=np.float64)

    @shapes.setter
    def shapes(self, widths: np.ndarray) -> None:
        sizes, rest, self.layers = [int(w) for w in widths], self._stored_weights, []
        for wide, narrow in pairwise(sizes):
            weight, bias, rest = np.split(rest, [wide * narrow, wide * narrow + narrow])
            self.layers.append((weight.reshape(narrow, wide), bias))

    def wants(self, model: HookedLVLM, *, choosing: bool) -> Wants:
        return Wants(reads={"residual": residuals}) if self.site == "layer" else Wants(outputs=True)

    def choose(self, seen: xr.Dataset, unsafe: np.ndarray) -> None:
        states, places = self._states(seen)
        if self.at is not None and self.at not in places:
            raise DetectorError(f"There is no {self.site} {self.at} here; there are {places[0]} to {places[-1]}.")
        self.place = float(places[best_layer(states, unsafe)] if self.at is None else self.at)
        chosen = states[:, places.index(int(self.place))]
        clusters = cluster_names(seen, unsafe)
        number = np.unique(clusters, return_inverse=True)[1]
        self.layers = train_projection(chosen, unsafe, number, width=self.width, seed=self.seed) if self.width else []
        projected = project(self.layers, chosen)
        if self.distance == "kcd":
            self.points, self.malicious = _unit(projected), unsafe.astype(np.float64)
            self.inverses = np.empty((0, 0, 0))
            return
        groups = [np.flatnonzero(clusters == name) for name in sorted(set(clusters))]
        self.points = np.array([projected[of].mean(axis=0) for of in groups])
        self.malicious = np.array([float(unsafe[of[0]]) for of in groups])
        self.inverses = np.array([np.linalg.inv(shrunk_covariance(projected[of])) for of in groups])

    def _chosen(self) -> set[Any]:
        return {int(self.place)}

    def values(self, seen: xr.Dataset) -> np.ndarray:
        states, places = self._states(seen)
        projected = project(self.layers, states[:, places.index(int(self.place))])
        benign, malicious = (self._distance(projected, self.malicious == side) for side in (0, 1))
        return benign - malicious

    def _distance(self, projected: np.ndarray, of: np.ndarray) -> np.ndarray:
        if self.distance == "kcd":
            squares = 2 - 2 * _unit(projected) @ self.points[of].T  # of unit vectors
            return np.sqrt(np.maximum(np.sort(squares, axis=1)[:, min(self.k, int(of.sum())) - 1], 0))
        away = projected[:, None] - self.points[of]
        return np.sqrt(np.einsum("pcd,cde,pce->pc", away, self.inverses[of], away, optimize=True)).min(axis=1)

    def _states(self, seen: xr.Dataset) -> tuple[np.ndarray, list[int]]:
        """States [prompt, place, d] where there are any, and the numbers of the places."""
        if self.site == "layer":
            states = seen["residual"].values
        else:
            z = seen["head_output"].transpose("prompt", "layer", "head", "d_head").values
            states = z.reshape(len(z), -1, z.shape[-1])
        places = np.flatnonzero(~np.isnan(states[:, :, 0]).any(axis=0))
        return states[:, places], places.tolist()

    def _fits(self, model: HookedLVLM) -> bool:
        wide, places = (model.d_model, model.n_layers) if self.site == "layer" else (model.d_head, None)
        places = places or model.n_layers * model.n_heads
        return 0 <= self.place < places and (not self.layers or self.layers[0][0].shape[1] == wide)


def cluster_names(seen: xr.Dataset, unsafe: np.ndarray) -> np.ndarray:
    """The cluster of each prompt: label and source, or label and family where a label has one source; small ones of a
    label go together."""
    names = np.empty(len(unsafe), dtype=object)
    for side in (True, False):
        of = unsafe == side
        by = "source" if len(set(seen["source"].values[of])) > 1 else "family"
        kinds = seen[by].values[of].astype(object)
        count = {kind: int((kinds == kind).sum()) for kind in set(kinds)}
        large = [kind for kind in count if count[kind] >= FEWEST]
        names[of] = [f"{side} {kind}" if kind in large else f"{side} others" for kind in kinds]
        rest = names == f"{side} others"
        if 0 < rest.sum() < FEWEST and large:
            names[rest] = f"{side} {max(sorted(large), key=count.__getitem__)}"
    return names


def shrunk_covariance(points: np.ndarray) -> np.ndarray:
    """Covariance of points [n, d], drawn towards a multiple of the identity by Rao-Blackwell Ledoit-Wolf's share."""
    n, d = points.shape
    sample = np.cov(points.T, ddof=1).reshape(d, d)
    trace, squares = float(np.trace(sample)), float((sample**2).sum())
    if trace <= 0:
        raise DetectorError("All prompts of a cluster have the same state, so there is no distance to it.")
    spread = (n + 2) * (squares - trace**2 / d)
    share = 1.0 if spread <= 0 else min(1.0, ((n - 2) / n * squares + trace**2) / spread)
    return (1 - share) * sample + share * trace / d * np.eye(d)


def _unit(points: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(points, axis=1, keepdims=True)
    return points / np.where(length == 0, 1, length)


_NEEDS, _SOURCE = "labelled prompts, unsafe and safe, better of several sets", "RCS (arXiv 2512.12069, ACL 2026)"
DETECTORS = (
    DetectorRecord(
        "rcs-kcd",
        RCSDetector,
        needs=_NEEDS,
        says="distance to the k-th nearest benign prompt minus to the k-th malicious one, in a learned projection",
        source=_SOURCE,
    ),
    DetectorRecord(
        "rcs-mcd",
        RCSDetector,
        options={"distance": "mcd"},
        needs=_NEEDS,
        says="Mahalanobis distance to the nearest benign cluster minus to the nearest malicious one, likewise",
        source=_SOURCE,
    ),
)
