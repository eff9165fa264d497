"""`DetectorRecord`: one detector as the registry knows it."""

from workbench.detectors.detector import Detector
from workbench.registry import Record

DetectorRecord = Record[Detector]
