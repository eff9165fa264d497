"""`HiddenDetect`, a baseline: read every layer through the unembedding, and see how far it points at refusing."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr

from workbench.axes import as_head
from workbench.detectors.detector import Detector
from workbench.detectors.looks import Reading, Wants, after_layer
from workbench.detectors.record import DetectorRecord
from workbench.detectors.stored import finite_vector
from workbench.errors import DetectorError
from workbench.models.hooked import HookedLVLM
from workbench.models.walk import BasePass


class HiddenDetect(Detector):
    """Detects unsafe prompts by how refusal shows in the intermediate layers; no heads, no training, one pass.

    F of a layer is the cosine between the logits read from it (final norm, then unembedding) and a vector that is 1 at
    the refusal tokens and 0 elsewhere. The score is the area under F over a range of layers, by trapezoids, in cosine ×
    layers.
    The range comes from the data: from the first to the last layer whose F differs more between unsafe and safe prompts
    than the last layer's does. Where no layer does, it is the last layer alone; a single layer's score is its F.

    Args:
        tokens: Ids of the refusal tokens; `model.refusal_tokens` by default (theirs: the first sub-tokens of about 20
            words).
        threshold: `"kde"`, or a number in the unit of the score. The paper reports AUROC and sets none.
        seed: Of a split that has to be made.

    Attributes:
        layers: First and last layer of the range, 0-based, both included; the output of the layer is read.
        discrepancy: Mean F on unsafe minus mean F on safe prompts, [layer].

    Source:
        HiddenDetect (ACL 2025, arXiv 2502.14744) and its released code. Taking the span from the first to the last such
        layer is our reading: the released ranges are contiguous.
    """

    name: ClassVar[str] = "hidden-detect"
    learned: ClassVar[Mapping[str, Callable[[Any], Any]]] = {"layers": as_head, "discrepancy": finite_vector}

    def __init__(self, *, tokens: Sequence[int] | None = None, threshold: str | float = "kde", seed: int = 0) -> None:
        super().__init__(threshold, seed)
        self.tokens = None if tokens is None else tuple(int(t) for t in tokens)
        self.layers = (-1, -1)
        self.discrepancy = np.empty(0)

    def __repr__(self) -> str:
        return f"HiddenDetect(layers {self.layers[0]} to {self.layers[1]}, threshold {self.threshold:.4g})"

    @property
    def _variable(self) -> str:
        return f"strength of {self.tokens}"

    def wants(self, model: HookedLVLM, *, choosing: bool) -> Wants:
        if self.tokens is None:
            self.tokens = model.refusal_tokens
        _check_tokens(model, self.tokens)
        return Wants(reads={self._variable: partial(_strengths, tokens=self.tokens)})

    def choose(self, seen: xr.Dataset, unsafe: np.ndarray) -> None:
        strength = seen[self._variable].values
        self.discrepancy = strength[unsafe].mean(0) - strength[~unsafe].mean(0)
        above = np.flatnonzero(self.discrepancy > self.discrepancy[-1])
        last = len(self.discrepancy) - 1
        self.layers = (int(above[0]), int(above[-1])) if len(above) else (last, last)

    def _chosen(self) -> set[Any]:
        return set(range(self.layers[0], self.layers[1] + 1))

    def values(self, seen: xr.Dataset) -> np.ndarray:
        first, last = self.layers
        strength = seen[self._variable].values[:, first : last + 1]
        return np.trapezoid(strength, axis=1) if last > first else strength[:, 0]

    def _fits(self, model: HookedLVLM) -> bool:
        return 0 <= self.layers[0] <= self.layers[1] < model.n_layers == len(self.discrepancy)


def _strengths(model: HookedLVLM, base: BasePass, *, tokens: Sequence[int]) -> Reading:
    wanted, found = list(tokens), np.empty((base.n_prompts, model.n_layers))
    for layer in range(model.n_layers):
        with torch.no_grad():
            logits = model.unembed(model.normed(after_layer(base, layer).to(base.residual.device))).double()
        # The refusal vector has length sqrt(number of tokens) and picks out the sum of their logits.
        cosine = logits[:, wanted].sum(-1) / (logits.norm(dim=-1) * len(wanted) ** 0.5)
        found[:, layer] = cosine.cpu().numpy()
    return ("layer",), found


def _check_tokens(model: HookedLVLM, tokens: Sequence[int]) -> None:
    if not tokens:
        raise DetectorError(
            f"The tokenizer of {model.name!r} knows none of the usual openings of a refusal, so there is nothing to "
            "look for. Give tokens=[...], the ids of the tokens with which it refuses."
        )
    if wrong := [t for t in tokens if not 0 <= t < model.d_vocab]:
        raise DetectorError(f"Token {wrong[0]} is not in 0..{model.d_vocab - 1}, the vocabulary of {model.name!r}.")


DETECTORS = (
    DetectorRecord(
        "hidden-detect",
        HiddenDetect,
        needs="labelled prompts, and a tokenizer that knows how the model refuses",
        says="area under the cosine of each layer's logits with the refusal tokens, in cosine × layers",
        source="HiddenDetect (ACL 2025, arXiv 2502.14744)",
    ),
)
