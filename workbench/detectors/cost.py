"""`Cost`: what it costs to judge one prompt."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from workbench.errors import DetectorError
from workbench.models.hooked import HookedLVLM
from workbench.prompts.prompt import Prompt


@dataclass(frozen=True)
class Cost:
    """What it costs to judge one prompt.

    Attributes:
        forward_passes: Work in units of one unmasked forward pass of the prompt, from counts of layers and positions.
            NaN where the judge is no model of ours.
        detect_s: Median seconds for one prompt, images prepared and all.
        generate_s: Median seconds of a plain greedy reply to it.
        latency_ratio: `detect_s / generate_s`.
        n_prompts: On how many prompts it was measured.
    """

    forward_passes: float
    detect_s: float
    generate_s: float
    latency_ratio: float
    n_prompts: int


class Judges(Protocol):
    """What has a cost: a detector."""

    def decision_function(self, model: HookedLVLM, prompts: Sequence[Prompt]) -> np.ndarray: ...

    def worker(self, model: HookedLVLM) -> HookedLVLM | None: ...


def passes(model: HookedLVLM, prompt: Prompt, work: int) -> float:
    """Work on a prompt, counted in layers × rows × positions, in units of one unmasked pass of it."""
    return work / (model.n_layers * model.encode(prompt).n_tokens)


def measure_cost(detector: Judges, model: HookedLVLM, prompts: Sequence[Prompt], *, max_new_tokens: int) -> Cost:
    """What judging one prompt costs, measured one prompt at a time beside a plain greedy reply."""
    if not len(prompts):
        raise DetectorError("The cost of a detector is measured on prompts; got none. Give about ten.")
    counted, detect = cost_of_each(detector, model, prompts)
    reply = []
    for prompt in prompts:
        began = time.perf_counter()
        model.generate(prompt, max_new_tokens=max_new_tokens)
        reply.append(time.perf_counter() - began)
    detect_s, generate_s = float(np.median(detect)), float(np.median(reply))
    forward = float(np.mean(counted)) if counted else float("nan")
    return Cost(forward, detect_s, generate_s, detect_s / generate_s, len(prompts))


def cost_of_each(detector: Judges, model: HookedLVLM, prompts: Sequence[Prompt]) -> tuple[list[float], list[float]]:
    """Passes (none where the judge is no model of ours) and seconds of judging each prompt, one at a time."""
    detector.decision_function(model, prompts[:1])  # what the first call alone has to do is no cost of a prompt
    worker: Any = detector.worker(model)
    counted, seconds = [], []
    for prompt in prompts:
        before, began = (0 if worker is None else worker.work.layer_tokens), time.perf_counter()
        detector.decision_function(model, [prompt])
        seconds.append(time.perf_counter() - began)
        if worker is not None:
            counted.append(passes(worker, prompt, worker.work.layer_tokens - before))
    return counted, seconds
