"""`MaskedHeadsDetector`: what detectors that mask heads have in common: the criterion, the rule, and stored runs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any, get_args

import numpy as np
import xarray as xr

from workbench.axes import PROJECTIONS, Head, head_name, head_pairs
from workbench.checking import Converted, OneOf, Whole, plainly
from workbench.criteria import get_criterion, list_criteria, prompt_values, top_heads
from workbench.criteria.registry import PER_DATA_SET, PER_PROMPT, TRAINED
from workbench.detectors.calibration import Origin, origin_of
from workbench.detectors.detector import Detector
from workbench.detectors.looks import Wants, scores_of
from workbench.errors import DetectorError
from workbench.models.forms import FROM_PROMPTS, Form
from workbench.models.hooked import HookedLVLM
from workbench.models.masks import Mask, as_mask
from workbench.runs.job import MEASURES
from workbench.runs.reading import RunLike, as_checked_run


def _as_mask(value: Any) -> Mask:
    return Mask(**value) if isinstance(value, Mapping) else Mask() if value is None else as_mask(value)


NOT_ALONE = (*FROM_PROMPTS, "direction", "redirect")
SomeProjection = Annotated[str, OneOf(PROJECTIONS)]
ManyHeads = Annotated[int, Whole(1, 10**6)]
SomeMaskFields = Annotated[Mask | Mapping[str, Any] | None, Converted(_as_mask)]


def has_heads(model: HookedLVLM, heads: Sequence[Head]) -> bool:
    """Whether all of the heads are there and can be masked."""
    return all(layer in model.masked_layers and 0 <= head < model.n_heads for layer, head in heads)


class MaskedHeadsDetector(Detector):
    """A detector that scores prompts by a criterion at heads which a rule keeps.

    A criterion of data sets (`svd_left`, …) has no value for a prompt: it chooses the heads, and the score is the
    deflection, as published: the search uses one quantity, detection another.

    Args:
        projection: Which projection of the heads is masked, `"query"` or `"value"`.
        criterion: It chooses the heads and, where it has a value for a prompt, is the score.
        rule: How the criterion chooses; see `workbench.criteria.rules`.
        k: How many heads the rule keeps.
        mask: How heads are masked: a `Mask`, or its fields by name; `Mask()` by default.
        threshold: `"kde"`, or a number in the unit of the score.
        seed: Of splits that have to be made, and of the rules that draw.
    """

    def __init__(
        self,
        *,
        projection: str,
        criterion: str,
        rule: str,
        k: int,
        mask: Mask | Mapping[str, Any] | None,
        threshold: str | float,
        seed: int,
    ) -> None:
        super().__init__(threshold, seed)
        record = get_criterion(criterion)
        if record.kind == TRAINED:
            usable = ", ".join(c.name for c in list_criteria() if c.kind != TRAINED)
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
        if self.mask.form in NOT_ALONE or self.mask.source is not None:
            raise DetectorError(
                f"A detector scores a prompt by itself, and the mask {self.mask!r} puts in what it takes elsewhere. "
                f"Detectors mask with the forms {', '.join(f for f in get_args(Form) if f not in NOT_ALONE)}."
            )

    def _readable(self, run: RunLike) -> tuple[xr.Dataset, Origin]:
        run = as_checked_run(run)
        origin = origin_of(run)
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
        return run, origin

    def wants(self, model: HookedLVLM, *, choosing: bool) -> Wants:
        heads = None if choosing and self._chooses() else self.heads_in_use()
        record = get_criterion(self.criterion)
        measures = tuple(name for name in record.needs if name in MEASURES)
        states = choosing and record.kind == PER_DATA_SET
        return Wants(projections=(self.projection,), heads=heads, mask=self.mask, measures=measures, states=states)

    def best_heads(self, seen: xr.Dataset) -> list[Head]:
        """The k heads that the rule keeps of a run, best first."""
        scores = scores_of(seen, self.criterion, self.seed)
        projection = self.projection if self.projection in set(scores["projection"]) else None
        kept = top_heads(
            scores, criterion=self.criterion, rule=self.rule, projection=projection, k=self.k, seed=self.seed
        )
        return head_pairs(kept)

    def columns(self, seen: xr.Dataset, heads: Sequence[Head]) -> np.ndarray:
        """The score's criterion at heads, turned so that larger is stronger, [head, prompt]."""
        criterion = get_criterion(self.criterion)
        criterion = criterion if criterion.kind == PER_PROMPT else get_criterion("deflection")
        found = []
        for layer, head in heads:
            values = prompt_values(seen, criterion, head=(layer, head))
            if lacking := seen.sizes["prompt"] - values.sizes["prompt"]:
                raise DetectorError(
                    f"Criterion {criterion.name!r} has no meaning for {lacking} of {seen.sizes['prompt']} prompts (it "
                    "needs an image), so they could not be judged. Leave them out."
                )
            if not values.size:
                raise DetectorError(
                    f"There is no head {head_name(layer, head)} here: layers are 0..{int(seen['layer'].max())}, "
                    f"heads 0..{int(seen['head'].max())}."
                )
            at = "none" if "none" in values["projection"].values else self.projection
            column = values.sel(projection=at, layer=layer, head=head).values
            if np.isnan(column).any():
                raise DetectorError(
                    f"Criterion {criterion.name!r} is missing in this run at head {head_name(layer, head)}, projection "
                    f"{at!r}: it was not swept, or what it gave is no number."
                )
            found.append(criterion.strength(column))
        return np.array(found)

    def _options(self) -> dict[str, Any]:
        return {**super()._options(), "mask": asdict(self.mask)}
