"""What the checks of `workbench check` stand on: the model under check, its prompts and passes, and their register."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, wraps
from inspect import isgeneratorfunction
from typing import Any

from PIL import ImageOps
from torch import Tensor

from workbench.models.encode import Encoded
from workbench.models.hooked import HookedLVLM
from workbench.models.masks import Mask, masked_z
from workbench.models.probes import probe_prompt, relative_error, tolerance
from workbench.models.walk import BasePass, base_pass
from workbench.prompts.prompt import Prompt

# Above this many layers or heads, a spread of them stands for all, so that a real model is checked in minutes.
MOST = 6


class Failed(Exception):
    """The check did not hold."""


class NotApplicable(Exception):
    """The family gives this check nothing to look at."""


class Probe:
    """The model under check, a prompt, and its base pass."""

    def __init__(self, model: HookedLVLM) -> None:
        self.model = model
        self.prompt: Prompt = probe_prompt(model)
        if self.prompt.image is not None:
            # Not square, so that rows and columns cannot be mistaken for each other.
            self.prompt = dataclasses.replace(self.prompt, image=self.prompt.image.resize((64, 40)))
        self.limit = tolerance(model)

    @cached_property
    def encoded(self) -> Encoded:
        return self.model.encode(self.prompt)

    @cached_property
    def base(self) -> BasePass:
        return base_pass(self.model, [self.encoded])

    @cached_property
    def other_prompt(self) -> Prompt:
        """As long as the prompt, but with other words and, where there is one, another picture."""
        words = " ".join(reversed(self.prompt.text.split()))
        image = ImageOps.invert(self.prompt.image) if self.prompt.image is not None else None
        return dataclasses.replace(self.prompt, id="self-check-2", text=words, image=image)

    @property
    def layers(self) -> list[int]:
        return spread(self.model.masked_layers)

    @property
    def heads(self) -> list[int]:
        return spread(range(self.model.n_heads))

    @property
    def half_the_heads(self) -> tuple[int, ...]:
        return tuple(range(0, self.model.n_heads, 2))

    def full(self, prompt: Prompt | None = None) -> Tensor:
        """Final state of a whole forward under whatever is held on the model, `[d_model]`."""
        return self.model.state(prompt or self.prompt)

    def delta(self, layer: int, projection: str, mask: Mask) -> Tensor:
        """What a mask on all heads of a layer changes in z, `[row, pos, head, d_head]`."""
        return masked_z(self.model, self.base, layer, projection, mask) - self.base.recordings[layer].z

    def near(self, what: str, found: Tensor, wanted: Tensor, limit: float | None = None) -> float:
        limit = self.limit if limit is None else limit
        error = relative_error(found, wanted)
        if not error <= limit:
            raise Failed(f"{what}: differ by {error:.1e} of the largest value, wanted at most {limit:.1e}")
        return error

    def compare(self, pairs: Iterator[tuple[Any, ...]]) -> str:
        """Hold all (what, found, wanted) that a check yields against each other; its note, and the largest error."""
        worst = 0.0
        while True:
            try:
                worst = max(worst, self.near(*next(pairs)))
            except StopIteration as end:
                return f"{end.value or ''}largest difference {worst:.1e}"


CHECKS: dict[str, Callable[[Probe], str]] = {}


def check(name: str) -> Callable[[Callable[[Probe], Any]], Callable[[Probe], str]]:
    """Register a check: it returns the numbers that convince, or raises `Failed`.

    One that only compares yields (what, found, wanted) instead, with a limit of its own where it needs one, and
    returns what is said before the largest difference.
    """

    def register(function: Callable[[Probe], Any]) -> Callable[[Probe], str]:
        @wraps(function)
        def run(probe: Probe) -> str:
            return probe.compare(function(probe)) if isgeneratorfunction(function) else function(probe)

        CHECKS[name] = run
        return run

    return register


def spread(numbers: Sequence[int]) -> list[int]:
    """All of a short list; of a long one, `MOST` from first to last."""
    if len(numbers) <= MOST:
        return list(numbers)
    return sorted({numbers[round(i * (len(numbers) - 1) / (MOST - 1))] for i in range(MOST)})
