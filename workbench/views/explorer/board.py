"""The explorer's board: linked heat maps above, the chosen head (and a locked one beside it) below."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import ipywidgets as widgets
import numpy as np

from workbench.axes import head_name
from workbench.criteria.registry import PER_PROMPT, list_criteria, list_rules
from workbench.plain import plain
from workbench.prompts.prompt import Prompt
from workbench.views import charts, theme
from workbench.views.charts import Head
from workbench.views.explorer import markup, svg
from workbench.views.explorer.head_panel import Choice, HeadPanel, Stored
from workbench.views.explorer.pane import Pane
from workbench.views.figures import captions

_FIRST_RULE = "selectivity"
_MAP_WIDTH = 276


class Board(widgets.VBox):
    """Heat maps of every criterion, linked by the chosen head. Build one with `workbench.explore`.

    Attributes:
        head: The chosen (layer, head).
        locked: The head kept for comparison, or None.
    """

    def __init__(self, stored: Stored, prompts: Mapping[str, Prompt]) -> None:
        self._stored, self._prompts = stored, prompts
        self._criteria = list(dict.fromkeys(stored.scores["criterion"]))
        self.locked: Head | None = None
        self._updating = False
        self._build_controls()
        first = self._marked(self._criteria[0])
        self.head: Head = first[0] if first else (int(stored.run["layer"][0]), int(stored.run["head"][0]))
        self._set_head_boxes()
        self._maps = {c: Pane(self._map(c), on_key=self._clicked, on_step=self._stepped) for c in self._criteria}
        self._locked_panel, self._panel = (
            HeadPanel(stored, head=self.head, choice=self._choice(), on_prompt=self.select_prompt) for _ in range(2)
        )
        self._locked_panel.layout.display = "none"
        self._hint, self._prompt_text = widgets.HTML(), widgets.HTML()
        self._refresh_words()
        self._panel.show(self.head, self._choice())
        super().__init__(self._rows(), layout=widgets.Layout(width="100%", max_width="1180px"))

    def __repr__(self) -> str:
        model = self._stored.run.attrs.get("model", "")
        return f"Board({model!r}, {len(self._criteria)} criteria, head {head_name(*self.head)})"

    def _build_controls(self) -> None:
        run, scores = self._stored.run, self._stored.scores
        columns = [(word, column) for column, word in theme.COLUMN_WORDS.items() if column in scores]
        rules = [(rule.name.replace("_", " "), rule.name) for rule in list_rules() if not rule.is_control]
        rules.sort(key=lambda rule: rule[1] != _FIRST_RULE)
        per_prompt = [c.name for c in list_criteria() if c.kind == PER_PROMPT and set(c.needs) <= set(run.data_vars)]
        per_prompt.sort(key=lambda name: name not in self._criteria)
        families = sorted({str(f) for f in run["family"].values}) if "family" in run.coords else []
        self._projection = widgets.ToggleButtons(
            options=[str(p) for p in run["projection"].values], style={"button_width": "66px"}
        )
        self._column = _dropdown("Colour", columns, 170)
        self._rule = _dropdown("Number the best by", rules, 240)
        self._top = widgets.BoundedIntText(value=5, min=0, max=20, description="how many", **_thin(120))
        self._layer_box = _dropdown("Layer", [int(v) for v in run["layer"].values], 110)
        self._head_box = _dropdown("Head", [int(v) for v in run["head"].values], 110)
        self._lock = widgets.ToggleButton(
            description="Lock to compare",
            icon="lock",
            tooltip="Keep this head on the left and choose another beside it",
        )
        self._criterion = _dropdown("Values of", [(theme.title(c), c) for c in per_prompt], 250)
        self._by = _dropdown("by", ["label", "family"], 110)
        self._label = _dropdown("Prompts", ["all", "unsafe", "safe"], 150)
        self._family = _dropdown("of family", ["all", *((plain(f), f) for f in families)], 190)
        self._prompt = _dropdown("Prompt", self._prompt_options(), 440)
        unsafe = run["prompt"].values[run["label"].values == "unsafe"]
        self._prompt.value = str(unsafe[0]) if len(unsafe) else self._prompt.value
        for act, controls in (
            (self._redraw_all, (self._projection, self._column, self._rule, self._top)),
            (self._redraw_panels, (self._criterion, self._by, self._prompt)),
            (self._head_typed, (self._layer_box, self._head_box)),
            (self._filter_prompts, (self._label, self._family)),
            (self._lock_changed, (self._lock,)),
        ):
            for control in controls:
                control.observe(lambda change, act=act: act(), "value")

    def _rows(self) -> list[widgets.Widget]:
        run = self._stored.run
        model = markup.escape(str(run.attrs.get("model", "an unnamed model")))
        where = f"{run.sizes['layer']} layers × {run.sizes['head']} heads, {captions.counts(run)}"
        about = markup.note(f"{where}. {captions.mask_words(run)}.")
        ruled = {"flex_flow": "row wrap", "border_top": "1px solid #E6E6E6"}
        return [
            widgets.HTML(markup.STYLE + markup.block(f"<h3>Attention heads of {model}</h3>") + about),
            _row(widgets.Label("Masked"), self._projection, self._column, self._rule, self._top),
            _row(*(pane.widget for pane in self._maps.values())),
            self._hint,
            _row(self._layer_box, self._head_box, self._lock, self._criterion, self._by),
            _row(self._label, self._family, self._prompt),
            self._prompt_text,
            widgets.HBox([self._locked_panel, self._panel], layout=ruled),
        ]

    def select(self, head: Head) -> None:
        """Choose a head in every map and in the panel, as a click does."""
        self.head = (int(head[0]), int(head[1]))
        self._set_head_boxes()
        self._draw_maps()
        self._panel.show(self.head, self._choice())

    def _clicked(self, key: str) -> None:
        layer, head = key.split(",")
        self.select((int(layer), int(head)))

    def _stepped(self, up: int, right: int) -> None:
        last = [self._stored.run.sizes[axis] - 1 for axis in ("layer", "head")]
        layer, head = np.clip(np.add(self.head, (up, right)), 0, last)
        self.select((layer, head))

    def select_prompt(self, prompt_id: str) -> None:
        """Choose a prompt by its id, whatever the filters say."""
        self._label.value, self._family.value = "all", "all"
        self._prompt.value = prompt_id

    def _choice(self) -> Choice:
        return Choice(self._projection.value, self._criterion.value, self._by.value, self._prompt.value or "")

    def _marked(self, criterion: str) -> tuple[Head, ...]:
        scores, rule, k = self._stored.scores, self._rule.value, self._top.value
        shown = charts.projection_of(scores, criterion, self._projection.value)
        return charts.rule_heads(scores, criterion=criterion, projection=shown, rule=rule, k=k)[0] if k else ()

    def _draw_maps(self) -> None:
        for criterion, pane in self._maps.items():
            self._panel.attempt(partial(self._draw_map, pane, criterion))

    def _draw_map(self, pane: Pane, criterion: str) -> None:
        pane.draw(self._map(criterion))

    def _map(self, criterion: str) -> str:
        where = {"criterion": criterion, "projection": self._projection.value, "column": self._column.value}
        return svg.heat_map(
            charts.head_map(self._stored.scores, **where),
            title=theme.title(criterion),
            marked=self._marked(criterion),
            selected=[head for head in (self.head, self.locked) if head],
            width=_MAP_WIDTH if self._stored.run.sizes["head"] <= 16 else 2 * _MAP_WIDTH,
        )

    def _set_head_boxes(self) -> None:
        self._updating = True
        self._layer_box.value, self._head_box.value = self.head
        self._updating = False

    def _head_typed(self) -> None:
        if not self._updating:
            self.select((self._layer_box.value, self._head_box.value))

    def _redraw_all(self) -> None:
        self._draw_maps()
        self._redraw_panels()

    def _redraw_panels(self) -> None:
        if self._updating:
            return
        self._refresh_words()
        self._panel.show(self.head, self._choice())
        if self.locked:
            self._locked_panel.show(self.locked, self._choice(), locked=True)

    def _lock_changed(self) -> None:
        self.locked = self.head if self._lock.value else None
        self._lock.description = f"Unlock {head_name(*self.locked)}" if self.locked else "Lock to compare"
        self._locked_panel.layout.display = None if self.locked else "none"
        if self.locked:
            self._locked_panel.show(self.locked, self._choice(), locked=True)
        self._draw_maps()

    def _prompt_options(self) -> list[tuple[str, str]]:
        run = self._stored.run
        keep = np.ones(run.sizes["prompt"], dtype=bool)
        for box, name in ((self._label, "label"), (self._family, "family")):
            if box.value != "all":
                keep &= run[name].values == box.value
        ids = [str(i) for i in run["prompt"].values[keep]]
        return [(plain(f"{i}  {self._prompts[i].text[:70]}" if i in self._prompts else i), i) for i in ids]

    def _filter_prompts(self) -> None:
        before, options = self._prompt.value, self._prompt_options()
        kept = [i for _, i in options]
        self._updating = True
        self._prompt.options = options
        self._prompt.value = before if before in kept else next(iter(kept), None)
        self._updating = False
        if self._prompt.value != before:
            self._redraw_panels()

    def _refresh_words(self) -> None:
        silent = [theme.title(c) for c in self._criteria if self._top.value and not self._marked(c)]
        lacking = f" (none in {', '.join(silent)}, where that rule does not apply or keeps no head)" if silent else ""
        best = f"the {self._top.value} best by {self._rule.label}"
        self._hint.value = markup.note(f"Click a cell, or move with the arrow keys. Numbered: {best}{lacking}.")
        prompt_id = self._prompt.value
        if not prompt_id:
            self._prompt_text.value = markup.note("No prompt has this label and family.")
            return
        record = self._stored.run.sel(prompt=prompt_id)
        names = ("label", "family", "category")
        label, *tags = (str(record[name].item()) if name in record.coords else "" for name in names)
        text = self._prompts[prompt_id].text if prompt_id in self._prompts else "(the run keeps ids, not texts)"
        self._prompt_text.value = markup.block(markup.prompt_text(text, label=label, tags=tags))


def _thin(width: int) -> dict[str, Any]:
    return {"layout": {"width": f"{width}px"}, "style": {"description_width": "initial"}}


def _dropdown(description: str, options: list[Any], width: int) -> widgets.Dropdown:
    return widgets.Dropdown(options=options, description=description, **_thin(width))


def _row(*children: widgets.Widget) -> widgets.HBox:
    return widgets.HBox(children, layout={"flex_flow": "row wrap", "align_items": "center", "padding": "4px 0"})
