"""Detectors: from one model and labelled prompts to a score for each new prompt, higher = more unsafe.

Each file of detectors says in `DETECTORS` what it adds; a new file is named once, here.
"""

from pathlib import Path
from typing import Any

from workbench.checking import plainly
from workbench.detectors import (
    direction,
    fused_heads,
    gradsafe,
    hidden_detect,
    judge,
    one_head,
    probed_states,
    rcs,
    sahs,
)
from workbench.detectors.cost import Cost
from workbench.detectors.detector import Detector
from workbench.detectors.direction import DirectionDetector
from workbench.detectors.evaluation import evaluate, graded_scores
from workbench.detectors.fused_heads import FusedHeadsDetector
from workbench.detectors.gradsafe import GradSafe
from workbench.detectors.hidden_detect import HiddenDetect
from workbench.detectors.judge import JudgeDetector
from workbench.detectors.one_head import OneHeadDetector
from workbench.detectors.probed_states import ProbedStateDetector
from workbench.detectors.rcs import RCSDetector
from workbench.detectors.record import DetectorRecord
from workbench.detectors.sahs import SAHsDetector
from workbench.detectors.stored import read_stored
from workbench.errors import DetectorError
from workbench.registry import Registry

__all__ = [
    "DETECTORS",
    "Cost",
    "Detector",
    "DetectorRecord",
    "DirectionDetector",
    "FusedHeadsDetector",
    "GradSafe",
    "HiddenDetect",
    "JudgeDetector",
    "OneHeadDetector",
    "ProbedStateDetector",
    "RCSDetector",
    "SAHsDetector",
    "evaluate",
    "graded_scores",
    "list_detectors",
    "load_detector",
    "make_detector",
    "register_detector",
]

DETECTORS: Registry[DetectorRecord] = Registry(
    "detector",
    (
        record
        for module in (one_head, fused_heads, sahs, hidden_detect, probed_states, rcs, gradsafe, direction, judge)
        for record in module.DETECTORS
    ),
    error=DetectorError,
)
register_detector = DETECTORS.register
"""Make a detector known in this process; one of the same name is replaced."""
list_detectors = DETECTORS.records
"""All detectors: what each needs, and what its score is."""


def make_detector(name: str, **options: Any) -> Detector:
    """A detector by its name, not fitted yet; `options` for its class come before those of the name.

    Raises:
        DetectorError: If there is none of that name.
    """
    return DETECTORS.named(name).make(**options)


def load_detector(path: str | Path) -> Detector:
    """The stored detector at `path`, whichever it is."""
    name = read_stored(path)[0]["name"]
    if not isinstance(name, str) or name not in DETECTORS:
        raise DetectorError(f"{path} holds a detector {plainly(name)}; this version knows {', '.join(DETECTORS)}.")
    return DETECTORS[name].kind.load(path)
