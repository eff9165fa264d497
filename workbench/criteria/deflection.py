"""How far masking a head moves the model's final state: the angle, and the distances beside it."""

import numpy as np

from workbench.criteria.registry import Criterion


def angle_deg(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Angle between vectors along the last axis, degrees, 0-180; NaN where one of them is zero.

    Kahan's form, 2·atan2(|û − v̂|, |û + v̂|), in float64: accurate at every angle, where the arc cosine of a dot product
    loses half the digits near 0.
    """
    u, v = unit_vectors(u), unit_vectors(v)
    return np.rad2deg(2 * np.arctan2(np.linalg.norm(u - v, axis=-1), np.linalg.norm(u + v, axis=-1)))


def unit_vectors(vectors: np.ndarray) -> np.ndarray:
    """The vectors along the last axis over their length, in float64; NaN where that is zero."""
    vectors = np.asarray(vectors, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


CRITERIA = (
    Criterion.stored(
        "deflection",
        unit="degrees",
        label="Deflection angle",
        direction="0-180; larger = masking the head turns the final state further",
        source="Oh Defense, 'One Head to Rule Them All' (NeurIPS 2025), per-sample angle; cirteo/Oh-Defense",
        quirks="The released code takes the arc cosine in float32, which resolves about 0.02 degrees near 0.",
    ),
    Criterion.stored(
        "l2",
        unit="state units",
        label="State distance",
        direction="0 or more; larger = masking the head moves the final state further",
        source="this project, beside the angle",
        quirks="Its scale is the model's own: compare heads of one model, not models.",
    ),
    Criterion.stored(
        "norm_ratio",
        label="Norm ratio",
        direction="0 or more; 1 = unchanged; the rules read its distance from 1, shorter and longer alike",
        source="this project, beside the angle",
        quirks="After a final norm nearly every state has the same length, so that little of a change is left to see.",
        strength=lambda ratio: np.abs(ratio - 1),
    ),
)
