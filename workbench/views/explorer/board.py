"""The explorer in a notebook: what is chosen, kept in step with the browser, which draws everything."""

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import anywidget
import traitlets

from workbench.axes import as_head, as_heads, head_name
from workbench.errors import ArgumentError
from workbench.plain import plain
from workbench.views import theme
from workbench.views.explorer import assets
from workbench.views.explorer.answers import Answers
from workbench.views.explorer.gathering import manifest_of
from workbench.views.explorer.packing import Packed
from workbench.views.explorer.stored import Stored
from workbench.views.explorer.traced import pack_trace

if TYPE_CHECKING:  # looking at stored data takes no torch
    from workbench.detectors.one_head import OneHeadDetector
    from workbench.views.explorer.inspector import Inspector

SENT_AT_ONCE = 16 * 2**20  # bytes of values that go with the widget; of more, those of a head when it is chosen
TEXT_SHOWN = 160  # letters of each prompt in the list; the chosen one is sent whole


class Board(anywidget.AnyWidget):
    """Maps of every criterion beside the chosen head. Build one with `workbench.explore`.

    What is set here is chosen in the browser, and the other way round.

    Attributes:
        head: The chosen (layer, head).
        locked: The head kept for comparison, or None.
        heads: The set: heads that were shift-clicked, or added with the space bar.
        prompt: Id of the chosen prompt.
        criterion: The criterion whose values are shown prompt by prompt.
        rule: What ranks the heads.
        projection: Which projection was masked.
        column: Of the score table; what the maps are coloured by.
        run: Number of the chosen run, from 0.
        detectors: One-head detectors whose thresholds were chosen under a distribution and kept, the newest last.
    """

    _esm = assets.script() + "export default { render };\n"
    _css = assets.style()
    head: Any = traitlets.TraitType((0, 0)).tag(sync=True)
    locked = traitlets.Any().tag(sync=True)
    heads: Any = traitlets.TraitType(()).tag(sync=True)
    prompt = traitlets.Unicode().tag(sync=True)
    criterion = traitlets.Unicode().tag(sync=True)
    rule = traitlets.Unicode().tag(sync=True)
    projection = traitlets.Unicode().tag(sync=True)
    column = traitlets.Unicode().tag(sync=True)
    run = traitlets.Int().tag(sync=True)
    _live = traitlets.Bool(default_value=True).tag(sync=True)
    _manifest = traitlets.Dict().tag(sync=True)
    _data = traitlets.Bytes().tag(sync=True)

    def __init__(self, runs: Sequence[Stored], inspectors: "Sequence[Inspector | None]", trace: Any = None) -> None:
        packed = Packed()
        flow = None if trace is None else pack_trace(packed, trace, runs)
        self._runs = list(runs)
        for place, stored in enumerate(runs):
            stored.pack_scores(packed, place, rule="selectivity")
        room = SENT_AT_ONCE
        for place, stored in enumerate(runs):
            if (size := stored.values_bytes()) <= room:
                room -= size
                for criterion in stored.per_prompt:
                    stored.pack_values(packed, place, criterion)
        manifest = manifest_of(runs, packed, texts=TEXT_SHOWN)
        asks = any(inspector is not None and inspector.prompts for inspector in inspectors)
        lacking = "" if asks else _lacking(inspectors)
        super().__init__(
            _manifest=manifest | {"asks": asks, "lacking": lacking, "trace": flow},
            _data=packed.data,
            **manifest["first"],
        )
        self._answers = Answers(runs, inspectors, lambda message, data: self.send(message, [data]))
        self.on_msg(lambda widget, message, buffers: self._answers.heard(message, buffers))

    @property
    def detectors(self) -> "list[OneHeadDetector]":
        return self._answers.detectors

    def __repr__(self) -> str:
        names = " and ".join(plain(run.label) for run in self._runs)
        return f"Board({names}, head {head_name(*self.head)})"

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """The widget, and a picture of its maps for where no kernel runs: a page on the web, an old notebook."""
        shown = super()._repr_mimebundle_(**kwargs)
        data = shown[0] if isinstance(shown, tuple) else shown
        if data is not None:
            data["image/png"] = base64.b64encode(self._picture()).decode()
        return shown

    def _picture(self) -> bytes:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        from workbench.views.figures import displays

        stored = self._runs[self.run]
        pairs = stored.scores[["criterion", "projection"]].drop_duplicates()
        pairs = pairs[pairs["projection"].isin([self.projection, "none"])].head(4)
        figure = Figure(figsize=(3.3 * len(pairs), 3.0), layout="constrained", dpi=110)
        FigureCanvasAgg(figure)
        for ax, (criterion, projection) in zip(
            figure.subplots(1, len(pairs), squeeze=False)[0], pairs.itertuples(index=False), strict=True
        ):
            displays.maps(
                stored.scores, criterion=criterion, projection=projection, value=self._column(criterion), ax=ax
            )
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        return buffer.getvalue()

    def _column(self, criterion: str) -> str:
        known = self._runs[self.run].scores.loc[self._runs[self.run].scores["criterion"] == criterion, self.column]
        return self.column if known.notna().any() else "unsafe"

    @traitlets.validate("head", "locked", "heads")
    def _check_heads(self, proposal: Any) -> Any:
        name, value = proposal["trait"].name, proposal["value"]
        try:
            found: Any = (
                as_heads(value) if name == "heads" else value if value is None and name == "locked" else as_head(value)
            )
        except ValueError as error:
            raise ArgumentError(f"{name} of the explorer {error}; got {plain(repr(value)[:80])}.") from error
        for layer, head in found if name == "heads" else [found] if found else []:
            self._check_head(layer, head)
        return [list(head) for head in found] if name == "heads" else found

    def _check_head(self, layer: int, head: int) -> None:
        shapes = [run.shape for run in self._runs]
        if not any(layer < layers and head < heads for layers, heads in shapes):
            layers, heads = shapes[0]
            raise ArgumentError(
                f"There is no head {head_name(layer, head)} here: layers are 0 to {layers - 1}, heads 0 to {heads - 1}."
            )

    @traitlets.validate("prompt", "criterion", "rule", "projection", "column", "run")
    def _check_names(self, proposal: Any) -> Any:
        name, value = proposal["trait"].name, proposal["value"]
        known = self._known(name)
        if value not in known:
            shown = ", ".join(str(one) for one in known[:12]) + (", …" if len(known) > 12 else "")
            raise ArgumentError(f"{name} of the explorer must be one of {plain(shown)}; got {plain(repr(value)[:80])}.")
        return value

    def _known(self, name: str) -> list[Any]:
        if name == "run":
            return list(range(len(self._runs)))
        if name == "column":
            return [column for column in theme.COLUMN_WORDS if any(column in run.scores for run in self._runs)]
        if name == "rule":
            return [rule["name"] for rule in self._manifest["rules"]]
        if name == "prompt":
            return list(dict.fromkeys(str(i) for run in self._runs for i in run.run["prompt"].values))
        of = {
            "criterion": lambda run: run.scores["criterion"],
            "projection": lambda run: map(str, run.run["projection"].values),
        }[name]
        return list(dict.fromkeys(value for run in self._runs for value in of(run)))


def _lacking(inspectors: "Sequence[Inspector | None]") -> str:
    if any(inspector is not None for inspector in inspectors):
        return (
            "The run keeps prompt ids, not the prompts. Give them too, wb.explore(run, model=model, prompts=prompts), "
            "to see where this head looks."
        )
    return (
        "Stored data only. Give the model too, wb.explore(run, model=model), to see where this head looks and what the "
        "model says with and without it."
    )
