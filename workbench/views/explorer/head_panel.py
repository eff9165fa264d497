"""One head, close up: its scores, its values on safe and unsafe prompts, and what it does on a chosen prompt."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import ipywidgets as widgets
import numpy as np
import pandas as pd
import xarray as xr

from workbench.axes import head_name
from workbench.errors import WorkbenchError
from workbench.views import charts, distributions, theme
from workbench.views.charts import Head
from workbench.views.explorer import markup, svg
from workbench.views.explorer.inspector import Attended, Inspector
from workbench.views.explorer.pane import Pane
from workbench.views.tables import number

_NO_MODEL = (
    "Stored data only. Give the model too, wb.explore(run, model=model), to see where this head looks and what the "
    "model says with and without it."
)
_NO_PROMPTS = (
    "The run keeps prompt ids, not the prompts. Give them too, wb.explore(run, model=model, prompts=prompts), to see "
    "where this head looks."
)


class Choice(NamedTuple):
    """What the explorer's controls say, apart from the head."""

    projection: str
    criterion: str
    by: str
    prompt_id: str


@dataclass(frozen=True, repr=False)
class Stored:
    """What a panel reads: the run, its score table, and the model's side if there is one."""

    run: xr.Dataset
    scores: pd.DataFrame
    inspector: Inspector | None


class HeadPanel(widgets.VBox):
    """The close-up of one head, empty until `show` fills it; errors are shown in it, never lost."""

    def __init__(self, stored: Stored, *, head: Head, choice: Choice, on_prompt: Callable[[str], None]) -> None:
        self._stored, self._head, self._choice = stored, head, choice
        self._title, self._stats, self._status = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self._attended, self._tokens, self._replies = widgets.HTML(), widgets.HTML(), widgets.HTML()
        tooltip = "Generate the reply with and without this head"
        self._ask = widgets.Button(description="Generate replies", tooltip=tooltip)
        self._ask.on_click(lambda button: self.attempt(lambda: self._show_replies(asked=True)))
        self._chart = Pane("", on_key=on_prompt)
        column = {"flex": "1 1 390px", "min_width": "320px", "padding": "0 14px 0 0"}
        left = widgets.VBox([self._stats, self._chart.widget], layout=column)
        right = widgets.VBox([self._attended, self._tokens, self._ask, self._replies], layout=column)
        body = widgets.HBox([left, right], layout={"flex_flow": "row wrap"})
        super().__init__([self._title, self._status, body], layout={"flex": "1 1 390px", "padding": "4px 0"})

    def __repr__(self) -> str:
        return f"HeadPanel({head_name(*self._head)})"

    @property
    def head(self) -> Head:
        return self._head

    def show(self, head: Head, choice: Choice, *, locked: bool = False) -> None:
        """Fill the panel with one head under the present choices."""
        self._head, self._choice = head, choice
        masked = theme.projection_words(choice.projection)
        self._title.value = markup.block(markup.heading(head_name(*head), masked=masked, locked=locked))
        self._status.value = ""
        self.attempt(self._show_stats)
        self.attempt(lambda: self._chart.draw(self._distribution()))
        self.attempt(self._show_prompt)

    def attempt(self, act: Callable[[], None]) -> None:
        """Run one step; what goes wrong is written into the panel, and the other parts stay as they are."""
        try:
            act()
        except WorkbenchError as mistake:
            self._status.value = markup.error(str(mistake))
        except Exception as fault:  # noqa: BLE001 - a widget callback has no caller: what is not shown here is lost
            self._status.value = markup.error(
                f"This part failed ({type(fault).__name__}: {fault}). The rest still works."
            )

    def _show_stats(self) -> None:
        rows = [
            [f"{theme.title(criterion)}\n{theme.unit(criterion)}", *map(number, values.values()), place]
            for criterion, values, place in charts.head_rows(self._stored.scores, self._head, self._choice.projection)
        ]
        self._stats.value = markup.block(markup.table(["", "unsafe", "safe", "difference", "AUROC", "rank"], rows))

    def _distribution(self) -> str:
        choice = self._choice
        where = (self._stored.run, choice.criterion, choice.projection)
        table = distributions.prompt_table(*where, head=self._head)
        threshold = distributions.threshold(*where, head=self._head)
        axis = theme.axis(choice.criterion)
        return svg.distribution(distributions.distribution(table, axis=axis, by=choice.by, threshold=threshold))

    def _show_prompt(self) -> None:
        inspector, prompt_id = self._stored.inspector, self._choice.prompt_id
        for part in (self._attended, self._tokens, self._replies):
            part.value = ""
        self._ask.layout.display = "none"
        if inspector is None or prompt_id not in inspector.prompts:
            lacking = _NO_MODEL if inspector is None else _NO_PROMPTS
            self._attended.value = markup.note(lacking)
            return
        self._attended.value = markup.busy("Reading the prompt …")
        attended = inspector.attended(prompt_id, self._head)
        self._attended.value = markup.block(self._attended_html(inspector, attended))
        self._tokens.value = markup.busy("Masking the head …")
        rows = inspector.next_tokens(prompt_id, self._head, self._choice.projection)
        self._tokens.value = markup.block("<h4>Next token, likeliest first</h4>", markup.next_tokens(rows))
        self._show_replies(asked=inspector.cheap)

    def _attended_html(self, inspector: Inspector, attended: Attended) -> str:
        image = inspector.prompts[self._choice.prompt_id].image
        picture = ""
        if image is not None:
            share = f"{attended.image_share:.0%} on the picture" if np.isfinite(attended.image_share) else "the picture"
            picture = (
                f'{markup.pictures(image, attended.patches)}<div class="wb-quiet">{share}, the rest on the words:</div>'
            )
        return f"<h4>Attention from the last prompt position</h4>{picture}{markup.words(attended.words)}"

    def _show_replies(self, *, asked: bool) -> None:
        inspector, choice = self._stored.inspector, self._choice
        if inspector is None:
            return
        if not asked and not inspector.has_replies(choice.prompt_id, self._head, choice.projection):
            self._ask.layout.display = ""
            return
        self._ask.layout.display = "none"
        self._replies.value = markup.busy("Generating …")
        try:
            base, masked = inspector.replies(choice.prompt_id, self._head, choice.projection)
        except BaseException:
            self._replies.value = ""
            raise
        self._replies.value = markup.block("<h4>Reply</h4>", markup.replies(base, masked))
