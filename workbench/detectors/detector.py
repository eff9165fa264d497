"""`Detector`: what every detector has in common: predicting, telling what it costs, and being stored."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import xarray as xr

from workbench.axes import Head
from workbench.checking import MOST_SEED, Finite, Whole, check_each
from workbench.detectors.calibration import (
    Origin,
    Parts,
    calibrated,
    calibration_parts,
    rows_of,
    stand_ins,
    unsafe_array,
)
from workbench.detectors.cost import Cost, measure_cost
from workbench.detectors.looks import BLOCK, Request, Wants, look, next_request
from workbench.detectors.stored import calibration_record, finite_number, read_stored, word, write_stored
from workbench.errors import DetectorError, WorkbenchError
from workbench.models.fingerprint import fingerprint
from workbench.models.hooked import HookedLVLM
from workbench.plain import plain
from workbench.prompts.prompt import Prompt, PromptSet, as_prompts
from workbench.runs.reading import RunLike, check_run


class Detector(ABC):
    """Tells unsafe prompts from safe ones by what a model does with them.

    A detector says what it has to see (`wants`, or `observe` where that is no unmasked pass and no mask), what it
    learns from what it saw (`choose`), and how what it saw becomes one score a prompt (`values`). Fitting, thresholds,
    checks and storing are here. Its options are attributes under the names of its constructor's arguments; what it
    learns is named in `learned`.

    Attributes:
        threshold: In the unit of `decision_function`; a prompt is unsafe if and only if it scores above. NaN before
            `fit`.
        model_name: The model it was fitted on; it can be used on no other. Empty before `fit`.
        weight_hash: Of that model.
        fingerprint: Of that model, what it makes of a prompt included (`workbench.models.fingerprint`).
        calibration: What it was fitted on, for the record.
    """

    name: ClassVar[str]
    learned: ClassVar[Mapping[str, Callable[[Any], Any]]] = {}  # what checks and reads the stored values, by name
    threshold_rule: str | float

    def __init__(self, threshold: str | float, seed: int) -> None:
        if threshold != "kde":
            check_each({"threshold": threshold}, {"threshold": Finite()})
        self.threshold_rule = threshold if threshold == "kde" else float(threshold)
        check_each({"seed": seed}, {"seed": Whole(0, MOST_SEED)})
        self.threshold, self.seed = float("nan"), seed
        self.model_name, self.weight_hash, self.fingerprint = "", "", ""
        self.calibration: dict[str, Any] = {}

    def wants(self, model: HookedLVLM, *, choosing: bool) -> Wants | None:
        """What `observe` has to see, so that detectors can look together; None where it looks in a way of its own."""
        return None

    def observe(self, model: HookedLVLM, prompts: Sequence[Prompt], *, choosing: bool, progress: bool) -> xr.Dataset:
        """What the detector sees of prompts; `choosing`: all that `choose` looks at, else what `values` needs."""
        wants = self.wants(model, choosing=choosing)
        if wants is None:
            raise NotImplementedError(f"{type(self).__name__} says neither what it wants to see nor how it looks.")
        return look(model, prompts, wants, progress=progress)

    def choose(self, seen: xr.Dataset, unsafe: np.ndarray) -> None:
        """Learn from what was seen of labelled prompts; for detectors that have something in `learned`."""
        raise NotImplementedError(f"{type(self).__name__} names what it learns, and does not learn it.")

    @abstractmethod
    def values(self, seen: xr.Dataset) -> np.ndarray:
        """One score a prompt, shape [prompt]; higher = more unsafe."""

    def drawn_values(self, seen: xr.Dataset) -> np.ndarray:
        """Scores under each draw of a detector that draws for every prompt, [draw, prompt]; one draw for all others."""
        return self.values(seen)[None]

    def fit(self, model: HookedLVLM, prompts: Sequence[Prompt], *, progress: bool = False) -> Self:
        """Learn on one part of the prompts and set the threshold on another.

        Args:
            model: The model to watch.
            prompts: Labelled. Declared splits are used (`selection` to learn, `threshold` to set the threshold, `test`
                is left out). Without them all prompts are learned from, and the threshold is set by cross-fitting: on
                the value of each prompt by what is learned from prompts of other folds; see `stability`.
            progress: Show the progress of a sweep over all heads; on a large model it is long.

        Returns:
            The detector itself.

        Raises:
            DetectorError: For too few prompts of a label, or values that separate nothing.
            CriterionError: Where a rule keeps no head.
        """
        check_is_model(model)
        talk, seen = self.fitting(model, as_prompts(prompts)), None
        while (asked := next_request(talk, seen)) is not None:
            seen = self.observe(model, asked.prompts, choosing=asked.choosing, progress=progress)
        return self

    def fit_run(self, run: RunLike, *, parts: dict[tuple[str, ...], xr.Dataset] | None = None) -> Self:
        """`fit` from a stored run, without the model; for detectors that look at nothing but what runs hold.

        Args:
            run: The run.
            parts: Where rows of the run are kept by the ids of their prompts, for detectors that share them and the
                scores made from them.

        Raises:
            DetectorError: As `fit`, and for a run that does not hold what the detector looks at.
        """
        run, origin = self._readable(run)
        check_run(run)
        talk, seen = self.fitting(origin, stand_ins(run)), None
        parts = {} if parts is None else parts
        while (asked := next_request(talk, seen)) is not None:
            ids = tuple(p.id for p in asked.prompts)
            seen = parts[ids] = parts[ids] if ids in parts else rows_of(run, asked.prompts)
        return self

    def stored_values(self, run: RunLike) -> np.ndarray:
        """`drawn_values` of the prompts of a run of the same model, [draw, prompt], without the model."""
        self._check_fitted()
        run, origin = self._readable(run)
        if origin.weight_hash != self.weight_hash:
            raise DetectorError(
                f"This detector was fitted on {self.model_name!r} (weights {self.weight_hash}); the run is of "
                f"{origin.name!r} (weights {origin.weight_hash})."
            )
        return self.drawn_values(run)

    def stored_scores(self, run: RunLike) -> np.ndarray:
        """`decision_function` on the prompts of a run of the same model, [prompt], without the model."""
        return self.stored_values(run)[0]

    def _readable(self, run: RunLike) -> tuple[xr.Dataset, Origin]:
        """The run, if it holds what the detector looks at, and what it was measured on."""
        raise DetectorError(
            f"{self.name} looks at more than a stored run holds. Give it the model: fit(model, prompts)."
        )

    def fitting(self, model: HookedLVLM | Origin, prompts: PromptSet) -> Generator[Request, xr.Dataset, None]:
        """`fit` as a conversation, so that detectors can look together: it asks to see prompts, and is sent what was
        seen of them.
        """
        parts = calibration_parts(prompts, seed=self.seed)
        values = stability = None
        if self._chooses():
            values, stability = self._learn((yield Request(parts.selection, choosing=True)), parts)
        if values is None:
            values = self.values((yield Request(parts.threshold, choosing=False)))
        self._settle(model, values, parts, stability)

    def _settle(self, model: HookedLVLM | Origin, values: np.ndarray, parts: Parts, stability: float | None) -> None:
        values = self._finite(values, parts.threshold)
        self.threshold, self.calibration = calibrated(values, parts, self.threshold_rule, stability)
        of = model if isinstance(model, Origin) else Origin(model.name, model.weight_hash, fingerprint(model))
        self.model_name, self.weight_hash, self.fingerprint = of

    @property
    def stability(self) -> float:
        """How alike the choices on parts of the calibration prompts were to the choice on all of them, 0 to 1.

        The mean over folds of how many heads (or layers) both chose, as a share of those that either chose. NaN where
        splits were declared, or nothing was chosen.
        """
        stability = self.calibration.get("stability")
        return float("nan") if stability is None else float(stability)

    def decision_function(self, model: HookedLVLM, prompts: Sequence[Prompt]) -> np.ndarray:
        """One score a prompt, shape [prompt]; higher = more unsafe.

        Raises:
            DetectorError: If the detector was fitted on another model, or a score is not finite.
        """
        self.check_model(model, prompts)
        return self._score(model, as_prompts(prompts))

    def predict(self, model: HookedLVLM, prompts: Sequence[Prompt]) -> np.ndarray:
        """The label of each prompt, shape [prompt]: `"unsafe"` where the score exceeds the threshold, else `"safe"`."""
        return np.where(self.decision_function(model, prompts) > self.threshold, "unsafe", "safe")

    def cost(self, model: HookedLVLM, prompts: Sequence[Prompt], *, max_new_tokens: int = 32) -> Cost:
        """What judging one prompt costs, measured one prompt at a time beside a plain greedy reply.

        Times depend on the machine and on what else it does; `forward_passes` does not.
        """
        return measure_cost(self, model, prompts, max_new_tokens=max_new_tokens)

    def save(self, path: str | Path) -> Path:
        """Write the detector into the folder `path`: `detector.json`, and its arrays as safetensors. Returns `path`."""
        self._check_fitted()
        learned = {name: getattr(self, name) for name in self.learned}
        arrays = {name: value for name, value in learned.items() if isinstance(value, np.ndarray)}
        description = {
            "name": self.name,
            "model": self.model_name,
            "weight_hash": self.weight_hash,
            "fingerprint": self.fingerprint,
            "threshold": self.threshold,
            "threshold_rule": self.threshold_rule,
            "options": self._options(),
            "learned": {name: value for name, value in learned.items() if name not in arrays},
            "calibration": self.calibration,
        }
        return write_stored(path, description, arrays)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The detector that `save` wrote into the folder `path`; nothing is unpickled.

        Raises:
            DetectorError: If there is none, it is damaged, or it is a detector of another name.
        """
        description, arrays = read_stored(path)
        if description["name"] != cls.name:
            raise DetectorError(
                f"{path} holds a {description['name']!r} detector, and {cls.__name__} reads {cls.name!r}. "
                "workbench.detectors.load_detector reads any."
            )
        try:
            learned = {**description["learned"], **arrays}
            if unknown := set(learned) ^ set(cls.learned):
                raise ValueError(f"{cls.name} stores {', '.join(cls.learned) or 'nothing'}; amiss: {sorted(unknown)}")
            detector = cls._from_options({**description["options"], "threshold": description["threshold_rule"]})
            for name, read in cls.learned.items():
                setattr(detector, name, read(learned[name]))
            detector.threshold = finite_number(description["threshold"])
            about = (word(description[key]) for key in ("model", "weight_hash", "fingerprint"))
            detector.model_name, detector.weight_hash, detector.fingerprint = about
            detector.calibration = calibration_record(description["calibration"])
        except (KeyError, TypeError, ValueError, WorkbenchError) as error:
            raise DetectorError(
                f"{path} does not describe a detector ({type(error).__name__}: {plain(error)}). Fit it again."
            ) from error
        return detector

    def _options(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON; the rule of the threshold is stored beside them."""
        return {name: getattr(self, name) for name in signature(type(self)).parameters if name != "threshold"}

    @classmethod
    def _from_options(cls, options: dict[str, Any]) -> Self:
        return cls(**options)

    def _chooses(self) -> bool:
        """Whether there is anything to learn from selection prompts."""
        return bool(self.learned)

    def _score(self, model: HookedLVLM, prompts: Sequence[Prompt]) -> np.ndarray:
        """The values of prompts, if all are finite: a score that is not is never taken for safe."""
        blocks = [prompts[start : start + BLOCK] for start in range(0, len(prompts), BLOCK)]
        seen = (self.observe(model, block, choosing=False, progress=False) for block in blocks)
        return self._finite(np.concatenate([self.values(of) for of in seen]), prompts)

    def _finite(self, scores: np.ndarray, prompts: Sequence[Prompt]) -> np.ndarray:
        if not np.isfinite(scores).all():
            first = prompts[int(np.flatnonzero(~np.isfinite(scores))[0])].id
            raise DetectorError(
                f"{self!r} gave no finite score for {int((~np.isfinite(scores)).sum())} of {len(scores)} prompts "
                f"(first: {first!r}). The model overflowed there; load it in float32, or leave the prompt out."
            )
        return scores

    def worker(self, model: HookedLVLM) -> HookedLVLM | None:
        """The model whose work a score costs; None if it is no model of ours."""
        return model

    def _learn(self, seen: xr.Dataset, parts: Parts) -> tuple[np.ndarray | None, float | None]:
        """Learn from what was seen of the selection part; with folds, also their values, and how stable the choice is.

        Values are [prompt], of each prompt by what was learned from the other folds.
        """
        unsafe, values, choices = unsafe_array(parts.selection), np.full(len(parts.fold), np.nan), []
        for fold in sorted(set(parts.fold)):
            inside, outside = (np.flatnonzero(of) for of in (parts.fold == fold, parts.fold != fold))
            self.choose(seen.isel(prompt=outside), unsafe[outside])
            choices.append(self._chosen())
            values[inside] = self.values(seen.isel(prompt=inside))
        self.choose(seen, unsafe)
        if not choices:
            return None, None
        chosen = self._chosen()
        return values, float(np.mean([len(c & chosen) / max(len(c | chosen), 1) for c in choices]))

    def _chosen(self) -> set[Any]:
        """What was chosen, as a set: heads, or layers."""
        return set()

    def heads_in_use(self) -> tuple[Head, ...]:
        """The heads that a score is made from, best first; none where it is not made from heads."""
        return ()

    def _check_fitted(self) -> None:
        if not np.isfinite(self.threshold):
            raise DetectorError(
                f"This {type(self).__name__} is not fitted. Call fit(model, prompts) first, or load one."
            )

    def check_model(self, model: HookedLVLM, prompts: Sequence[Prompt]) -> None:
        """Refuse a model the detector was not fitted on, and no prompts at all."""
        self._check_fitted()
        check_is_model(model)
        if not len(prompts):
            raise DetectorError("There are no prompts to judge: an empty sequence was given.")
        if model.weight_hash != self.weight_hash:
            raise DetectorError(
                f"This {type(self).__name__} was fitted on {self.model_name!r} (weights {self.weight_hash}) and cannot "
                f"judge with {model.name!r} (weights {model.weight_hash}, {str(model.dtype).removeprefix('torch.')}): "
                "its heads and its threshold mean nothing there. Fit one on this model."
            )
        if self.fingerprint and self.fingerprint != (now := fingerprint(model)):
            raise DetectorError(
                f"{model.name!r} has the weights that this {type(self).__name__} was fitted on, but reads prompts "
                f"otherwise (fingerprint {now}, then {self.fingerprint}): its chat template, tokenizer, pictures, "
                "configuration or rotary tables are others. Load it as it was, or fit a detector on it as it is."
            )
        if not self._fits(model):
            raise DetectorError(
                f"{self!r} does not fit {model.name!r}, the model it says it was fitted on: it names heads or layers "
                "that the model has not, or holds weights of another length. The stored file was changed; fit it again."
            )

    def _fits(self, model: HookedLVLM) -> bool:
        """Whether what was learned has the sizes of the model; what was loaded from a file may not."""
        return True


def check_is_model(model: object) -> None:
    """Refuse what is no model of the workbench."""
    if not isinstance(model, HookedLVLM):
        raise DetectorError(f"A detector needs a model from workbench.load_model; got a {type(model).__name__}.")
