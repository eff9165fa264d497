"""A drawing inside a widget whose marks can be clicked: Python draws SVG, the browser only says what was clicked.

Plotly's own widget does this too, but brings five megabytes of script for every figure; where the browser is busy,
anywidget gives up on it after two seconds, and the figure stays empty or deaf. This one is forty lines.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import ipywidgets as widgets
import traitlets

# Without anywidget the drawings are shown but not clicked: heads are then chosen with the dropdowns.
LIVE = find_spec("anywidget") is not None

_SCRIPT = """
export default {
  render({ model, el }) {
    const drawing = document.createElement("div");
    const tip = document.createElement("div");
    tip.className = "wb-tip";
    tip.hidden = true;
    el.classList.add("wb-pane");
    el.append(drawing, tip);
    const draw = () => {
      const focused = drawing.contains(document.activeElement);
      drawing.innerHTML = model.get("svg");
      tip.hidden = true;
      if (focused) drawing.querySelector("svg")?.focus();
    };
    draw();
    model.on("change:svg", draw);
    drawing.addEventListener("click", (event) => {
      const mark = event.target.closest("[data-key]");
      if (mark) model.send({ key: mark.dataset.key });
    });
    drawing.addEventListener("pointermove", (event) => {
      const mark = event.target.closest("[data-tip]");
      tip.hidden = !mark;
      if (!mark) return;
      tip.textContent = mark.dataset.tip;
      const box = el.getBoundingClientRect();
      const left = event.clientX - box.left;
      tip.style.top = `${event.clientY - box.top + 14}px`;
      tip.style.left = left > box.width / 2 ? "" : `${left + 10}px`;
      tip.style.right = left > box.width / 2 ? `${box.width - left + 6}px` : "";
    });
    drawing.addEventListener("pointerleave", () => { tip.hidden = true; });
    drawing.addEventListener("keydown", (event) => {
      const steps = { ArrowUp: [1, 0], ArrowDown: [-1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
      if (!(event.key in steps)) return;
      event.preventDefault();
      event.stopPropagation();
      model.send({ step: steps[event.key] });
    });
  },
};
"""
_CSS = """
.wb-pane { position: relative; }
.wb-pane svg { display: block; border-radius: 4px; }
.wb-pane svg:focus { outline: 1px solid var(--jp-border-color1, #BDBDBD); }
.wb-pane svg:focus-visible { outline: 2px solid var(--jp-brand-color1, #1976D2); }
.wb-pane [data-key] { cursor: pointer; }
.wb-tip { position: absolute; z-index: 10; pointer-events: none; padding: 3px 8px; border-radius: 4px; font-size: 12px;
          background: #2B3138; color: #fff; white-space: nowrap; }
"""


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
        _esm = _SCRIPT
        _css = _CSS
        svg = traitlets.Unicode().tag(sync=True)

        def __repr__(self) -> str:
            return f"Drawing({len(self.svg)} characters)"
