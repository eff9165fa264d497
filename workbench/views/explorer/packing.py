"""Arrays for the browser: sent once, as bytes beside a JSON record of what lies where."""

from typing import Any

import numpy as np

from workbench.views import theme
from workbench.views.charts import Scale

KINDS = {np.dtype(np.float32): "f4", np.dtype(np.uint16): "u2", np.dtype(np.uint8): "u1"}
SHADES = 256


class Packed:
    """Named arrays, one after the other in `data`.

    Attributes:
        record: `arrays` by name (`at`, `shape`, `kind`), and `scales` of those that are shown as colours.
    """

    def __init__(self) -> None:
        self.record: dict[str, Any] = {"arrays": {}, "scales": {}}
        self._parts: list[bytes] = []
        self._size = 0

    def __repr__(self) -> str:
        return f"Packed({len(self.record['arrays'])} arrays, {self._size} bytes)"

    def add(self, name: str, array: np.ndarray) -> None:
        """Keep an array of one of the kinds in `KINDS`."""
        room = -self._size % 4  # where the browser can read four bytes at once
        part = bytes(room) + np.ascontiguousarray(array).tobytes()
        self.record["arrays"][name] = {
            "at": self._size + room,
            "shape": list(array.shape),
            "kind": KINDS[array.dtype],
        }
        self._parts.append(part)
        self._size += len(part)

    def scale(self, name: str, scale: Scale, unit: str) -> None:
        """Keep how an array is coloured."""
        self.record["scales"][name] = {
            "low": scale.low,
            "high": scale.high,
            "log": scale.log,
            "colours": scale.colours,
            "ticks": [float(tick) for tick in scale.ticks],
            "unit": unit,
        }

    @property
    def data(self) -> bytes:
        return b"".join(self._parts)


def colours() -> dict[str, list[str]]:
    """Every colour map that a scale may name, in 256 steps."""
    steps = [i / (SHADES - 1) for i in range(SHADES)]
    return {name: [c for c, _ in theme.shades(name, steps)] for name in (theme.SEQUENTIAL, theme.DIVERGING)}
