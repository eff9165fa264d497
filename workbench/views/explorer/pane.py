"""A drawing inside a widget whose marks can be clicked: Python draws SVG, the browser only says what was clicked.

Plotly's own widget does this too, but brings five megabytes of script for every figure; where the browser is busy,
anywidget gives up on it after two seconds, and the figure stays empty or deaf. This one (`pane.js`) is forty lines.
"""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import traitlets

# Without anywidget the drawings are shown but not clicked: heads are then chosen with the dropdowns.
LIVE = find_spec("anywidget") is not None


class Pane:
    """A place for a drawing.

    Attributes:
        widget: What to put into a box.
        live: Whether clicks reach Python; they do not where anywidget is not installed.
    """

    def __init__(
        self,
        svg: str,
        *,
        on_key: Callable[[str], None],
        on_step: Callable[[int, int], None] | None = None,
    ) -> None:
        self._on_key, self._on_step = on_key, on_step
        self.live = LIVE
        self.widget: widgets.Widget = _Drawing(svg=svg) if self.live else widgets.HTML(svg)
        if self.live:
            self.widget.on_msg(self._heard)

    def draw(self, svg: str) -> None:
        """Show another drawing in its place."""
        setattr(self.widget, "svg" if self.live else "value", svg)

    def _heard(self, widget: Any, message: dict[str, Any], buffers: Any) -> None:
        """`key`: the mark that was clicked. `step`: the arrow key that was pressed, as (layers up, heads right)."""
        if isinstance(message.get("key"), str):
            self._on_key(message["key"])
        elif self._on_step and isinstance(message.get("step"), list) and len(message["step"]) == 2:
            self._on_step(*(int(part) for part in message["step"]))


if LIVE:
    import anywidget

    class _Drawing(anywidget.AnyWidget):
        _esm = Path(__file__).with_suffix(".js")
        svg = traitlets.Unicode().tag(sync=True)

        def __repr__(self) -> str:
            return f"Drawing({len(self.svg)} characters)"
