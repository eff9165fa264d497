"""Detectors: from one model and labelled prompts to a score for each new prompt, higher = more unsafe."""

from pathlib import Path

from workbench.detectors.detector import Cost, Detector, read_stored
from workbench.detectors.evaluation import evaluate, graded_scores
from workbench.detectors.hidden_detect import HiddenDetect
from workbench.detectors.judge import JudgeDetector
from workbench.detectors.one_head import OneHeadDetector
from workbench.detectors.sahs import SAHsDetector
from workbench.errors import DetectorError

__all__ = [
    "Cost",
    "Detector",
    "HiddenDetect",
    "JudgeDetector",
    "OneHeadDetector",
    "SAHsDetector",
    "evaluate",
    "graded_scores",
    "load_detector",
]
_KINDS: dict[str, type[Detector]] = {d.kind: d for d in (OneHeadDetector, SAHsDetector, HiddenDetect, JudgeDetector)}


def load_detector(path: str | Path) -> Detector:
    """The stored detector at `path`, of whatever kind it is."""
    kind = read_stored(path)[0]["kind"]
    if kind not in _KINDS:
        raise DetectorError(f"{path} holds a detector of kind {kind!r}; this version knows {', '.join(_KINDS)}.")
    return _KINDS[kind].load(path)
