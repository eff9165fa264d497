"""The explorer's board: linked heat maps above, the chosen head (and a locked one beside it) below."""

from collections.abc import Mapping
from functools import partial

import ipywidgets as widgets
import numpy as np

from workbench.axes import head_name
from workbench.criteria.registry import PER_PROMPT, list_criteria, list_rules
from workbench.prompts.prompt import Prompt
from workbench.views import theme
from workbench.views.explorer import markup, svg
from workbench.views.explorer.head_panel import Choice, HeadPanel, Stored
from workbench.views.explorer.pane import Pane
from workbench.views.figures import captions, screen
from workbench.views.picks import Head, rule_heads

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
        self._quiet = False
        self._build_controls()
        first = self._marked(self._criteria[0])
        self.head: Head = first[0] if first else (int(stored.run["layer"][0]), int(stored.run["head"][0]))
        self._set_head_boxes()
        self._maps = {c: Pane(self._map(c), on_key=self._clicked, on_step=self._stepped) for c in self._criteria}
        self._kept, self._panel = (
            HeadPanel(stored, head=self.head, choice=self._choice(), on_prompt=self.select_prompt) for _ in range(2)
        )
        self._kept.layout.display = "none"
        self._hint, self._prompt_text = widgets.HTML(), widgets.HTML()
        self._refresh_words()
        self._panel.show(self.head, self._choice())
        super().__init__(self._rows(), layout=widgets.Layout(width="100%", max_width="1180px"))

    def __repr__(self) -> str:
        model = self._stored.run.attrs.get("model", "")
        return f"Board({model!r}, {len(self._criteria)} criteria, head {head_name(*self.head)})"

    def _per_prompt(self) -> list[str]:
        """Criteria with a value for every prompt that this run can give, those of the maps first."""
        held = [
            c.name for c in list_criteria() if c.kind == PER_PROMPT and set(c.needs) <= set(self._stored.run.data_vars)
        ]
        return sorted(held, key=lambda name: name not in self._criteria)

    def _build_controls(self) -> None:
        run = self._stored.run
        thin = {"style": {"description_width": "initial"}}
        self._projection = widgets.ToggleButtons(
            options=[str(p) for p in run["projection"].values],
            style={"button_width": "66px"},
        )
        self._column = widgets.Dropdown(
            options=[(word, column) for column, word in theme.COLUMN_WORDS.items() if column in self._stored.scores],
            description="Colour",
            layout={"width": "170px"},
            **thin,
        )
        self._rule = widgets.Dropdown(
            options=[(rule.name.replace("_", " "), rule.name) for rule in list_rules() if not rule.is_control],
            value="selectivity",
            description="Number the best by",
            layout={"width": "240px"},
            **thin,
        )
        self._top = widgets.BoundedIntText(
            value=5, min=0, max=20, description="how many", layout={"width": "120px"}, **thin
        )
        self._layer_box = widgets.Dropdown(
            options=[int(v) for v in run["layer"].values], description="Layer", layout={"width": "110px"}, **thin
        )
        self._head_box = widgets.Dropdown(
            options=[int(v) for v in run["head"].values], description="Head", layout={"width": "110px"}, **thin
        )
        self._lock = widgets.ToggleButton(
            description="Lock to compare",
            icon="lock",
            tooltip="Keep this head on the left and choose another beside it",
        )
        self._criterion = widgets.Dropdown(
            options=[(theme.title(c), c) for c in self._per_prompt()],
            description="Values of",
            layout={"width": "250px"},
            **thin,
        )
        self._by = widgets.Dropdown(options=["label", "family"], description="by", layout={"width": "110px"}, **thin)
        self._label = widgets.Dropdown(
            options=["all", "unsafe", "safe"], description="Prompts", layout={"width": "150px"}, **thin
        )
        families = sorted({str(f) for f in run["family"].values}) if "family" in run.coords else []
        self._family = widgets.Dropdown(
            options=["all", *families], description="of family", layout={"width": "190px"}, **thin
        )
        self._prompt = widgets.Dropdown(
            options=self._prompt_options(), description="Prompt", layout={"width": "440px"}, **thin
        )
        unsafe = run["prompt"].values[run["label"].values == "unsafe"]
        self._prompt.value = str(unsafe[0]) if len(unsafe) else self._prompt.value
        for control in (self._projection, self._column, self._rule, self._top):
            control.observe(lambda change: self._redraw_all(), "value")
        for control in (self._criterion, self._by, self._prompt):
            control.observe(lambda change: self._redraw_panels(), "value")
        for control in (self._layer_box, self._head_box):
            control.observe(lambda change: self._head_typed(), "value")
        for control in (self._label, self._family):
            control.observe(lambda change: self._filter_prompts(), "value")
        self._lock.observe(lambda change: self._lock_changed(), "value")

    def _rows(self) -> list[widgets.Widget]:
        run = self._stored.run
        model = run.attrs.get("model", "an unnamed model")
        where = f"{run.sizes['layer']} layers × {run.sizes['head']} heads, {captions.counts(run)}"
        top = widgets.HTML(
            markup.STYLE
            + markup.block(
                f"<h3>Attention heads of {markup.escape(str(model))}</h3>",
                f'<div class="wb-quiet">{markup.escape(where)}. {markup.escape(captions.mask_words(run))}.</div>',
            )
        )

        def row(*children: widgets.Widget) -> widgets.HBox:
            return widgets.HBox(
                children, layout=widgets.Layout(flex_flow="row wrap", align_items="center", padding="4px 0")
            )

        return [
            top,
            row(widgets.Label("Masked"), self._projection, self._column, self._rule, self._top),
            row(*(pane.widget for pane in self._maps.values())),
            self._hint,
            row(self._layer_box, self._head_box, self._lock, self._criterion, self._by),
            row(self._label, self._family, self._prompt),
            self._prompt_text,
            widgets.HBox(
                [self._kept, self._panel], layout=widgets.Layout(flex_flow="row wrap", border_top="1px solid #E6E6E6")
            ),
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
        sizes = self._stored.run.sizes
        layer, head = self.head[0] + up, self.head[1] + right
        self.select((min(max(layer, 0), sizes["layer"] - 1), min(max(head, 0), sizes["head"] - 1)))

    def select_prompt(self, prompt_id: str) -> None:
        """Choose a prompt by its id, whatever the filters say."""
        self._label.value, self._family.value = "all", "all"
        self._prompt.value = prompt_id

    def _choice(self) -> Choice:
        return Choice(self._projection.value, self._criterion.value, self._by.value, self._prompt.value or "")

    def _marked(self, criterion: str) -> tuple[Head, ...]:
        if not self._top.value:
            return ()
        shown = screen.projection_of(self._stored.scores, criterion, self._projection.value)
        where = {"criterion": criterion, "projection": shown}
        return rule_heads(self._stored.scores, **where, rule=self._rule.value, k=self._top.value)[0]

    def _draw_maps(self) -> None:
        for criterion, pane in self._maps.items():
            self._panel.guard(partial(self._draw_map, pane, criterion))

    def _draw_map(self, pane: Pane, criterion: str) -> None:
        pane.draw(self._map(criterion))

    def _map(self, criterion: str) -> str:
        shown = screen.projection_of(self._stored.scores, criterion, self._projection.value)
        return svg.heat_map(
            theme.grid(self._stored.scores, criterion=criterion, projection=shown, column=self._column.value),
            title=theme.title(criterion),
            unit=theme.unit(criterion, self._column.value),
            column=self._column.value,
            marked=self._marked(criterion),
            selected=[self.head, *([self.locked] if self.locked else [])],
            width=_MAP_WIDTH if self._stored.run.sizes["head"] <= 16 else 2 * _MAP_WIDTH,
        )

    def _set_head_boxes(self) -> None:
        self._quiet = True
        self._layer_box.value, self._head_box.value = self.head
        self._quiet = False

    def _head_typed(self) -> None:
        if not self._quiet:
            self.select((self._layer_box.value, self._head_box.value))

    def _redraw_all(self) -> None:
        self._draw_maps()
        self._redraw_panels()

    def _redraw_panels(self) -> None:
        if self._quiet:
            return
        self._refresh_words()
        self._panel.show(self.head, self._choice())
        if self.locked:
            self._kept.show(self.locked, self._choice(), locked=True)

    def _lock_changed(self) -> None:
        self.locked = self.head if self._lock.value else None
        self._lock.description = f"Unlock {head_name(*self.locked)}" if self.locked else "Lock to compare"
        self._kept.layout.display = None if self.locked else "none"
        if self.locked:
            self._kept.show(self.locked, self._choice(), locked=True)
        self._draw_maps()

    def _prompt_options(self) -> list[tuple[str, str]]:
        run = self._stored.run
        keep = np.ones(run.sizes["prompt"], dtype=bool)
        for box, name in ((self._label, "label"), (self._family, "family")):
            if box.value != "all":
                keep &= run[name].values == box.value
        ids = [str(i) for i in run["prompt"].values[keep]]
        return [(f"{i}  {self._prompts[i].text[:70]}" if i in self._prompts else i, i) for i in ids]

    def _filter_prompts(self) -> None:
        before, options = self._prompt.value, self._prompt_options()
        self._quiet = True
        self._prompt.options = options
        kept = [i for _, i in options]
        self._prompt.value = before if before in kept else (kept[0] if kept else None)
        self._quiet = False
        if self._prompt.value != before:
            self._redraw_panels()

    def _refresh_words(self) -> None:
        rule = self._rule.label
        silent = [theme.title(c) for c in self._criteria if self._top.value and not self._marked(c)]
        lacking = f" (none in {', '.join(silent)}, where that rule does not apply or keeps no head)" if silent else ""
        self._hint.value = markup.note(
            f"Click a cell, or move with the arrow keys. Numbered: the {self._top.value} best by {rule}{lacking}."
        )
        prompt_id = self._prompt.value
        if not prompt_id:
            self._prompt_text.value = markup.note("No prompt has this label and family.")
            return
        record = self._stored.run.sel(prompt=prompt_id)
        label, family = (str(record[n].item()) if n in record.coords else "" for n in ("label", "family"))
        category = str(record["category"].item()) if "category" in record.coords else ""
        text = self._prompts[prompt_id].text if prompt_id in self._prompts else "(the run keeps ids, not texts)"
        self._prompt_text.value = markup.block(markup.prompt_text(text, label=label, tags=[family, category]))
