"""A place for a plotly figure inside a widget: live with `FigureWidget`, redrawn as a plain figure without it."""

from collections.abc import Callable, Sequence

import ipywidgets as widgets
import plotly.graph_objects as go
from IPython.display import display


class _Live(go.FigureWidget):
    """A `FigureWidget` that is announced to the browser once, complete.

    The original is announced empty and filled by a second message; where the browser is slow, it draws what it has
    after the first and never looks again.
    """

    _complete = False

    def __init__(self, figure: go.Figure) -> None:
        super().__init__(figure)
        self._config = {"displayModeBar": False}
        self._complete = True
        self.open()

    def open(self) -> None:
        if self._complete:
            super().open()

    def __repr__(self) -> str:
        return f"Figure({len(self.data)} traces)"


class Canvas:
    """Shows one figure and changes it in place.

    Attributes:
        widget: What to put into a box.
        live: Whether clicks reach Python. `FigureWidget` needs anywidget; without it figures are drawn but not clicked,
            and heads are chosen with the dropdowns.
    """

    def __init__(
        self,
        figure: go.Figure,
        *,
        on_cell: Callable[[int, int], None] | None = None,
        on_point: Callable[[str], None] | None = None,
    ) -> None:
        self._on_cell, self._on_point = on_cell, on_point
        self._figure = figure
        try:
            self.widget: widgets.Widget = _Live(figure)
        except ImportError:
            self.live = False
            self.widget = widgets.Output()
            self.show(figure)
            return
        self.live = True
        self._listen()

    def _listen(self) -> None:
        """Send clicks on: a heat map reports the clicked cell as [row, column], a scatter the index of the point."""
        for trace in self.widget.data:
            if trace.type == "heatmap" and self._on_cell:
                trace.on_click(self._cell_clicked)
            elif self._on_point and trace.customdata is not None:
                trace.on_click(self._point_clicked)

    def _cell_clicked(self, trace: go.Heatmap, points: object, state: object) -> None:
        for row, column in points.point_inds[:1]:
            self._on_cell(int(row), int(column))

    def _point_clicked(self, trace: go.Scatter, points: object, state: object) -> None:
        for index in points.point_inds[:1]:
            self._on_point(str(trace.customdata[index]))

    def frame(self, shapes: Sequence[dict[str, object]]) -> None:
        """Change nothing but the shapes drawn over the figure."""
        if self.live:
            self.widget.layout.shapes = shapes
        else:
            self.show(self._figure.update_layout(shapes=shapes))

    def show(self, figure: go.Figure) -> None:
        """Replace what is shown by `figure`, which has the same build (the same function made it)."""
        self._figure = figure
        if not self.live:
            with self.widget:
                self.widget.clear_output(wait=True)
                display(figure)
            return
        same = [t.type for t in self.widget.data] == [t.type for t in figure.data]
        with self.widget.batch_update():
            if same:
                for old, new in zip(self.widget.data, figure.data, strict=True):
                    old.update({k: v for k, v in new.to_plotly_json().items() if k != "type"}, overwrite=True)
            self.widget.layout.update(figure.layout.to_plotly_json(), overwrite=True)
        if not same:
            self.widget.data = ()
            self.widget.add_traces(figure.data)
            self._listen()
