"""`DetectorRecord`: one detector as the registry knows it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from workbench.detectors.detector import Detector


@dataclass(frozen=True)
class DetectorRecord:
    """One detector as tables, help texts, `make_detector` and error messages know it.

    Attributes:
        name: In kebab case, unique.
        detector: The class.
        needs: What it is fitted on.
        says: What its score is, and its unit.
        source: Paper and public code; "this project" where it is ours.
        options: What the class is called with under this name.
    """

    name: str
    detector: type[Detector]
    needs: str
    says: str
    source: str
    options: Mapping[str, Any] = field(default_factory=dict)
