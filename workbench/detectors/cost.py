"""`Cost`: what it costs to judge one prompt."""

from dataclasses import dataclass


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
