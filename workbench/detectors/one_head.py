"""`OneHeadDetector`: mask one head; if the model's final state turns by more than a threshold, the prompt is unsafe."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, ClassVar, Self

import numpy as np
import xarray as xr

from workbench.axes import PROJECTIONS, head_name
from workbench.criteria import get_criterion, list_criteria, prompt_values, score, top_heads
from workbench.criteria.registry import PER_PROMPT, Criterion
from workbench.detectors.calibration import Parts, calibration_parts, run_parts, unsafe_array
from workbench.detectors.detector import Detector, as_prompts, check_finite, check_is_model
from workbench.errors import DetectorError, MaskError
from workbench.models.hooked import HookedLVLM
from workbench.models.masks import Mask
from workbench.prompts.prompt import Prompt
from workbench.runs.reading import RunLike, as_run, prompt_coord
from workbench.sweeps.sweep import sweep

Head = tuple[int, int]


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
        mask: How the head is masked; `Mask()` by default.
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

    kind: ClassVar[str] = "one head"

    def __init__(
        self,
        *,
        projection: str = "query",
        criterion: str = "deflection",
        rule: str = "selectivity",
        k: int = 1,
        head: Head | None = None,
        mask: Mask | None = None,
        threshold: str | float = "kde",
        seed: int = 0,
    ) -> None:
        super().__init__(threshold)
        if projection not in PROJECTIONS:
            raise DetectorError(f"projection must be one of {', '.join(PROJECTIONS)}; got {projection!r}.")
        record = get_criterion(criterion)
        if record.kind != PER_PROMPT:
            usable = ", ".join(c.name for c in list_criteria() if c.kind == PER_PROMPT)
            raise DetectorError(
                f"Criterion {criterion!r} is {record.kind} and gives no score to a single prompt, so nothing can be "
                f"detected by it. Those that do: {usable}. For probes there is SAHsDetector."
            )
        if rule not in record.rules:
            raise DetectorError(
                f"Rule {rule!r} has no meaning for {criterion}; those that have: {', '.join(record.rules)}."
            )
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise DetectorError(f"k is the number of candidate heads, 1 or more; got {k!r}.")
        self.projection, self.criterion, self.rule, self.k, self.seed = projection, criterion, rule, k, seed
        self.mask = mask or Mask()
        self._given_head = None if head is None else (int(head[0]), int(head[1]))
        self.head: Head | None = self._given_head
        self.candidates: list[Head] = [] if self._given_head is None else [self._given_head]

    def __repr__(self) -> str:
        where = head_name(*self.head) if self.head else "no head yet"
        return f"OneHeadDetector({self.criterion}, {self.rule}, {self.projection}, {where}, {self.threshold:.4g})"

    def fit(self, model: HookedLVLM, prompts: Sequence[Prompt], *, progress: bool = False) -> Self:
        """Choose the head on one part of the prompts and set the threshold on another.

        Args:
            model: The model to watch.
            prompts: Labelled. Declared splits are used (`selection` picks the head, `threshold` sets the threshold,
                `test` is left out); without them the parts are made here and recorded in `calibration`.
            progress: Show the progress of the sweep that chooses the head; on a large model it is long.

        Raises:
            DetectorError: For too few prompts of a label, or values that separate nothing.
            CriterionError: Where the rule keeps no head.
        """
        check_is_model(model)
        parts = calibration_parts(as_prompts(prompts), seed=self.seed)
        if self._given_head is None:
            run = sweep(model, parts.selection, projections=(self.projection,), mask=self.mask, progress=progress)
            self._choose(run, parts)
        assert self.head is not None
        self._finish(self._measure(model, parts.threshold), unsafe_array(parts.threshold), parts)
        self._fitted_on(model.name, model.weight_hash)
        return self

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
        if self._given_head is None:
            self._choose(selection, parts)
        self._finish(self._values(rest), prompt_labels(rest), parts)
        self._fitted_on(str(run.attrs["model"]), str(run.attrs["weight_hash"]))
        return self

    def decision_function(self, model: HookedLVLM, prompts: Sequence[Prompt]) -> np.ndarray:
        """The criterion of the chosen head, shape [prompt], in its unit; higher = more unsafe.

        Raises:
            DetectorError: If the detector was fitted on another model, or a score is not finite.
        """
        self._check_model(model, prompts)
        return self._measure(model, as_prompts(prompts))

    def stored_scores(self, run: RunLike) -> np.ndarray:
        """`decision_function` on the prompts of a run of the same model and mask, without the model."""
        self._check_fitted()
        run = as_run(run)
        if run.attrs.get("weight_hash") != self.weight_hash:
            raise DetectorError(
                f"This detector was fitted on {self.model_name!r} (weights {self.weight_hash}); the run is of "
                f"{run.attrs.get('model')!r} (weights {run.attrs.get('weight_hash')})."
            )
        return self._values(run)

    def _choose(self, run: xr.Dataset, parts: Parts) -> None:
        scores = score(run.drop_vars("split"), (self.criterion,), bootstrap=0, permutations=0, seed=self.seed)
        record = get_criterion(self.criterion)
        projection = self.projection if self.projection in set(scores["projection"]) else None
        kept = top_heads(scores, criterion=record.name, rule=self.rule, projection=projection, k=self.k, seed=self.seed)
        self.candidates = [(int(layer), int(head)) for layer, head in zip(kept["layer"], kept["head"], strict=True)]
        self.head = self.candidates[int(np.random.default_rng(self.seed).integers(len(self.candidates)))]

    def _measure(self, model: HookedLVLM, prompts: Sequence[Prompt]) -> np.ndarray:
        assert self.head is not None
        run = sweep(
            model,
            prompts,
            projections=(self.projection,),
            mask=self.mask,
            heads=[self.head],
            keep_states=False,
            progress=False,
        )
        return check_finite(self._values(run), prompts, f"Criterion {self.criterion!r} at {head_name(*self.head)}")

    def _values(self, run: xr.Dataset) -> np.ndarray:
        assert self.head is not None
        return head_strengths(run, get_criterion(self.criterion), [self.head], self.projection)[:, 0]

    def _finish(self, values: np.ndarray, unsafe: np.ndarray, parts: Parts) -> None:
        self.calibration = {
            **parts.record(),
            "candidates": [list(head) for head in self.candidates],
            "unsafe_median": float(np.median(values[unsafe])),
            "safe_median": float(np.median(values[~unsafe])),
        }
        self._set_threshold(values, unsafe)

    def _settings(self) -> dict[str, Any]:
        assert self.head is not None
        return {
            "projection": self.projection,
            "criterion": self.criterion,
            "rule": self.rule,
            "k": self.k,
            "head": list(self.head),
            "chosen": self._given_head is None,
            "candidates": [list(head) for head in self.candidates],
            "mask": asdict(self.mask),
            "seed": self.seed,
        }

    def _arrays(self) -> dict[str, np.ndarray]:
        return {}

    @classmethod
    def _restore(cls, settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> Self:
        settings = dict(settings)
        head, chosen, candidates = tuple(settings.pop("head")), settings.pop("chosen"), settings.pop("candidates")
        try:
            detector = cls(**{**settings, "mask": Mask(**settings["mask"])}, head=None if chosen else head)
        except MaskError as error:
            raise ValueError(str(error)) from error
        detector.head, detector.candidates = head, [tuple(c) for c in candidates]
        return detector


def head_strengths(run: xr.Dataset, criterion: Criterion, heads: Sequence[Head], projection: str) -> np.ndarray:
    """A per-prompt criterion at some heads, turned so that larger is stronger: [prompt, head].

    Raises:
        DetectorError: If the run does not have one of the heads, or the criterion has no meaning for some prompts.
        CriterionError: If a value is missing or infinite.
    """
    values = prompt_values(run, criterion)
    if values.sizes["prompt"] < run.sizes["prompt"]:
        raise DetectorError(
            f"Criterion {criterion.name!r} has no meaning for {run.sizes['prompt'] - values.sizes['prompt']} of "
            f"{run.sizes['prompt']} prompts (it needs an image), so they could not be judged. Leave them out."
        )
    at = "none" if "none" in values["projection"].values else projection
    columns = []
    for layer, head in heads:
        if layer not in values["layer"].values or head not in values["head"].values:
            raise DetectorError(
                f"There is no head {head_name(layer, head)} here: layers are 0..{int(values['layer'].max())}, heads "
                f"0..{int(values['head'].max())}."
            )
        column = values.sel(projection=at, layer=layer, head=head).values
        if np.isnan(column).any():
            raise DetectorError(f"Head {head_name(layer, head)} was not swept with projection {at!r} in this run.")
        columns.append(column)
    return criterion.strength(np.stack(columns, axis=1))


def prompt_labels(run: xr.Dataset) -> np.ndarray:
    """True where a run's prompt is labelled unsafe, shape [prompt]."""
    return prompt_coord(run, "label") == "unsafe"
