"""Who enters the arena: detectors by name and options, fitted and asked together, so that each prompt is seen once.

A detector is written as its name and its options: `one-head`, `one-head:criterion=ships:rule=auroc`,
`one-head-fused:k=3/5:fuse=mean/max`, where alternatives make a detector each. That is also its key in every table.
"""

import json
import logging
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import xarray as xr

from workbench.checking import plainly
from workbench.criteria import get_criterion
from workbench.criteria.registry import TRAINED
from workbench.detectors import DETECTORS, make_detector
from workbench.detectors.detector import Detector
from workbench.detectors.evaluation import unseen
from workbench.detectors.looks import BLOCK, ROWS, Request, Wants, joined, look, next_request
from workbench.errors import DetectorError, WorkbenchError
from workbench.models.hooked import HookedLVLM
from workbench.models.masks import Mask
from workbench.plain import plain
from workbench.prompts.prompt import PromptSet
from workbench.sweeps.execution import progress_bar

log = logging.getLogger(__name__)
Talk = Generator[Request, xr.Dataset, None]

PROBES = ("probe", "sahs")  # the criterion, and the detector that several probed heads make


@dataclass(eq=False)
class Entrant:
    """A detector in the arena.

    Attributes:
        key: Its name and its options.
        detector: Fitted, once it is in.
        values: Scores of the test prompts, [draw, prompt].
    """

    key: str
    detector: Detector
    values: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))

    @property
    def flagged(self) -> np.ndarray:
        """Whether each test prompt is over the threshold, [draw, prompt]."""
        return np.asarray(self.values > self.detector.threshold)


def grid(
    criteria: Sequence[str] = ("deflection", "ships", "probe"),
    rules: Sequence[str] = ("sensitivity", "selectivity", "auroc"),
    projections: Sequence[str] = ("query", "value"),
    n_heads: Sequence[int] = (1, 3, 5),
) -> tuple[str, ...]:
    """The detectors that measure × rule × projection × number of heads make, as `arena` takes them.

    One head detects by its own values, several by the mean of theirs, each on its own scale; probed heads by one
    regression. Pairs of a criterion and a rule without a meaning are left out.

    Examples:
        >>> from workbench.comparison import grid
        >>> grid(("deflection", "probe"), ("auroc",), ("query",), (1, 3))[:2]
        ('one-head:criterion=deflection:rule=auroc:projection=query', \
'one-head-fused:criterion=deflection:rule=auroc:projection=query:k=3')
    """
    found: list[str] = []
    for name, rule, projection, k in product(criteria, rules, projections, n_heads):
        if rule not in get_criterion(name).rules:
            continue
        if name == PROBES[0]:
            found.append(f"{PROBES[1]}:rule={rule}:k={k}")
        elif get_criterion(name).kind != TRAINED:
            how = f"criterion={name}:rule={rule}:projection={projection}"
            found.append(f"one-head:{how}" if k == 1 else f"one-head-fused:{how}:k={k}")
    return tuple(dict.fromkeys(found))


def entrants(given: Any, *, seed: int) -> list[Entrant]:
    """Detectors from names with options, from objects, or from objects by key.

    Raises:
        DetectorError: For a name that there is not, an option it has not, or none at all.
    """
    if isinstance(given, Mapping):
        found = [Entrant(str(key), _checked(detector)) for key, detector in given.items()]
    else:
        given = (
            [given] if isinstance(given, str | Detector) else list(given) if isinstance(given, Iterable) else [given]
        )
        found = [entrant for one in given for entrant in _of_one(one, seed)]
    seen: dict[str, int] = {}
    for entrant in found:
        seen[entrant.key] = seen.get(entrant.key, 0) + 1
        if seen[entrant.key] > 1:
            entrant.key += f" ({seen[entrant.key]})"
    return found


def _of_one(given: Any, seed: int) -> list[Entrant]:
    if not isinstance(given, str):
        return [Entrant(_checked(given).name, given)]
    name, *options = given.split(":")
    DETECTORS.named(name)
    choices: dict[str, list[str]] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals or not key:
            raise DetectorError(
                f"An option of a detector is written name=value; {plainly(given)} has {plainly(option)}."
            )
        choices[key] = value.split("/")
    made = []
    for values in product(*choices.values()):
        asked = dict(zip(choices, values, strict=True))
        key = ":".join([name, *(f"{option}={value}" for option, value in asked.items())])
        try:
            detector = make_detector(name, **{"seed": seed, **{k: _value(v) for k, v in asked.items()}})
        except TypeError as error:
            raise DetectorError(f"{plain(key)}: {error}.") from None
        made.append(Entrant(key, detector))
    return made


