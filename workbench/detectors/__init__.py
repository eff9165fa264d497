"""Detectors, guarded generation, judges of replies, causal checks, and the breakdown that compares them all."""

from pathlib import Path

from workbench.detectors.behaviour import attack_success
from workbench.detectors.breakdown import Breakdown, compare
from workbench.detectors.detector import Cost, Detector, read_stored
from workbench.detectors.evaluation import evaluate, graded_scores
from workbench.detectors.groups import greedy_groups, head_interactions
from workbench.detectors.guard import RefusalRecipe, Reply, generate
from workbench.detectors.hidden_detect import HiddenDetect
from workbench.detectors.judge import JudgeDetector
from workbench.detectors.judging import attack_success_rate, judge_agreement, judge_refusal, judge_replies
from workbench.detectors.one_head import OneHeadDetector
from workbench.detectors.replies import generate_batch
from workbench.detectors.sahs import SAHsDetector
from workbench.detectors.suppression import suppress, suppress_and_reselect
from workbench.errors import DetectorError

__all__ = [
    "Breakdown",
    "Cost",
    "Detector",
    "HiddenDetect",
    "JudgeDetector",
    "OneHeadDetector",
    "RefusalRecipe",
    "Reply",
    "SAHsDetector",
    "attack_success",
    "attack_success_rate",
    "compare",
    "evaluate",
    "generate",
    "generate_batch",
    "graded_scores",
    "greedy_groups",
    "head_interactions",
    "judge_agreement",
    "judge_refusal",
    "judge_replies",
    "load_detector",
    "suppress",
    "suppress_and_reselect",
]
_KINDS: dict[str, type[Detector]] = {d.kind: d for d in (OneHeadDetector, SAHsDetector, HiddenDetect, JudgeDetector)}


def load_detector(path: str | Path) -> Detector:
    """The stored detector at `path`, of whatever kind it is."""
    kind = read_stored(path)[0]["kind"]
    if kind not in _KINDS:
        raise DetectorError(f"{path} holds a detector of kind {kind!r}; this version knows {', '.join(_KINDS)}.")
    return _KINDS[kind].load(path)