def _value(text: str) -> Any:
    """A number, true, false or null as JSON has them; anything else is a word."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _checked(detector: Any) -> Detector:
    if not isinstance(detector, Detector):
        raise DetectorError(
            f"The arena takes detectors by name ({', '.join(DETECTORS)}), or as objects; got a "
            f"{type(detector).__name__}."
        )
    return detector


class Together:
    """Detectors that look at prompts together: what they want to see is joined, mask by mask.

    Args:
        model: The model they watch.
        entered: Those that say what they want to see; the others look for themselves.
        choosing: Whether they look in order to choose.
    """

    def __init__(self, model: HookedLVLM, entered: Sequence[Entrant], *, choosing: bool) -> None:
        self.model = model
        self.alone: list[Entrant] = []
        self.groups: list[tuple[list[Entrant], Wants]] = []
        by_mask: dict[Mask | None, list[tuple[Entrant, Wants]]] = {}
        for entrant in entered:
            if (wants := entrant.detector.wants(model, choosing=choosing)) is None:
                self.alone.append(entrant)
            else:
                by_mask.setdefault(wants.mask, []).append((entrant, wants))
        unmasked = by_mask.pop(None, [])
        for place, members in enumerate(list(by_mask.values()) or [[]]):
            together = members + (unmasked if place == 0 else [])
            if together:
                self.groups.append(([e for e, _ in together], joined([w for _, w in together])))


def fit_all(
    model: HookedLVLM,
    entered: Sequence[Entrant],
    prompts: PromptSet,
    left_out: dict[str, str],
    **how: Any,
) -> list[Entrant]:
    """Fit what is not fitted yet, from one look at the prompts (`how`: `look`'s); who cannot goes into `left_out`."""
    fitted = {e.key for e in entered if np.isfinite(e.detector.threshold)}
    alone: list[Entrant] = []
    asked: dict[str, tuple[Entrant, Talk, Request]] = {}
    for entrant in entered:
        if entrant.key not in fitted:
            with noted(left_out, entrant.key):
                if entrant.detector.wants(model, choosing=True) is None:
                    alone.append(entrant)
                else:
                    talk = entrant.detector.fitting(model, prompts)
                    asked[entrant.key] = entrant, talk, next(talk)
    while asked:  # all who ask to see the same prompts see them together
        first = next(iter(asked.values()))[2]
        same = {key: of for key, of in asked.items() if _alike(of[2], first)}
        asked = {key: of for key, of in asked.items() if key not in same}
        together = Together(model, [entrant for entrant, _, _ in same.values()], choosing=first.choosing)
        for members, wants in together.groups:
            seen = look(model, first.prompts, wants, **how)
            for entrant in members:
                with noted(left_out, entrant.key):
                    talk = same[entrant.key][1]
                    if (more := next_request(talk, seen)) is None:
                        fitted.add(entrant.key)
                    else:
                        asked[entrant.key] = entrant, talk, more
    for entrant in alone:
        with noted(left_out, entrant.key):
            entrant.detector.fit(model, prompts, progress=bool(how.get("progress")))
            fitted.add(entrant.key)
    return [e for e in entered if e.key in fitted]


def _alike(one: Request, other: Request) -> bool:
    return one.choosing == other.choosing and [p.id for p in one.prompts] == [p.id for p in other.prompts]


def score_all(
    model: HookedLVLM,
    entered: Sequence[Entrant],
    prompts: PromptSet,
    left_out: dict[str, str],
    *,
    progress: bool,
    run: xr.Dataset | None = None,
) -> list[Entrant]:
    """Score the test prompts, block by block, from one look at each; who cannot goes into `left_out`."""
    found: dict[str, list[np.ndarray]] = {}
    for entrant in entered:
        with noted(left_out, entrant.key):
            unseen(entrant.detector, prompts)
            entrant.detector.check_model(model, prompts)
            found[entrant.key] = []
    together = Together(model, [e for e in entered if e.key in found], choosing=False)
    with progress_bar(progress) as bar:
        line = bar.add_task("test prompts seen", total=len(prompts) * (len(together.groups) + len(together.alone)))
        for start in range(0, len(prompts), BLOCK):
            block = prompts[start : start + BLOCK]
            for members, wants in together.groups:
                seen = look(model, block, wants, run=run)
                for entrant in members:
                    with noted(left_out, entrant.key):
                        found[entrant.key].append(_finite(entrant.key, entrant.detector.drawn_values(seen)))
                bar.advance(line, len(block))
            for entrant in together.alone:
                for begin in range(0, len(block), ROWS):
                    part = block[begin : begin + ROWS]
                    with noted(left_out, entrant.key):
                        found[entrant.key].append(entrant.detector.decision_function(model, part)[None])
                    bar.advance(line, len(part))
    for entrant in entered:
        if entrant.key not in left_out:
            entrant.values = np.concatenate(found[entrant.key], axis=1)
    return [e for e in entered if e.key not in left_out]


def _finite(key: str, values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all():
        raise DetectorError(f"{key} gave no finite score for {int((~np.isfinite(values)).any(0).sum())} test prompts.")
    return values


@contextmanager
def noted(left_out: dict[str, str], key: str) -> Iterator[None]:
    """Put what goes wrong within a block into `left_out`, in place of raising it: detectors and guards may be others'
    code, and one that breaks takes nobody with it.
    """
    try:
        yield
    except Exception as error:
        log.info("%s was left out.", key, exc_info=True)
        left_out.setdefault(
            key, str(error) if isinstance(error, WorkbenchError) else f"{type(error).__name__}: {error}"
        )
